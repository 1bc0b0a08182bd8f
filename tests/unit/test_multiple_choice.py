"""Which letter a written answer gives, and how suites are read."""

import json

import pytest

from medsft.errors import UserError
from medsft.evaluation.letter import letter_in, letters_in
from medsft.evaluation.multiple_choice import read_suite, written_letters

OPTIONS = {"A": "高血压", "B": "肺动脉高血压", "C": "糖尿病", "D": "1型"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        # the letter alone, or at the beginning
        ("A", "A"),
        ("b", "B"),
        ("Ｃ．", "C"),
        ("(A)", "A"),
        ("【D】", "D"),
        ("A. 高血压", "A"),
        ("A、高血压，因为C和D都不常见", "A"),
        ("B 肺动脉高血压", "B"),
        ("A、B", None),
        ("A和C都对", None),
        ("AB", None),
        # said to be the answer
        ("答案是C。", "C"),
        ("答案：D", "D"),
        ("**答案**：D", "D"),
        ("因为A不常见，B也不常见，所以正确答案为 C。", "C"),
        ("我认为应选B项", "B"),
        ("本题选择A", "A"),
        ("The answer is D.", "D"),
        ("答案是A，也可以说答案是B", None),
        # ruled out
        ("不是A，答案是B", "B"),
        ("不选A", None),
        ("A错误，B不正确，选C", "C"),
        ("排除A和排除B之后剩下D", "D"),
        # one letter anywhere, within no word
        ("应当考虑C，即糖尿病", "C"),
        ("考虑B或者C", None),
        ("维生素B12缺乏", None),
        ("A patient with fever", None),
        # no letter: the option's own words, the longest of them
        ("应诊断为糖尿病。", "C"),
        ("是肺动脉高血压", "B"),
        ("高血压和糖尿病", None),
        # nothing
        ("", None),
        ("我不知道。", None),
        ("E", None),
    ],
)
def test_the_letter_of_an_answer(answer, letter):
    assert letter_in(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        # the letters alone, or at the beginning
        ("ACD", "ACD"),
        ("dca", "ACD"),
        ("Ａ、Ｃ", "AC"),
        ("A, C, D。因为B不常见", "ACD"),
        ("B", "B"),
        ("ACD抑制剂", None),
        # said to be the answer
        ("答案是A和C。", "AC"),
        ("答案：B C D，A不常见", "BCD"),
        ("答案：B，C，D", "BCD"),
        ("因为A不常见，所以应选BD", "BD"),
        ("ACD均正确", "ACD"),
        ("A正确，B错误，C正确", "AC"),
        ("A和C都对", "AC"),
        ("**答案**：AC", "AC"),
        ("A对肾脏有害，选BC", "BC"),
        # ruled out
        ("不选A，选BC", "BC"),
        ("AB错误，CD正确", "CD"),
        # anywhere alone, within no word
        ("A. 高血压\nC. 糖尿病", "AC"),
        ("应当考虑C，也要考虑D", "CD"),
        ("维生素B12缺乏", None),
        # no letter: the options' own words, the longest of them
        ("高血压和糖尿病", "AC"),
        ("肺动脉高血压", "B"),
        # nothing
        ("", None),
        ("我不知道。", None),
    ],
)
def test_the_letters_of_an_answer(answer, letters):
    assert letters_in(answer, OPTIONS) == letters


CMB = {"exam_type": "医师考试", "exam_class": "执业医师", "exam_subject": "口腔执业医师"}
SUITES = {
    "physician_dev.csv": "id,question,A,B,C,D,answer,explanation\n"
    '0,"首都,北方的?",北京,上海,天津,重庆,A,"1. 是北京。\n2. 别的不是。"\n1,首都?,上海,北京,,,B,\n',
    "CMB-val-merge.json": json.dumps(
        [
            {
                **CMB,
                "question": "首都?",
                "answer": "B",
                "question_type": "单项选择题",
                "option": {"A": "上海", "B": "北京", "C": "天津", "D": "重庆", "E": ""},
                "explanation": "是北京。",
            }
        ]
    ),
    "US_qbank.jsonl": json.dumps(
        {
            "question": "首都?",
            "answer": "北京",
            "options": {"A": "上海", "B": "天津", "C": "北京", "D": "重庆"},
            "meta_info": "step1",
            "answer_idx": "C",
        }
    ),
}
"""As each suite is published."""


@pytest.mark.parametrize("name", SUITES)
def test_each_form_is_read(name, tmp_path):
    (tmp_path / name).write_text(SUITES[name], encoding="utf-8")
    suite = read_suite(tmp_path / name)
    assert not suite.is_general
    for question in suite.questions:
        assert question.options[question.answer] == "北京"
    assert written_letters(["应该是北京"], suite.questions[:1]) == [suite.questions[0].answer]
    assert len(read_suite(tmp_path / name, most=1).questions) == 1


def test_a_folder_is_a_suite(tmp_path):
    """C-Eval comes as a file for each subject."""
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(SUITES["physician_dev.csv"], encoding="utf-8")
    assert len(read_suite(tmp_path, is_general=True).questions) == 4


def test_several_options_may_be_right(tmp_path):
    """The type says so, even where one is right; an answer of several letters says so too."""
    options = {"A": "北京", "B": "上海", "C": "西安"}
    several = {**CMB, "question": "做过首都的?", "question_type": "多项选择题", "option": options}
    questions = [
        {**several, "answer": "CA"},
        {**several, "answer": "A"},
        {"question": "?", "option": options, "answer": "AC"},
    ]
    path = tmp_path / "多 选.json"
    path.write_text(json.dumps(questions), encoding="utf-8")
    asked = read_suite(path).questions
    assert [question.answer for question in asked] == ["AC", "A", "AC"]
    for question in asked:
        assert question.answers() == ["A", "B", "C", "AB", "AC", "BC", "ABC"]
        assert "不止一个" in question.prompt()
    assert written_letters(["A、C", "答案是A。", "北京和上海"], asked) == ["AC", "A", "AB"]


def test_options_that_are_numbers(tmp_path):
    suite = tmp_path / "s.jsonl"
    suite.write_text('{"question": "q", "options": {"A": 0, "B": 1}, "answer_idx": "a"}', encoding="utf-8")
    (question,) = read_suite(suite).questions
    assert (dict(question.options), question.answer) == ({"A": "0", "B": "1"}, "A")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\n", "holds no multiple-choice question"),
        ('{"question": "q", "A": "x", "B": "y", "answer": "E"}', "'E' is none of A, B"),
        ('{"question": "q", "A": "x", "B": "y", "answer": "AE"}', "'AE' is none of A, B"),
        ('{"question": "q", "A": "x", "B": "y", "answer": "AA"}', "'AA' is none of A, B"),
        ('{"question": " ", "A": "x", "B": "y", "answer": "A"}', "empty question"),
        ('{"question": "q", "answer": "A"}', "0 options"),
        ('{"question": "q", "A": "x", "B": "y"}', "no answer.*called val"),
        ('{"question": "q", "options": ["a", "b"], "answer": "A"}', "no object of letters"),
        ('{"question": "q"', "JSON"),
        ("[1]", "not an object"),
    ],
    ids=[
        "empty",
        "wrong letter",
        "one wrong",
        "one twice",
        "no question",
        "no options",
        "no answer",
        "a list",
        "broken",
        "no object",
    ],
)
def test_bad_suites_are_named(content, said, tmp_path):
    bad = tmp_path / "坏 文件.jsonl"
    bad.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        read_suite(bad)
    assert "坏 文件.jsonl" in str(caught.value)
    assert "mend the file" in str(caught.value)


def test_a_suite_out_of_a_chinese_excel(tmp_path):
    """Only the options are not ASCII."""
    suite = tmp_path / "s.csv"
    suite.write_text("question,A,B,answer\n1+1?,二,三,A\n", encoding="gbk")
    with pytest.raises(UserError, match=r"s\.csv:2 .*not valid UTF-8.*iconv -f GB18030"):
        read_suite(suite)
