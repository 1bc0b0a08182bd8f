"""Layouts into one another, and mixes."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medsft.cli import app
from medsft.data.convert import WRITERS, convert_files
from medsft.data.mix import Source, mix_files, shares_of
from medsft.data.records import read_files
from medsft.errors import UserError

PAIRS = [("头痛挂什么科？", "神经内科。"), ("带\n换行和“引号”的问题", "  回答前后有空格 ")]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def contents(path: Path) -> list[tuple]:
    from medsft.data.check.texts import bare_question

    return [(bare_question(one.query), one.response, one.history) for one in read_files([path]).examples]


@pytest.mark.parametrize("first", WRITERS)
@pytest.mark.parametrize("second", WRITERS)
def test_there_and_back(tmp_path, first, second):
    source = write(tmp_path / "0.jsonl", [{"prompt": one, "response": other} for one, other in PAIRS])
    for number, layout in enumerate((first, second, first)):
        convert_files([tmp_path / f"{number}.jsonl"], tmp_path / f"{number + 1}.jsonl", layout)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()
    assert contents(tmp_path / "3.jsonl") == contents(source)


@pytest.mark.parametrize("layout", sorted(set(WRITERS) - {"med-chatglm"}))
def test_history_comes_along(tmp_path, layout):
    record = {"prompt": "三天。", "response": "看神经内科。", "history": [["头痛。", "痛了多久？"]]}
    source = write(tmp_path / "a.jsonl", [record])
    convert_files([source], tmp_path / "b.jsonl", layout)
    assert contents(tmp_path / "b.jsonl") == [("三天。", "看神经内科。", (("头痛。", "痛了多久？"),))]


def test_what_has_no_place_is_counted(tmp_path):
    records = [
        {"prompt": "三天。", "response": "好。", "history": [["a", "b"]]},
        {"prompt": "甲", "response": "乙"},
    ]
    source = write(tmp_path / "a.jsonl", [*records, {"x": 1}])
    done = convert_files([source], tmp_path / "b.jsonl", "med-chatglm")
    assert done.num_written == 1
    assert done.left_out == {"bad history": 1, "missing columns": 1}
    assert "a.jsonl:1: bad history" in done.describe()
    with pytest.raises(UserError, match="can be written"):
        convert_files([write(tmp_path / "c.jsonl", records[:1])], tmp_path / "d.jsonl", "med-chatglm")
    assert not (tmp_path / "d.jsonl").exists()


def test_convert_command(tmp_path):
    (tmp_path / "列.csv").write_text("问,答\n头痛？,神经内科。\n", encoding="utf-8")
    out = tmp_path / "o.jsonl"
    arguments = ["data", "convert", "--file", str(tmp_path / "列.csv"), "--output", str(out)]
    columns = ["--prompt_column", "问", "--response_column", "答"]
    assert CliRunner().invoke(app, [*arguments, "--to", "med-chatglm", *columns]).exit_code == 0
    assert json.loads(out.read_text("utf-8")) == {"context": "问题：头痛？\n回答: ", "target": "神经内科。"}
    error = CliRunner().invoke(app, [*arguments, "--to", "latex"]).exception
    assert isinstance(error, UserError) and "'latex'" in str(error)


@pytest.mark.parametrize(
    ("counts", "weights", "total", "wanted"),
    [
        ([80, 1000], [0.8, 0.2], None, [80, 20]),
        ([80, 1000], [4, 1], 10, [8, 2]),
        ([10, 10, 10], [1, 1, 1], 10, [4, 3, 3]),
        ([5, 5], [0.999, 0.001], 3, [3, 0]),
    ],
)
def test_shares(counts, weights, total, wanted):
    assert shares_of(counts, weights, total) == wanted


class TestMix:
    @pytest.fixture
    def sources(self, tmp_path) -> list[Source]:
        made = []
        for name, count, weight in (("med.jsonl", 90, 0.9), ("general.jsonl", 300, 0.1)):
            records = [{"prompt": f"{name} {number}", "response": "好。"} for number in range(count)]
            made.append(Source(str(write(tmp_path / name, records)), weight))
        return made

    def test_shares_and_order(self, tmp_path, sources):
        mix_files(sources, tmp_path / "m.jsonl")
        questions = [example.query for example in read_files([tmp_path / "m.jsonl"]).examples]
        assert Counter(question.split()[0] for question in questions) == {
            "med.jsonl": 90,
            "general.jsonl": 10,
        }
        assert len(set(questions)) == 100
        for start in range(0, 100, 20):
            assert sum("general" in question for question in questions[start : start + 20]) == 2

    def test_the_seed_decides(self, tmp_path, sources):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            mix_files(sources, tmp_path / f"{name}.jsonl", seed=seed)
        a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
        assert a == b != c

    def test_too_few_are_refused_or_repeated(self, tmp_path, sources):
        with pytest.raises(UserError, match=r"med\.jsonl has 90 examples, and its share is 180"):
            mix_files(sources, tmp_path / "m.jsonl", total=200)
        assert not (tmp_path / "m.jsonl").exists()
        mix_files(sources, tmp_path / "m.jsonl", total=200, repeats=True)
        seen = Counter(example.query for example in read_files([tmp_path / "m.jsonl"]).examples)
        assert {count for question, count in seen.items() if "med" in question} == {2}

    def test_command(self, tmp_path, sources):
        first, second = (f"{source.name}={source.weight}" for source in sources)
        out = str(tmp_path / "m.jsonl")
        done = CliRunner().invoke(
            app, ["data", "mix", "--source", first, "--source", second, "--output", out]
        )
        assert done.exit_code == 0
        assert "100 examples: 90 (90.0%) from" in done.stdout
        for wrong in ("a.jsonl=x", "a.jsonl=0", "=1"):
            error = CliRunner().invoke(app, ["data", "mix", "--source", wrong, "--output", out]).exception
            assert isinstance(error, UserError) and wrong in str(error)
        assert isinstance(
            CliRunner().invoke(app, ["data", "mix", "--source", first, "--output", out]).exception, UserError
        )
