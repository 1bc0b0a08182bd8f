"""Data files -> examples and bad lines."""

import json
from pathlib import Path

import pytest

from medsft.data.files import BadRecord, expand_files
from medsft.data.records import BadLine, Columns, Example, read_files
from medsft.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def only(records: object, folder: Path, columns: Columns | None = None) -> Example:
    """The example that a file with one record gives."""
    result = read_files([write(folder / "one.jsonl", lines(records))], columns)
    assert not result.bad, result.bad
    (example,) = result.examples
    return example


def fault(record: object, folder: Path, columns: Columns | None = None) -> BadLine:
    """The bad line that a file with one record gives."""
    result = read_files([write(folder / "one.jsonl", lines(record))], columns)
    assert not result.examples
    (bad,) = result.bad
    return bad


@pytest.mark.parametrize(
    ("record", "query", "response", "history"),
    [
        ({"context": "问题：a\n回答: ", "target": "b"}, "问题：a\n回答: ", "b", ()),
        ({"prompt": "a", "response": "b"}, "a", "b", ()),
        ({"prompt": "c", "response": "d", "history": [["a", "b"]]}, "c", "d", (("a", "b"),)),
        ({"prompt": "c", "response": "d", "history": None}, "c", "d", ()),
        ({"prompt": "c", "response": "d", "history": '[["a", "b"]]'}, "c", "d", (("a", "b"),)),
        ({"instruction": "翻译", "input": "hello", "output": "你好"}, "翻译\nhello", "你好", ()),
        ({"instruction": "a", "input": "", "output": "b"}, "a", "b", ()),
        ({"instruction": "a", "output": "b", "history": [["x", "y"]]}, "a", "b", (("x", "y"),)),
        (
            {
                "messages": [
                    {"role": "system", "content": "你是医生"},
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    {"role": "user", "content": "c"},
                    {"role": "assistant", "content": "d"},
                ]
            },
            "c",
            "d",
            (("你是医生\na", "b"),),
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            "a",
            "b",
            (),
        ),
    ],
)
def test_layouts_are_recognised(tmp_path, record, query, response, history):
    example = only(record, tmp_path)
    assert (example.query, example.response, example.history) == (query, response, history)
    assert example.source == f"{tmp_path / 'one.jsonl'}:1"


def test_columns_by_flag(tmp_path):
    record = {"问": "a", "答": "b", "前": [["x", "y"]], "messages": "ignored"}
    example = only(record, tmp_path, Columns("问", "答", "前"))
    assert (example.query, example.response, example.history) == ("a", "b", (("x", "y"),))
    assert only(record, tmp_path, Columns("问", "答")).history == ()


@pytest.mark.parametrize("columns", [{"prompt": "a"}, {"response": "a"}, {"history": "a"}])
def test_half_given_columns_are_refused(columns):
    with pytest.raises(UserError, match="_column"):
        Columns(**columns)


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ([1], "not a JSON object", "a list"),
        ("text", "not a JSON object", "a str"),
        ({"content": "a", "summary": "b"}, "missing columns", "has content, summary"),
        ({"context": "a", "target": None}, "wrong type", "target is null"),
        ({"context": 3, "target": "a"}, "wrong type", "context is a int"),
        ({"prompt": " \n", "response": "a"}, "empty prompt", ""),
        ({"prompt": "a", "response": "\u3000"}, "empty answer", ""),
        ({"prompt": "a", "response": "b", "history": [["x"]]}, "bad history", "pair"),
        ({"prompt": "a", "response": "b", "history": "[oops"}, "bad history", "not JSON"),
        ({"prompt": "a", "response": "b", "history": {"q": "a"}}, "bad history", "a dict"),
        ({"messages": [{"role": "user", "content": "a"}]}, "bad conversation", "last turn"),
        ({"messages": []}, "bad conversation", "last turn"),
        ({"messages": "a"}, "bad conversation", "a str"),
        ({"messages": ["a"]}, "bad conversation", "role and content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "bad conversation", "'tool'"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "bad conversation", "not known"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "bad conversation", "user, assistant"),
        ({"messages": [{"role": "user", "content": None}]}, "wrong type", "content is null"),
        ({"prompt": "\ud800", "response": "a"}, "not valid UTF-8", "character 1"),
    ],
)
def test_bad_records(tmp_path, record, reason, detail):
    path = write(tmp_path / "one.jsonl", json.dumps(record) + "\n")
    result = read_files([path])
    assert not result.examples
    (bad,) = result.bad
    assert bad.reason == reason
    assert detail in bad.detail
    assert str(bad).startswith(f"{path}:1: {reason}")


def test_missing_named_column_says_what_there_is(tmp_path):
    bad = fault({"question": "a", "answer": "b"}, tmp_path, Columns("question", "reply"))
    assert bad.reason == "missing columns"
    assert "no reply" in bad.detail and "question, answer" in bad.detail
    assert fault({"q": "a", "a": "b"}, tmp_path, Columns("q", "a", "h")).reason == "missing columns"


def test_bad_lines_do_not_disturb_their_neighbours(tmp_path):
    good = json.dumps({"prompt": "问", "response": "答"}, ensure_ascii=False).encode()
    content = b"\xef\xbb\xbf" + b"\r\n".join(
        [good, b"", b'{"prompt": "a", ', good.replace("问".encode(), b"\xff\xfe"), b"[" * 100_000, good]
    )
    path = write(tmp_path / "混 合.txt", content)
    result = read_files([path])
    assert [example.source for example in result.examples] == [f"{path}:1", f"{path}:6"]
    assert [(bad.source, bad.reason) for bad in result.bad] == [
        (f"{path}:3", "broken JSON"),
        (f"{path}:4", "not valid UTF-8"),
        (f"{path}:5", "broken JSON"),
    ]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ('[{"prompt": "a", "response": "b"},\n\n {"prompt": "c",\n "response": "d"}]\n', [1, 3]),
        ('\ufeff\n{"version": [1], "data":\n[{"prompt": "a", "response": "b"}, 7], "end": 1}', [3, 3]),
        ('{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n', [1, 2]),
        ('\n{"prompt":\n "a", "response": "b"}', [2]),
        ('{"prompt": oops}\n{"prompt": "c", "response": "d"}\n', [1, 2]),
    ],
    ids=["array", "data", "lines", "object", "broken first line"],
)
def test_json_files(tmp_path, text, at):
    path = write(tmp_path / "a.json", text)
    result = read_files([path])
    found = [record.source for record in (*result.examples, *result.bad)]
    assert sorted(found) == [f"{path}:{line}" for line in at]


@pytest.mark.parametrize(
    "text",
    ['[{"prompt": "a", "response": "b"},\n{"prompt": ]', '[{"prompt": "a", "response": "b"}', "[1 2]", "[,]"],
)
def test_broken_json_array_is_refused_with_its_line(tmp_path, text):
    path = write(tmp_path / "a.json", text)
    with pytest.raises(UserError, match=r"a\.json is broken in the record that starts at line \d"):
        read_files([path])


def test_bad_utf8_in_json_array_is_one_bad_record(tmp_path):
    path = write(
        tmp_path / "a.json", b'[{"prompt": "a", "response": "b"},\n{"prompt": "\xff", "response": "b"}]'
    )
    result = read_files([path])
    assert len(result.examples) == 1
    assert [(bad.source, bad.reason) for bad in result.bad] == [(f"{path}:2", "not valid UTF-8")]


def test_csv(tmp_path):
    text = (
        "prompt,response,history\n"
        '"多行\n问题","a,""b""",\n'
        '\n'
        'q,a,"[[""x"", ""y""]]"\n'
        "only,two\n"
        'q,"a" b,\n'
        "q2,a2,\n"
    )  # fmt: skip
    path = write(tmp_path / "a.CSV", b"\xef\xbb\xbf" + text.encode())
    result = read_files([path])
    assert [(e.query, e.response, e.history) for e in result.examples] == [
        ("多行\n问题", 'a,"b"', ()),
        ("q", "a", (("x", "y"),)),
        ("q2", "a2", ()),
    ]
    assert [example.source for example in result.examples] == [f"{path}:{line}" for line in (2, 5, 8)]
    assert [(bad.source, bad.reason) for bad in result.bad] == [
        (f"{path}:6", "broken CSV"),
        (f"{path}:7", "broken CSV"),
    ]


def test_csv_quote_left_open(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt,response\nq,"open\nx,y\nq2,"b"\nq3,a3\nq4,"a" 4\n')
    result = read_files([path])
    assert [example.source for example in result.examples] == [f"{path}:5"]
    assert [bad.source for bad in result.bad] == [f"{path}:{line}" for line in (2, 3, 4, 6)]
    write(path, 'prompt,response\nq1,a1\nq,"open\nq2,a2\n')
    with pytest.raises(UserError, match=r"a\.csv ends within the record that starts at line 3"):
        read_files([path])


def test_csv_in_another_encoding_is_bad_not_wrong(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,response\n发烧,多喝水\n".encode("gbk"))
    assert [bad.reason for bad in read_files([path]).bad] == ["not valid UTF-8"]


def test_csv_header_with_a_column_twice(tmp_path):
    with pytest.raises(UserError, match="names a column twice"):
        read_files([write(tmp_path / "a.csv", "prompt,response,prompt\na,b,c\n")])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, content) for name in ("a.jsonl", "a.txt", "a.json", "a.csv") for content in ("", "\n \n")),
        ("a.json", "[]"),
        ("a.json", '{"data": []}'),
        ("a.csv", "prompt,response\n"),
    ],
)
def test_files_without_records_are_refused(tmp_path, name, content):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=str(path)):
        read_files([path])


def test_utf16_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"prompt": "a", "response": "b"}'.encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16; save it as UTF-8"):
        read_files([path])


def test_files_folders_and_globs(tmp_path):
    record = lines({"prompt": "a", "response": "b"})
    names = ["b 1.jsonl", "[x].txt", "甲/2.json", "甲/1.jsonl", "甲/注.md", "甲/深/3.csv"]
    one, bracket, two, first, _, deep = (write(tmp_path / name, record) for name in names)
    assert expand_files([one, tmp_path / "甲"]) == (one, first, two)
    assert expand_files([str(tmp_path / "甲" / "*.json*")]) == (first, two)
    assert expand_files([str(tmp_path / "**" / "*.csv")]) == (deep,)
    assert expand_files([bracket]) == (bracket,)


def test_wrong_files_are_named(tmp_path):
    record = lines({"prompt": "a", "response": "b"})
    good = write(tmp_path / "a.jsonl", record)
    odd = write(tmp_path / "odd" / "a.parquet", record)
    for given, message in [
        ([], "No data file is given"),
        ([tmp_path / "no.jsonl"], "no.jsonl does not exist"),
        ([odd], r"ends in '.parquet'; allowed are .jsonl"),
        ([odd.parent], "odd holds no data file"),
        ([tmp_path / "*.csv"], r"No file matches .*\*.csv"),
        ([good, tmp_path], r"a.jsonl is given twice"),
    ]:
        with pytest.raises(UserError, match=message):
            expand_files(given)


def test_real_pairs(shared_dir):
    records = read_files([shared_dir / "data" / "med_chatglm_train.jsonl"])
    assert (len(records.examples), len(records.bad)) == (7622, 0)
    assert records.examples[-1].source.endswith("med_chatglm_train.jsonl:7622")


def test_a_gbk_header_says_how_to_convert(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes("问题,回答\n头痛,休息\n".encode("gbk"))
    with pytest.raises(UserError, match=r"header.*excel\.csv is not UTF-8.*GBK.*iconv"):
        read_files([path])


def test_a_bad_record_says_what_is_wrong():
    assert str(BadRecord("no answer")) == "no answer"
    assert str(BadRecord("no answer", "column a")) == "no answer (column a)"
