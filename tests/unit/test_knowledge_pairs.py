"""Facts as questions and answers, and the file of them."""

import json
import os
import re
import signal
from dataclasses import replace

import pytest

from medsft.data.records import Columns, read_files
from medsft.data.template import bare_question, detect_template
from medsft.errors import UserError
from medsft.knowledge.build import build_pairs
from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import SAMPLE_GRAPH, Entity, Graph, read_graph
from medsft.knowledge.pair import Pair
from medsft.knowledge.pair_file import write_pairs
from medsft.knowledge.pairs import KINDS, Portion, make_pairs
from medsft.knowledge.templates import DEFAULT_TEMPLATES, load_templates
from medsft.knowledge.wording import join

MIGRAINE = Entity(
    "偏头痛",
    (("相关疾病", ("紧张型头痛",)), ("相关症状", ("恶心", "畏光", "畏声")), ("发作频率", ("不定",))),
    "g:1",
)
APPENDICITIS = Entity("急性阑尾炎", (("相关症状", ("恶心", "发热")), ("所属科室", ("普外科",))), "g:2")
GRAPH = Graph((MIGRAINE, APPENDICITIS), 0, ())
TEMPLATES = load_templates()


def asked(kind: str, **options) -> dict[str, str]:
    pairs = make_pairs(GRAPH, TEMPLATES, seed=1, kinds=[kind], num_phrasings=9, **options)
    assert {pair.kind for pair in pairs} == {kind}
    return {pair.question: pair.answer for pair in pairs}


def test_a_single_fact_has_one_answer_in_every_phrasing():
    answers = asked("single")
    about_symptoms = [answers["偏头痛有哪些症状？"], answers["得了偏头痛会有什么表现？"]]
    assert about_symptoms[0] == about_symptoms[1]
    assert "恶心、畏光和畏声" in about_symptoms[0]
    assert answers["急性阑尾炎应该看哪个科室？"] in (
        "急性阑尾炎应到普外科就诊。",
        "急性阑尾炎一般由普外科诊治。",
    )


def test_a_relation_without_templates_gets_the_general_ones():
    answers = asked("single")
    assert answers["偏头痛的发作频率是什么？"] in ("偏头痛的发作频率有不定。", "偏头痛的发作频率包括不定。")


def test_several_facts_in_one_sentence():
    answers = asked("several")
    assert (
        answers["请介绍一下偏头痛。"]
        == "偏头痛的常见症状有恶心、畏光和畏声，相关疾病有紧张型头痛，发作频率有不定。"
    )
    two = {answer for question, answer in answers.items() if "有哪些症状，应该看哪个科室？" in question}
    assert two == {"急性阑尾炎的常见症状有恶心和发热，应到普外科就诊。"}


def test_reverse_lookup_names_every_entity_and_its_source():
    pairs = {
        pair.question: pair
        for pair in make_pairs(GRAPH, TEMPLATES, seed=1, kinds=["reverse"], num_phrasings=9)
    }
    nausea = pairs["哪些疾病会有恶心的症状？"]
    assert "偏头痛和急性阑尾炎" in nausea.answer
    assert nausea.sources == ("g:1", "g:2")
    assert "急性阑尾炎" in pairs["哪些疾病会有发热的症状？"].answer
    assert not any("紧张型头痛" in question for question in pairs)


def test_the_form_is_the_one_of_the_training_data():
    (pair, *_) = make_pairs(GRAPH, TEMPLATES, seed=1)
    assert pair.record() == {"context": f"问题：{pair.question}\n回答: ", "target": pair.answer}
    provenance = pair.record_with_provenance({"seed": 1})["provenance"]
    assert {
        "kind": "single",
        "sources": ["g:1"],
        "entities": ["偏头痛"],
        "relations": ["相关疾病"],
        "seed": 1,
    }.items() <= provenance.items()
    assert re.fullmatch(r"相关疾病\.questions\.\d\+answers\.\d", provenance["template"])
    assert re.fullmatch(r"[0-9a-f]{16}", provenance["sha256"])


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        (["甲"], "甲"),
        (["甲", "乙"], "甲和乙"),
        (["甲", "乙", "丙"], "甲、乙和丙"),
        (["恶心和呕吐", "腹痛"], "恶心和呕吐以及腹痛"),
        ([str(number) for number in range(8)], "0、1、2、3、4、5、6和7"),
        ([str(number) for number in range(9)], "0、1、2、3、4、5、6、7等"),
    ],
)
def test_join(values, joined):
    assert join(values) == joined


def test_one_of_several_is_joined_with_or():
    graph = Graph((Entity("甲", (("药物治疗", ("乙", "丙")), ("所属科室", ("丁科", "戊科"))), "g:1"),), 0, ())
    answers = {pair.answer for pair in make_pairs(graph, TEMPLATES, seed=0, kinds=["several"])}
    assert answers == {"甲应到丁科或戊科就诊，可在医生指导下使用乙或丙治疗。"}
    assert join(["恶心和呕吐", "腹痛"], "或") == "恶心和呕吐或腹痛"


def test_the_same_seed_gives_the_same_pairs_and_another_seed_others():
    graph = read_graph([SAMPLE_GRAPH])
    assert make_pairs(graph, TEMPLATES, seed=3) == make_pairs(graph, TEMPLATES, seed=3)
    assert make_pairs(graph, TEMPLATES, seed=3) != make_pairs(graph, TEMPLATES, seed=4)


def test_choices_are_the_same_on_every_machine():
    pairs = make_pairs(GRAPH, TEMPLATES, seed=2023, kinds=["single"], num_phrasings=1)
    assert [pair.question for pair in pairs] == [
        "与偏头痛相关的疾病是什么？",
        "偏头痛的常见症状是什么？",
        "偏头痛的发作频率有哪些？",
        "急性阑尾炎的常见症状是什么？",
        "急性阑尾炎属于哪个科室？",
    ]


def test_a_further_entity_leaves_the_others_pairs_alone():
    alone = make_pairs(Graph((MIGRAINE,), 0, ()), TEMPLATES, seed=5, kinds=["single", "several"])
    together = make_pairs(GRAPH, TEMPLATES, seed=5, kinds=["single", "several"])
    assert set(alone) <= set(together)


def test_no_question_comes_twice_and_phrasings_are_limited():
    graph = read_graph([SAMPLE_GRAPH])
    pairs = make_pairs(graph, TEMPLATES, seed=0, num_phrasings=3)
    assert len({pair.question for pair in pairs}) == len(pairs)
    singles = make_pairs(graph, TEMPLATES, seed=0, kinds=["single"], num_phrasings=1)
    assert len(singles) == sum(len(entity.facts) for entity in graph.entities)


def test_braces_in_the_graph_are_plain_text():
    graph = Graph((Entity("{entity}", (("相关症状", ("{values}", "100%")),), "g:1"),), 0, ())
    answers = {pair.answer for pair in make_pairs(graph, TEMPLATES, seed=0, kinds=["single"])}
    assert all("{entity}" in answer and "{values}和100%" in answer for answer in answers)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ["single", "rhymes"]}, "rhymes was asked for"),
        ({"kinds": []}, "none was asked for"),
        ({"num_phrasings": 0}, "must be 1 or more"),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(UserError, match=said):
        make_pairs(GRAPH, TEMPLATES, seed=0, **options)


class TestAnswersOfTheSample:
    """Every sentence that comes out of the box."""

    PAIRS = make_pairs(read_graph([SAMPLE_GRAPH]), TEMPLATES, seed=0, num_phrasings=9)

    def test_sentences_are_whole(self):
        for pair in self.PAIRS:
            assert re.fullmatch(r"[^{}\s]+。", pair.answer), pair
            assert re.fullmatch(r"[^{}\s]+[？。]", pair.question), pair
            assert not re.search(r"，，|、、|。。|，。|和和", pair.answer), pair

    def test_all_kinds_are_there(self):
        assert {pair.kind for pair in self.PAIRS} == set(KINDS)

    def test_longer_answers_begin_with_their_subject(self):
        names = tuple(entity.name for entity in read_graph([SAMPLE_GRAPH]).entities)
        assert all(pair.answer.startswith(names) for pair in self.PAIRS if pair.kind == "several")


class TestTemplateFile:
    def load(self, tmp_path, old: str, new: str):
        text = DEFAULT_TEMPLATES.read_text(encoding="utf-8")
        assert old in text
        path = tmp_path / "my templates.yaml"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return load_templates(path)

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("{entity}有哪些症状？", "{disease}有哪些症状？", "相关症状.questions: '{disease}有哪些"),
            ("{entity}有哪些症状？", "有哪些症状？", "must hold {entity}"),
            ("{entity}有哪些症状？", "{entity有哪些症状？", "stray brace"),
            ("{entity}有哪些症状？", "{}有哪些症状？", "must hold {entity}"),
            ("    clause: \"常见症状有{values}\"\n", "", "相关症状 lacks clause"),
            ("    clause: \"常见症状有{values}\"\n", "    claus: x\n", "lacks clause and has unknown claus"),
            ("overview:", "summary:", "lacks overview and has unknown summary"),
            ("    ask: \"有哪些症状\"", "    ask: 3", "相关症状.ask must be a list of texts"),
            ("relations:", "relations: [", "cannot be read as YAML"),
        ],
    )  # fmt: skip
    def test_a_fault_names_file_and_entry(self, tmp_path, old, new, said):
        with pytest.raises(UserError, match=re.escape(said)) as caught:
            self.load(tmp_path, old, new)
        assert "my templates.yaml" in str(caught.value)

    def test_reverse_phrasings_go_together(self, tmp_path):
        with pytest.raises(UserError, match="临床症状 lacks reverse_answers"):
            self.load(
                tmp_path, '    reverse_answers:\n      - "临床症状包括{value}的疾病有{entities}。"\n', ""
            )

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load_templates(tmp_path / "none.yaml")


class TestBuild:
    def test_the_file_is_what_training_reads(self, tmp_path):
        output = tmp_path / "新 folder" / "pairs.jsonl"
        summary = build_pairs([SAMPLE_GRAPH], output, seed=1)
        records = read_files([output], Columns())
        assert records.bad == ()
        assert len(records.examples) == sum(summary.num_pairs.values())
        assert detect_template(records.examples) == "med-chatglm"
        assert [path.name for path in sorted(output.parent.iterdir())] == ["pairs.card.md", "pairs.jsonl"]
        assert "45 entities" in summary.describe()

    @pytest.mark.parametrize("num_workers", [1, 2, 3])
    def test_any_number_of_processes_writes_what_one_makes(self, tmp_path, monkeypatch, num_workers):
        monkeypatch.setattr("medsft.knowledge.pairs.PORTION_SUBJECTS", 7)
        build_pairs([SAMPLE_GRAPH], tmp_path / "p.jsonl", seed=1, num_workers=num_workers)
        pairs = make_pairs(read_graph([SAMPLE_GRAPH]), TEMPLATES, seed=1)
        lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
        made = [json.dumps(pair.record_with_provenance({"seed": 1}), ensure_ascii=False) for pair in pairs]
        assert lines == made

    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_max_pairs_keeps_some_of_the_same_pairs_in_order(self, tmp_path, num_workers):
        whole, some = tmp_path / "whole.jsonl", tmp_path / "some.jsonl"
        build_pairs([SAMPLE_GRAPH], whole, seed=7)
        summary = build_pairs([SAMPLE_GRAPH], some, seed=7, max_pairs=50, num_workers=num_workers)
        kept = some.read_bytes().splitlines()
        assert len(kept) == sum(summary.num_pairs.values()) == 50
        assert [line for line in whole.read_bytes().splitlines() if line in set(kept)] == kept
        lines = {bare_question(json.loads(line)["context"]): line for line in whole.read_bytes().splitlines()}
        assert {lines[text] for text in SeededChoice(7)(list(lines), 50, "pairs")} == set(kept)
        build_pairs([SAMPLE_GRAPH], some, seed=7, max_pairs=10**6)
        assert some.read_bytes() == whole.read_bytes()
        with pytest.raises(UserError, match="must be 1 or more"):
            build_pairs([SAMPLE_GRAPH], some, max_pairs=0)

    def test_a_question_that_comes_again_is_written_once(self, tmp_path):
        first = Pair("甲？", "乙。", "single", ("g:1",))
        portions = [Portion("single", 0, 1), Portion("several", 0, 1)]
        again = [replace(first, answer="丙。"), None, Pair("丁？", "戊。", "several", ("g:1",))]
        made = {portions[0]: [first], portions[1]: again}
        written = write_pairs(tmp_path / "p.jsonl", made.get, portions, seed=0)
        lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["target"] for line in lines] == ["乙。", "戊。"]
        assert (written.num_pairs, written.num_left_out) == ({"single": 1, "several": 1}, 1)
        none = write_pairs(tmp_path / "n.jsonl", made.get, portions, seed=0, unlike=written.keys)
        assert none.num_pairs == {} and not (tmp_path / "n.jsonl").exists()

    def test_a_killed_worker_is_told_and_leaves_nothing(self, tmp_path):
        def die(portion):
            os.kill(os.getpid(), signal.SIGKILL)

        portions = [Portion("single", 0, 1), Portion("single", 1, 2)]
        with pytest.raises(UserError, match="One of 2 worker processes was killed"):
            write_pairs(tmp_path / "p.jsonl", die, portions, seed=0, num_workers=2)
        assert list(tmp_path.iterdir()) == []

    def test_a_failure_leaves_the_old_file(self, tmp_path):
        output = tmp_path / "pairs.jsonl"
        output.write_text("old")
        graph = tmp_path / "graph.jsonl"
        graph.write_text("{}\n")
        with pytest.raises(UserError, match="1 of 1 records"):
            build_pairs([graph], output)
        assert output.read_text() == "old"

    def test_outputs_that_cannot_be_are_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"must end in \.jsonl"):
            build_pairs([SAMPLE_GRAPH], tmp_path / "pairs.csv")
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be written"):
            build_pairs([SAMPLE_GRAPH], tmp_path / "file" / "pairs.jsonl")
        (tmp_path / "folder.jsonl").mkdir()
        with pytest.raises(UserError, match="cannot be written"):
            build_pairs([SAMPLE_GRAPH], tmp_path / "folder.jsonl")

    def test_no_pair_at_all_is_an_error(self, tmp_path):
        graph = tmp_path / "graph.jsonl"
        graph.write_text(json.dumps({"中心词": "甲", "乙": "丙"}), encoding="utf-8")
        with pytest.raises(UserError, match="give no pair of the kinds reverse"):
            build_pairs([graph], tmp_path / "pairs.jsonl", kinds=["reverse"])
        assert not (tmp_path / "pairs.jsonl").exists()

    def test_left_out_records_are_told(self, tmp_path):
        graph = tmp_path / "graph.jsonl"
        graph.write_text('{"中心词": "甲", "乙": "丙"}\n{}\n', encoding="utf-8")
        summary = build_pairs([graph], tmp_path / "pairs.jsonl", max_bad_share=0.5)
        assert [line.source for line in summary.bad] == [f"{graph}:2"]
        first = json.loads((tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[0])
        assert first.keys() == {"context", "target", "provenance"}
        assert f"{graph}:2" in summary.describe()
