"""What the checker rejects, what it mends, and above all what it leaves alone."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medsft.cli import app
from medsft.data.check.duplicates import Duplicates, similarity
from medsft.data.check.lengths import histogram, upper_bound
from medsft.data.check.mending import mend
from medsft.data.check.review import ReviewSettings, review_files
from medsft.data.check.texts import CHECKS, first_fault, not_chinese
from medsft.data.files import expand_files
from medsft.data.records import Example, read_files
from medsft.errors import UserError
from medsft.knowledge.facts import FactCheck
from medsft.knowledge.graph import COMMON_GRAPH, SAMPLE_GRAPH, read_graph
from medsft.knowledge.pairs import make_pairs
from medsft.knowledge.templates import load_templates

ANSWER = "偏头痛应到神经内科就诊。"


def fault(question: str = "偏头痛挂什么科？", answer: str = ANSWER, history=()) -> str | None:
    found = first_fault(Example(question, answer, history, "f:1"), (*CHECKS, not_chinese))
    return found and found.reason


def write(path: Path, *pairs: tuple[str, str]) -> Path:
    lines = [json.dumps({"prompt": question, "response": answer}) for question, answer in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("好的[gMASK]<sop>神经内科。", "control token"),
        ("神经内科。<|im_end|>", "control token"),
        ("神经内科。\n[Round 1]\n问：还有呢？", "control token"),
        ("身份证号11010519491231002X，请保密。", "personal data"),
        ("请拨打13812345678咨询。", "personal data"),
        ("请拨打+86 138-1234-5678咨询。", "personal data"),
        ("电话010-12345678。", "personal data"),
        ("请写信到 li.ming@example.com。", "personal data"),
        ("加微信号：doctor_li2020 咨询。", "personal data"),
        ("作为一个人工智能语言模型，我建议去神经内科。", "boilerplate"),
        ("抱歉，我无法回答这个问题。", "boilerplate"),
        ("好的，以下是关于偏头痛的介绍：神经内科。", "boilerplate"),
        ("应根据知识中的治疗方案治疗。", "speaks of hidden knowledge"),
        ("腹主动脉瘤的检查未在所提供的知识中给出。", "speaks of hidden knowledge"),
        ("{'治疗方案': ['手术', '药物']}", "program text"),
        ("神经内科\ufffd\ufffd。", "broken characters"),
        ("锟斤拷锟斤拷", "broken characters"),
        ("可用的药物有布洛芬、", "breaks off"),
        ("可用的药物（如布洛芬", "breaks off"),
        ("头痛" + "头晕、头晕、" * 8 + "乏力。", "repeats itself"),
        ("啊啊啊啊啊啊啊啊啊啊啊啊", "repeats itself"),
        ("……。", "no content"),
        ("Migraine is treated by a neurologist in most hospitals of the country. " * 2, "not Chinese"),
    ],
)
def test_faults_of_an_answer(answer, reason):
    assert fault(answer=answer) == reason


@pytest.mark.parametrize(
    "answer",
    [
        "是",
        "心肌炎",
        "氧",
        "不会。",
        "人类免疫缺陷病毒[HIV]病",
        "alirocumab、Evolocumab",
        "抽血查Na+、K+（正常值3.5～5.5mmol/L)。",
        "白细胞计数为4.0×10^9/L，血压120/80mmHg，参考编号20231114000123456。",
        "1）休息；2）多饮水。",
        "根据医学知识和病史，应先做心电图。",
        "根据患者的症状，可能是肺炎。",
        "应普及健康知识。",
        "每日3次，每次1片，疗程14天。",
        "体温38.5℃，病程13812天。",
        "发热、咳嗽、咳痰、胸痛、乏力、发热",
    ],
)
def test_good_answers_are_left_alone(answer):
    assert fault(answer=answer) is None
    assert mend(answer) == (answer, ())


def test_an_id_number_has_a_right_check_digit():
    assert fault(answer="编号110105194912310021。") is None


@pytest.mark.parametrize(
    "question",
    [
        "这两种疾病的病因有哪些不同？",
        "两个疾病的治疗方法有何不同？",
        "以上两种疾病的科室？",
        "该疾病的病因是什么？",
        "请问这种病严重吗？",
    ],
)
def test_a_question_must_name_its_subject(question):
    assert fault(question=question) == "question without its subject"
    assert fault(question=f"问题：{question}\n回答: ") == "question without its subject"
    assert fault(question=question, history=(("什么是痛风和肺炎？", "两种疾病。"),)) is None
    assert fault(question=f"痛风和肺炎{question}") is None


def test_a_patient_is_a_subject():
    assert fault(question="这个病人发热三天，该挂什么科？") is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("根据知识，胆囊癌可以手术。", "胆囊癌可以手术。"),
        ("根据所述知识，胆囊癌可以手术。", "胆囊癌可以手术。"),
        ("根据知识中的辅助检查可知，应该进行CT检查。", "应该进行CT检查。"),
        ("['X线检查', 'CT检查']", "X线检查、CT检查。"),
        ("['这个病的治疗方法主要是手术治疗。', '另一个病的治疗方法主要是药物。']",
         "这个病的治疗方法主要是手术治疗；另一个病的治疗方法主要是药物。"),
        ("{'MRI检查'}", "MRI检查。"),
        ("  心电图。\n", "心电图。"),
        ("可进行CT检查；", "可进行CT检查。"),
    ],
)  # fmt: skip
def test_mends(before, after):
    changed, names = mend(before)
    assert changed == after
    assert names


@pytest.mark.parametrize("answer", ["{'a': 1}", "[1, 2]", "[", "['']", "[[]]", "根据知识，"])
def test_what_cannot_be_mended_stays(answer):
    assert mend(answer)[0] == answer


class TestDuplicates:
    LONG = "一位20岁女性出现腹部及腰部的皮损，呈现圆形污褐色斑片，且有粗糙感。请问可能患有什么疾病？"

    def found(self, first: tuple[str, str], second: tuple[str, str], **options) -> str | None:
        seen = Duplicates(0.75, **options)
        seen.add(Example(*first, (), "f:1"))
        found = seen.find(Example(*second, (), "f:2"))
        return found and found.reason

    def test_exact_whatever_the_punctuation(self):
        other = ("问题：偏头痛挂什么科\n回答: ", "偏头痛应到神经内科就诊")
        assert self.found(("偏头痛挂什么科？", ANSWER), other) == "exact duplicate"

    def test_near(self):
        other = (self.LONG.replace("20岁", "30岁"), "可能是圆形糠疹。")
        assert self.found((self.LONG, "可能是圆形糠疹。"), other) == "near duplicate"

    def test_another_answer_is_no_duplicate(self):
        other = (self.LONG.replace("20岁", "30岁"), "应先做真菌镜检，排除花斑癣。")
        assert self.found((self.LONG, "可能是圆形糠疹。"), other) is None

    def test_one_character_may_be_all_the_difference(self):
        first = (
            "请问1型糖尿病患者在日常的工作和生活中通常会出现哪些明显的不适？",
            "1型糖尿病患者常出现多饮、多尿等症状。",
        )
        second = tuple(text.replace("1型", "2型") for text in first)
        assert similarity(*[text.strip("？") for text in (first[0], second[0])]) > 0.75
        assert self.found(first, second) is None
        shorter = ("急性支气管炎发生在什么部位？", "急性支气管炎的发病部位是支气管。")
        assert self.found(shorter, tuple(text.replace("急", "慢") for text in shorter)) is None
        medicines = tuple(text.replace("1型糖尿病", "肺炎") for text in first)
        others = tuple(text.replace("1型糖尿病", "肠炎") for text in first)
        medicines, others = (
            (pair[0], pair[1] + "建议尽早到医院就诊，由医生检查后再作决定。") for pair in (medicines, others)
        )
        assert self.found(medicines, others) == "near duplicate"
        names = {"肺炎", "肠炎"}
        assert self.found(medicines, others, names_in=lambda text: {n for n in names if n in text}) is None


def test_lengths():
    usual = Counter(dict.fromkeys(range(20, 120), 10))
    assert 256 <= upper_bound(usual) < 3000
    assert upper_bound(Counter({50: 1000})) == 256
    bins = histogram(Counter(dict.fromkeys(range(1000), 1) | {10**6: 1}))
    assert sum(count for _, count in bins) == 1001
    assert bins[-1][0].startswith("≥") and 0 < bins[-1][1] <= 20
    assert histogram(Counter()) == []


class TestFacts:
    CHECK = FactCheck(read_graph([COMMON_GRAPH]), load_templates())
    STRICT = FactCheck(read_graph([COMMON_GRAPH]), load_templates(), is_strict=True)

    def found(self, question: str, answer: str, check=None, raw=None) -> str | None:
        found = (check or self.CHECK).fault(Example(question, answer, (), "f:1"), raw)
        return found and found.reason

    def test_contradictions(self):
        assert self.found("偏头痛应该看哪个科室？", "应到眼科就诊。") == "contradicts the graph"
        assert self.found("偏头痛会出现畏光吗？", "不会。") == "contradicts the graph"
        assert self.found("痛风会出现畏光吗？", "不会。") is None

    def test_what_the_graph_may_lack_is_no_contradiction(self):
        assert self.found("偏头痛应该看哪个科室？", "应到神经内科或疼痛科就诊。") is None
        assert self.found("偏头痛有哪些症状？", "可有头晕。") is None
        assert self.found("老年偏头痛伴中耳炎患者应该看哪个科室？", "应到眼科就诊。") is None

    def test_strict_form_and_provenance(self):
        assert self.found("偏头痛有哪些症状？", "恶心、咳嗽。", self.STRICT) == "leaves the graph's facts"
        assert self.found("偏头痛有哪些症状？", "恶心、畏光。", self.STRICT) is None
        raw = {"provenance": {"entities": ["偏头痛"], "relations": ["所属科室"]}}
        assert self.found("我头疼得厉害，找谁看？", "应到眼科就诊。", raw=raw) == "contradicts the graph"


class TestStrayFacts:
    """What a language model may not add."""

    CHECK = TestFacts.CHECK

    def found(self, answer: str, question: str = "偏头痛要紧吗？") -> str | None:
        found = self.CHECK.stray("偏头痛", question, answer)
        return found and found.detail

    @pytest.mark.parametrize(
        "answer",
        ["可用甲氨蝶呤。", "常见双下肢紫癜。", "可做急诊冠状动脉造影和皮肤活检。", "可见面部蝶形红斑。"],
    )
    def test_what_the_graph_does_not_give_it(self, answer):
        assert self.found(answer)

    @pytest.mark.parametrize(
        "answer",
        [
            "一般不会出现双下肢紫癜。",
            "出现发热或咳嗽应到医院就诊。",
            "如果出现双下肢紫癜，应就诊。",
            "可有畏光、恶心，应到神经内科就诊。",
        ],
    )
    def test_denials_general_advice_and_its_own_facts(self, answer):
        assert self.found(answer) is None

    def test_what_the_question_names_may_be_answered(self):
        assert self.found("双下肢紫癜应请医生检查。", "偏头痛患者有双下肢紫癜怎么办？") is None

    @pytest.mark.parametrize("file", [COMMON_GRAPH, SAMPLE_GRAPH])
    def test_no_pair_of_the_templates_is_stray(self, file):
        graph, templates = read_graph([file]), load_templates()
        check, num_pairs = FactCheck(graph, templates), 0
        for pair in make_pairs(graph, templates, seed=0):
            if len(pair.entities) == 1:
                num_pairs += 1
                assert check.stray(pair.entities[0], pair.question, pair.answer) is None, pair
        assert num_pairs > 500


class TestReview:
    def run(self, tmp_path, *pairs, **settings):
        source = write(tmp_path / "in.jsonl", *pairs)
        kept, rejects = tmp_path / "kept.jsonl", tmp_path / "r.rejects"
        review = review_files([source], kept, rejects, ReviewSettings(**settings))
        return review, kept, [json.loads(line) for line in rejects.read_text("utf-8").splitlines()]

    def test_each_reject_has_its_place_reason_and_record(self, tmp_path):
        review, kept, rejects = self.run(tmp_path, ("甲？", "乙。"), ("丙？", "<sop>丁。"), ("甲", "乙"))
        assert [(one["source"][-2:], one["reason"]) for one in rejects] == [
            (":2", "control token"),
            (":3", "exact duplicate"),
        ]
        assert rejects[0]["record"] == {"prompt": "丙？", "response": "<sop>丁。"}
        assert kept.read_text("utf-8").splitlines() == [
            json.dumps({"prompt": "甲？", "response": "乙。"}, ensure_ascii=False)
        ]
        assert (review.num_read, review.num_kept) == (3, 1)

    def test_mended_answers_keep_layout_and_provenance(self, tmp_path):
        line = {"context": "问题：甲？\n回答: ", "target": "根据知识，乙。", "provenance": {"seed": 1}}
        (tmp_path / "a.jsonl").write_text(json.dumps(line), encoding="utf-8")
        review_files([tmp_path / "a.jsonl"], tmp_path / "k.jsonl", tmp_path / "r.rejects", ReviewSettings())
        assert json.loads((tmp_path / "k.jsonl").read_text("utf-8")) == {**line, "target": "乙。"}

    @pytest.mark.parametrize(
        "record",
        [
            {"id": 7, "kind": "general", "prompt": "甲？", "response": "{}", "history": [], "category": "x"},
            {"instruction": "甲？", "input": "", "output": "{}", "id": 7},
            {"id": 7, "messages": [{"role": "user", "content": "甲？"},
                                   {"role": "assistant", "content": "{}", "rating": 3}]},
            {"conversations": [{"from": "human", "value": "甲？"}, {"from": "gpt", "value": "{}"}], "id": 7},
        ],
        ids=["chatglm", "alpaca", "messages", "conversations"],
    )  # fmt: skip
    def test_mended_records_keep_every_other_field(self, tmp_path, record):
        line = json.dumps(record, ensure_ascii=False)
        (tmp_path / "a.jsonl").write_text(line.replace("{}", "根据知识，乙。"), encoding="utf-8")
        review_files([tmp_path / "a.jsonl"], tmp_path / "k.jsonl", tmp_path / "r.rejects", ReviewSettings())
        assert (tmp_path / "k.jsonl").read_text("utf-8") == line.replace("{}", "乙。") + "\n"

    def test_rejects_are_never_read_with_the_data(self, tmp_path):
        self.run(tmp_path, ("甲？", "乙。"), ("丙？", "<sop>丁。"))
        names = [path.name for path in expand_files([tmp_path])]
        assert names == ["in.jsonl", "kept.jsonl"]
        assert [path.name for path in expand_files([tmp_path / "*.jsonl"])] == names
        assert (tmp_path / "r.rejects").exists()

    def test_leakage(self, tmp_path):
        held_out = write(tmp_path / "test.jsonl", (TestDuplicates.LONG, "可能是圆形糠疹。"))
        asked = (TestDuplicates.LONG.replace("一位", "一名"), "应到皮肤科就诊，请医生检查。")
        review, _, rejects = self.run(tmp_path, ("甲？", "乙。"), asked, held_out=(held_out,))
        assert review.rejected == {"stands in held-out data": 1}
        assert "test.jsonl:1" in rejects[0]["detail"]

    def test_unreadable_lines_are_rejects(self, tmp_path):
        source = write(tmp_path / "in.jsonl", ("甲？", "乙。"))
        source.write_bytes(source.read_bytes() + b"{broken\n" + '{"a": "中"}\n'.encode("gbk"))
        review = review_files([source], tmp_path / "k.jsonl", tmp_path / "r.rejects", ReviewSettings())
        assert review.rejected == {"unreadable": 2}

    def test_an_endless_line_is_a_reject(self, tmp_path, monkeypatch):
        monkeypatch.setattr("medsft.data.files.MAX_LINE_BYTES", 2**10)
        review, _, rejects = self.run(tmp_path, ("甲？", "乙。"), ("丙？", "丁" * 2**10), ("戊？", "己。"))
        assert (review.num_kept, review.rejected) == (2, {"unreadable": 1})
        assert rejects[0]["detail"] == "line too long: more than 1,024 bytes" and rejects[0]["record"] is None

    def test_the_report_holds_no_endless_text(self, tmp_path):
        review, _, rejects = self.run(tmp_path, ("甲？", "乙。"), ("丙？", "丁" * 10_000))
        (shown,) = review.shown["repeats itself"]
        assert len(shown.answer) == 2000 and len(rejects[0]["record"]["response"]) == 10_000

    def test_lone_surrogates_are_written_as_they_were_read(self, tmp_path):
        lines = [
            r'{"prompt": "甲？", "response": "乙。", "note": "\ud800"}',
            r'{"prompt": "丙？", "response": "丁\ud800。"}',
            r'{"prompt": "戊？", "response": "己。"}',
        ]
        source = tmp_path / "in.jsonl"
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        arguments = ["data", "check", "--file", str(source), "--output", str(tmp_path / "k.jsonl")]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
        kept = [json.loads(line) for line in (tmp_path / "k.jsonl").read_text("utf-8").splitlines()]
        rejects = (tmp_path / "k.rejects").read_text("utf-8").splitlines()
        assert kept == [json.loads(lines[0]), json.loads(lines[2])]
        assert [json.loads(line)["record"] for line in rejects] == [json.loads(lines[1])]
        assert "戊" in (tmp_path / "k.jsonl").read_text("utf-8")

    def test_the_graph_is_not_replaced(self, tmp_path):
        source = write(tmp_path / "in.jsonl", ("甲？", "乙。"))
        graph = tmp_path / "graph.jsonl"
        graph.write_bytes(COMMON_GRAPH.read_bytes())
        arguments = ["data", "check", "--file", str(source), "--output", str(graph), "--graph", str(graph)]
        found = CliRunner().invoke(app, arguments)
        assert isinstance(found.exception, UserError) and "one of the inputs" in str(found.exception)
        assert graph.read_bytes() == COMMON_GRAPH.read_bytes()

    def test_length_outliers(self, tmp_path):
        usual = [(f"{number}的症状是什么呢？", f"{number}的症状是头痛和发热。") for number in range(50)]
        review, _, rejects = self.run(tmp_path, *usual, ("甲？", "".join(map(str, range(1000)))))
        assert review.rejected == {"length outlier": 1}
        assert "answer of 2,890 characters" in rejects[0]["detail"]

    def test_nothing_half_written(self, tmp_path):
        source = write(tmp_path / "in.jsonl", ("甲？", "<sop>"))
        (tmp_path / "k.jsonl").write_text("old", encoding="utf-8")
        with pytest.raises(UserError, match="Nothing would be kept"):
            review_files([source], tmp_path / "k.jsonl", tmp_path / "r.rejects", ReviewSettings())
        assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "k.jsonl"}
        assert (tmp_path / "k.jsonl").read_text("utf-8") == "old"

    def test_a_full_disk(self, tmp_path):
        from medsft.data import writing

        def full(path):
            raise OSError(28, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("medsft.files.sync", full)
            with (
                pytest.raises(UserError, match="No space left on device"),
                writing.writing_lines(tmp_path / "a.jsonl") as write_one,
            ):
                write_one({"a": 1})
        assert list(tmp_path.iterdir()) == []


def test_command_and_report(tmp_path):
    source = write(
        tmp_path / "数 据.jsonl",
        ("偏头痛应该看哪个科室？", "应到眼科就诊。"),
        ("<b>甲</b>？", "根据知识，乙。"),
        ("丙？", "13812345678 | <script>"),
    )
    out = tmp_path / "out" / "kept.jsonl"
    arguments = ["data", "check", "--file", str(source), "--output", str(out), "--graph", str(COMMON_GRAPH)]
    done = CliRunner().invoke(app, [*arguments, "--max_reject_share", "0.5"])
    assert done.exit_code == 1
    assert "3 records: 1 kept; 1 mends, 2 rejected" in done.stdout
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "kept.jsonl", "kept.rejects", "kept.report.html", "kept.report.md",
    ]  # fmt: skip
    page = (out.parent / "kept.report.html").read_text("utf-8")
    assert "&lt;b&gt;甲&lt;/b&gt;" in page and "<script>" not in page and "contradicts the graph" in page
    markdown = (out.parent / "kept.report.md").read_text("utf-8")
    assert "| personal data | 1 | 33.33% |" in markdown and "words of a prompt dropped" in markdown
    assert isinstance(CliRunner().invoke(app, [*arguments, "--language", "fr"]).exception, UserError)
    assert isinstance(CliRunner().invoke(app, [*arguments, "--near", "0.2"]).exception, UserError)


def test_what_templates_make_is_clean(tmp_path):
    from medsft.knowledge.build import build_pairs

    build_pairs([SAMPLE_GRAPH], tmp_path / "p.jsonl", seed=0)
    facts = FactCheck(read_graph([SAMPLE_GRAPH]), load_templates(), is_strict=True)
    settings = ReviewSettings(further=(facts.fault,), names_in=facts.names.found_in)
    review = review_files([tmp_path / "p.jsonl"], tmp_path / "k.jsonl", tmp_path / "r.rejects", settings)
    assert set(review.rejected) <= {"near duplicate"}
    assert review.rejected.total() < 0.002 * review.num_read
    assert len(read_files([tmp_path / "k.jsonl"]).examples) == review.num_kept


def test_the_published_pairs(shared_dir, tmp_path):
    """What it rejects there was read by a person; the shares shall not drift."""
    source = shared_dir / "data" / "med_chatglm_train.jsonl"
    settings = ReviewSettings(near_threshold=None)
    review = review_files([source], tmp_path / "k.jsonl", tmp_path / "r.rejects", settings)
    assert review.num_read == 7622
    assert set(review.rejected) == {
        "question without its subject", "speaks of hidden knowledge", "program text",
    }  # fmt: skip
    assert 100 <= review.rejected.total() <= 125
    assert review.mended["words of a prompt dropped"] > 80
