"""Comparisons, yes and no, vignettes, medicines: what is asked must be answered truly."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medsft.cli import app
from medsft.data.records import read_files
from medsft.data.template import bare_question
from medsft.errors import UserError
from medsft.knowledge.distinctive import DISTINCTIVE_SYMPTOMS
from medsft.knowledge.graph import COMMON_GRAPH, SAMPLE_GRAPH, Entity, Graph, read_graph
from medsft.knowledge.mentions import Names
from medsft.knowledge.pair import Pair
from medsft.knowledge.pairs import KINDS, make_pairs
from medsft.knowledge.relations import BODY_PART, DEPARTMENT, DRUGS, SYMPTOMS
from medsft.knowledge.split import part_of, split_graph, write_split
from medsft.knowledge.templates import DEFAULT_TEMPLATES, load_templates

TEMPLATES = load_templates()
COMMON = read_graph([COMMON_GRAPH], max_bad_share=0.0)
FACTS = {entity.name: dict(entity.facts) for entity in COMMON.entities}
PAIRS = make_pairs(COMMON, TEMPLATES, seed=0, num_phrasings=3)


def of(kind: str):
    return [pair for pair in PAIRS if pair.kind == kind]


def graph(*entities: tuple[str, dict]) -> Graph:
    return Graph(tuple(Entity(name, tuple(facts.items()), f"g:{name}") for name, facts in entities), 0, ())


def pairs_of(kind: str, some: Graph):
    return make_pairs(some, TEMPLATES, seed=1, kinds=[kind], num_phrasings=9)


class TestCommonGraph:
    def test_a_few_hundred_entities_each_with_department_and_place(self):
        assert len(COMMON.entities) >= 240
        assert (COMMON.num_merged, COMMON.num_repeated) == (0, 0)
        for name, facts in FACTS.items():
            assert {DEPARTMENT, "发病部位"} <= facts.keys() and len(facts) >= 4, name

    def test_every_relation_has_phrasings_of_its_own(self):
        assert {relation for facts in FACTS.values() for relation in facts} <= TEMPLATES.relations.keys()

    def test_it_is_said_to_be_no_advice(self, tmp_path):
        arguments = ["data", "build", "--graph", str(COMMON_GRAPH), "--output", str(tmp_path / "p.jsonl")]
        assert CliRunner().invoke(app, arguments).exit_code == 0
        card = (tmp_path / "p.card.md").read_text(encoding="utf-8")
        assert "| largest number of pairs | no limit |" in card
        assert "no medical advice" in card and "不构成医疗建议" in card and "249 entities" in card
        assert re.search(r"\| graph: common\.jsonl \| [0-9a-f]{64} \|", card)

    def test_all_kinds_come_out_of_it_in_whole_sentences(self):
        assert {pair.kind for pair in PAIRS} == set(KINDS)
        for pair in PAIRS:
            assert re.fullmatch(r"[^{}\n]+[。]", pair.answer), pair
            assert not re.search(r"，，|、、|。。|，。|和和|None|；。", pair.answer + pair.question), pair


def test_yes_is_what_the_graph_says_and_no_is_not():
    seen = {True: 0, False: 0}
    for pair in of("yes_no"):
        (relation,) = pair.relations
        own = FACTS[pair.entities[0]][relation]
        is_yes = len(pair.entities) == 1
        asked = [value for value in own if value in pair.question.replace(pair.entities[0], "")]
        assert bool(asked) == is_yes, pair
        assert pair.answer.startswith(("会，", "是的", "对，")) == is_yes, pair
        seen[is_yes] += 1
    assert seen[True] > 100 and seen[False] > 25


def denials(some: Graph):
    return [pair for pair in pairs_of("yes_no", some) if len(pair.entities) == 2]


def test_a_negative_comes_from_a_disease_that_is_easily_confused():
    alike = graph(
        ("甲病", {SYMPTOMS: ("恶心", "头痛"), DEPARTMENT: ("甲科",), BODY_PART: ("脑",)}),
        ("乙病", {SYMPTOMS: ("恶心", "方颅", "腹痛"), DEPARTMENT: ("乙科",), BODY_PART: ("骨骼",)}),
        ("丙病", {SYMPTOMS: ("耳鸣", "鸡胸"), DEPARTMENT: ("丙科",), BODY_PART: ("内耳",)}),
    )
    questions = {pair.question for pair in denials(alike)}
    assert any("甲病" in question and "方颅" in question for question in questions)
    assert not any(word in question for question in questions for word in ("丙病", "鸡胸", "腹痛"))


@pytest.mark.parametrize(
    "change",
    [
        {"相关疾病": ("甲病",)},
        {DEPARTMENT: ("甲科",)},
        {DEPARTMENT: ()},
        {BODY_PART: ("脑",)},
        {BODY_PART: ("脑膜",)},
        {BODY_PART: ()},
        {SYMPTOMS: ("恶心", "剧烈头痛", "腹痛", "扁桃体红肿")},
    ],
    ids=[
        "related", "same department", "no department", "same part", "part of it", "no part", "common",
    ],
)  # fmt: skip
def test_what_may_be_true_is_never_denied(change):
    other = {SYMPTOMS: ("恶心", "方颅"), DEPARTMENT: ("乙科",), BODY_PART: ("骨骼",), **change}
    own = {SYMPTOMS: ("恶心", "头痛"), DEPARTMENT: ("甲科",), BODY_PART: ("脑",)}
    some = graph(("甲病", own), ("乙病", {name: values for name, values in other.items() if values}))
    assert not [pair for pair in denials(some) if "甲病" in pair.question]


@pytest.mark.parametrize("file", [COMMON_GRAPH, SAMPLE_GRAPH])
def test_only_distinctive_symptoms_are_denied(file):
    denied = denials(read_graph([file]))
    assert denied
    for pair in denied:
        assert pair.relations == (SYMPTOMS,), pair
        assert any(symptom in pair.question for symptom in DISTINCTIVE_SYMPTOMS), pair
        assert not re.search("科|扁桃体红肿|水肿", pair.question), pair


def test_two_diseases_are_told_apart_by_what_only_one_has():
    some = graph(
        ("甲病", {SYMPTOMS: ("恶心", "头痛"), DEPARTMENT: ("甲科",)}),
        ("乙病", {SYMPTOMS: ("恶心", "腹痛"), DEPARTMENT: ("乙科", "丙科")}),
    )
    (pair,) = pairs_of("comparison", some)
    assert pair.answer == (
        "甲病和乙病都可以出现恶心；此外，甲病还常有头痛，乙病还常有腹痛；甲病应到甲科就诊，乙病应到乙科或丙科就诊。"
    )
    assert pair.entities == ("甲病", "乙病")


def test_a_vignette_names_every_disease_that_fits():
    for pair in of("vignette"):
        complaints = [
            symptom
            for symptom in FACTS[pair.entities[0]][SYMPTOMS]
            if re.search(
                rf"(?:出现|总是|有|因|、|和|以及){re.escape(symptom)}(?:，|、|和|以及|这些|前来)",
                pair.question,
            )
        ]
        fitting = {name for name, facts in FACTS.items() if set(complaints) <= set(facts.get(SYMPTOMS, ()))}
        assert len(complaints) in (2, 3) and set(pair.entities) == fitting, pair
        assert all(name in pair.answer for name in pair.entities)
        assert any(department in pair.answer for department in FACTS[pair.entities[0]][DEPARTMENT])


def test_symptoms_of_everybody_point_to_nobody(monkeypatch):
    alike = graph(
        ("甲病", {SYMPTOMS: ("恶心", "头痛"), DEPARTMENT: ("甲科",)}),
        ("乙病", {SYMPTOMS: ("恶心", "头痛"), DEPARTMENT: ("乙科",)}),
    )
    assert [pair.entities for pair in pairs_of("vignette", alike)] == [("甲病", "乙病")]
    # The module, which its function hides in the package.
    monkeypatch.setattr(sys.modules["medsft.knowledge.kinds.vignette"], "_MAX_HOLDERS", 1)
    assert pairs_of("vignette", alike) == ()


def test_a_reverse_answer_rests_on_those_it_names_and_one_more():
    many = graph(*((f"病{number}", {SYMPTOMS: ("恶心",)}) for number in range(30)))
    for pair in pairs_of("reverse", many):
        assert pair.entities == tuple(f"病{number}" for number in range(9))
        assert "病7等" in pair.answer and "病8" not in pair.answer


def test_every_answer_about_a_medicine_holds_a_caution():
    assert len(of("medication")) > 100
    for pair in of("medication"):
        assert "医生" in pair.answer and "不要自行" in pair.answer
        assert any(drug in pair.question for drug in FACTS[pair.entities[0]][DRUGS])


def pairs_in(path: Path) -> list[Pair]:
    """The pairs of a file, from its records and their provenance."""
    found = []
    for record in map(json.loads, path.read_text("utf-8").splitlines()):
        made = record["provenance"]
        lists = (tuple(made[name]) for name in ("sources", "entities", "relations"))
        question = bare_question(record["context"])
        found.append(Pair(question, record["target"], made["kind"], *lists, made["template"]))
    return found


@pytest.fixture(scope="class")
def split_of_common(request, tmp_path_factory):
    """FILES: what two processes wrote, by name; NUM_CROSSING as they counted it."""
    folder = tmp_path_factory.mktemp("split")
    summary = write_split([COMMON_GRAPH], folder, (0.7, 0.1, 0.2), seed=3, num_workers=2)
    request.cls.FOLDER = folder
    request.cls.FILES = {name: pairs_in(folder / f"{name}.jsonl") for name in summary.num_pairs}
    request.cls.NUM_CROSSING = summary.num_crossing
    assert {name: len(pairs) for name, pairs in request.cls.FILES.items()} == {
        name: sum(kinds.values()) for name, kinds in summary.num_pairs.items()
    }


@pytest.mark.usefixtures("split_of_common")
class TestSplit:
    def test_the_number_of_processes_changes_no_byte(self, tmp_path):
        write_split([COMMON_GRAPH], tmp_path, (0.7, 0.1, 0.2), seed=3, num_workers=1)
        for path in sorted(tmp_path.iterdir()):
            assert path.read_bytes() == (self.FOLDER / path.name).read_bytes().replace(
                self.FOLDER.name.encode(), tmp_path.name.encode()
            ), path.name

    def test_a_split_that_stops_leaves_the_earlier_one(self, tmp_path, monkeypatch):
        write_split([SAMPLE_GRAPH], tmp_path, kinds=["single"])
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        (tmp_path / ".unfinished").mkdir()  # as a split that was killed leaves it
        (tmp_path / ".unfinished" / "train.jsonl").write_text("half", encoding="utf-8")

        def full(path):
            if path.name.startswith(".test"):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr("medsft.files.sync", full)
        with pytest.raises(UserError, match=r"test\.jsonl cannot be written: No space left on device"):
            write_split([SAMPLE_GRAPH], tmp_path, kinds=["single"], seed=9)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_no_entity_is_in_two_parts(self):
        entities = {
            name: {entity for pair in pairs for entity in pair.entities} for name, pairs in self.FILES.items()
        }
        assert not entities["train"] & entities["test"]
        assert not entities["train"] & entities["validation"]
        assert not entities["validation"] & entities["test"]
        assert entities["recall"] <= entities["train"]

    def test_no_training_question_names_an_unseen_entity(self):
        unseen = Names(name for name in FACTS if part_of(name, (0.7, 0.1, 0.2), 3) != "train")
        all_names = Names(FACTS)
        for pair in self.FILES["train"]:
            assert not all_names.found_in(pair.question) & unseen.found_in(pair.question), pair
        assert self.NUM_CROSSING > 0

    def test_recall_asks_learnt_facts_in_unseen_words_with_the_learnt_answer(self):
        learnt = {
            (pair.entities, pair.relations): pair for pair in self.FILES["train"] if pair.kind == "single"
        }
        questions = {pair.question for pair in self.FILES["train"]}
        assert len(self.FILES["recall"]) > 300
        for pair in self.FILES["recall"]:
            assert pair.question not in questions
            assert pair.answer == learnt[pair.entities, pair.relations].answer

    def test_a_graph_that_grows_moves_nobody(self):
        fewer = Graph(COMMON.entities[::2], 0, ())
        for part, some in split_graph(fewer, (0.7, 0.1, 0.2), 3).items():
            assert {entity.name for entity in some.entities} <= {
                entity.name for entity in split_graph(COMMON, (0.7, 0.1, 0.2), 3)[part].entities
            }

    @pytest.mark.parametrize("shares", [(1.0, 0.0), (0.5, 0.2, 0.2), (0, 0.5, 0.5), (1.2, -0.1, -0.1)])
    def test_shares_that_do_not_add_up(self, shares):
        with pytest.raises(UserError, match="add up to 1"):
            split_graph(COMMON, shares, 0)

    def test_a_part_without_entities(self):
        with pytest.raises(UserError, match="raise these, or give another seed"):
            split_graph(Graph(COMMON.entities[:2], 0, ()), (0.98, 0.01, 0.01), 0)

    def test_command(self, tmp_path):
        out = tmp_path / "分 割"
        arguments = ["data", "split", "--graph", str(COMMON_GRAPH), "--output_dir", str(out), "--seed", "3"]
        own = tmp_path / "我的 句式.yaml"
        own.write_text(
            DEFAULT_TEMPLATES.read_text("utf-8").replace("有哪些症状", "有何症状"), encoding="utf-8"
        )
        done = CliRunner().invoke(app, [*arguments, "--kinds", "single", "--templates", str(own)])
        assert done.exit_code == 0 and "有何症状" in (out / "train.jsonl").read_text("utf-8")
        assert sorted(path.name for path in out.iterdir()) == [
            "recall.jsonl", "split.card.md", "test.jsonl", "train.jsonl", "validation.jsonl",
        ]  # fmt: skip
        assert not read_files([out / "train.jsonl"]).bad
        assert f"{done.stdout.split('train: ')[1].split()[0]} pairs" in (out / "split.card.md").read_text(
            "utf-8"
        )
        record = json.loads((out / "recall.jsonl").read_text("utf-8").splitlines()[0])
        assert record["provenance"]["seed"] == 3
        assert isinstance(CliRunner().invoke(app, [*arguments, "--shares", "a,b"]).exception, UserError)

    def test_a_second_split_leaves_nothing_of_the_first(self, tmp_path):
        write_split([SAMPLE_GRAPH], tmp_path, (0.6, 0.2, 0.2), kinds=["single"])
        (tmp_path / "README.md").write_text("mine", encoding="utf-8")
        write_split([SAMPLE_GRAPH], tmp_path, (0.8, 0.0, 0.2), kinds=["single"])
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "README.md", "recall.jsonl", "split.card.md", "test.jsonl", "train.jsonl",
        ]  # fmt: skip
        assert (tmp_path / "README.md").read_text("utf-8") == "mine"

    @pytest.mark.parametrize("name", ["train.jsonl", "test.jsonl", "split.card.md"])
    def test_files_that_are_no_split_are_not_replaced(self, tmp_path, name):
        (tmp_path / name).write_text("mine\n", encoding="utf-8")
        with pytest.raises(UserError, match=rf"holds {name}"):
            write_split([SAMPLE_GRAPH], tmp_path, kinds=["single"])
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_text("utf-8") == "mine\n"

    def test_a_part_that_the_card_does_not_list_is_not_replaced(self, tmp_path):
        write_split([SAMPLE_GRAPH], tmp_path, (0.8, 0.0, 0.2), kinds=["single"])
        (tmp_path / "validation.jsonl").write_text("mine\n", encoding="utf-8")
        with pytest.raises(UserError, match=r"holds validation\.jsonl"):
            write_split([SAMPLE_GRAPH], tmp_path, (0.6, 0.2, 0.2), kinds=["single"])

    def test_the_graph_is_not_replaced(self, tmp_path):
        write_split([SAMPLE_GRAPH], tmp_path, kinds=["single"])
        (tmp_path / "train.jsonl").write_bytes(SAMPLE_GRAPH.read_bytes())
        with pytest.raises(UserError, match="one of the inputs"):
            write_split([tmp_path], tmp_path, kinds=["single"], max_bad_share=1.0)
        assert (tmp_path / "train.jsonl").read_bytes() == SAMPLE_GRAPH.read_bytes()


def test_names_are_found_as_wholes():
    names = Names(["肺癌", "癌", "小细胞肺癌", "肺"])
    assert names.found_in("小细胞肺癌与肺炎") == {"小细胞肺癌", "肺"}
    assert names.found_in("癌") == {"癌"}
    assert names.places("肺癌肺癌") == [(0, 2), (2, 4)]
    assert names.found_in("") == set()
