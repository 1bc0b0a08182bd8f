"""The forms in which graphs come, values made clean, and what is counted."""

import json
import tracemalloc
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medsft.cli import app
from medsft.data import files
from medsft.errors import UserError
from medsft.knowledge.graph import read_graph
from medsft.knowledge.stats import graph_stats
from medsft.knowledge.templates import load_templates

FACTS = {"相关症状": ("恶心", "畏光"), "所属科室": ("神经内科",)}


def node(number: int, name: str, **properties) -> dict:
    return {"type": "node", "id": str(number), "labels": ["X"], "properties": {"name": name, **properties}}


def edge(start: int, label: str, end: int) -> dict:
    ends = {"start": {"id": str(start), "labels": ["X"]}, "end": {"id": str(end), "labels": ["X"]}}
    return {"type": "relationship", "id": "9", "label": label, **ends}


APOC = [
    node(0, "偏头痛"),
    node(1, "恶心"),
    node(2, "畏光"),
    node(3, "神经内科"),
    edge(0, "HAS_SYMPTOM", 1),
    edge(0, "has_symptom", 2),
    edge(0, "Department", 3),
]


def browser(number: int, name: str) -> dict:
    return {"identity": number, "labels": ["X"], "properties": {"name": name}}


def hop(kind: str, end: int, name: str) -> dict:
    relationship = {"identity": 7, "start": 0, "end": end, "type": kind, "properties": {}}
    return {"start": browser(0, "偏头痛"), "relationship": relationship, "end": browser(end, name)}


def path_row(kind: str, end: int, name: str) -> dict:
    segment = hop(kind, end, name)
    return {"p": {"start": segment["start"], "end": segment["end"], "segments": [segment], "length": 1.0}}


def flat_row(kind: str, end: int, name: str) -> dict:
    segment = hop(kind, end, name)
    return {"n": segment["start"], "r": segment["relationship"], "m": segment["end"]}


EDGES = [("症状", 1, "恶心"), ("症状", 2, "畏光"), ("科室", 3, "神经内科")]
TRIPLES = ["偏头痛,症状,恶心", "偏头痛,症状,畏光", "偏头痛,就诊科室,神经内科"]
GRAPHS = {
    "records.jsonl": json.dumps({"中心词": "偏头痛", "症状": ["恶心", "畏光"], "科室": "神经内科"}),
    "triples.csv": "\n".join(["head,relation,tail", *TRIPLES]),
    "三元组.csv": "\n".join(["头实体,关系,尾实体", *TRIPLES]),
    "apoc lines.json": "\n".join(map(json.dumps, APOC)),
    "apoc lines.jsonl": "\n".join(map(json.dumps, APOC)),
    "apoc array.json": json.dumps(APOC),
    "apoc document.json": json.dumps({"nodes": APOC[:4], "rels": APOC[4:]}),
    "browser paths.json": json.dumps([path_row(*one) for one in EDGES]),
    "browser rows.json": json.dumps([flat_row(*one) for one in EDGES]),
}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", GRAPHS)
def test_every_form_gives_the_same_graph(tmp_path, name):
    graph = read_graph([write(tmp_path, name, GRAPHS[name])], max_bad_share=0.0)
    assert [entity.name for entity in graph.entities] == ["偏头痛"]
    assert dict(graph.entities[0].facts) == FACTS


def test_forms_may_be_given_together(tmp_path):
    graph = read_graph([write(tmp_path, name, text) for name, text in GRAPHS.items()])
    (entity,) = graph.entities
    assert dict(entity.facts) == FACTS
    assert graph.num_repeated == 3 * (len(GRAPHS) - 1)
    assert entity.source.endswith("records.jsonl:1")


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("恶心、呕吐；头晕", ("恶心", "呕吐", "头晕")),
        (["恶心。", " 恶心 ", "恶 心"], ("恶心", "恶 心")),
        (["维生素Ｂ１２", "（轻度）头晕"], ("维生素B12", "（轻度）头晕")),
        (["无", "不详", "恶心", "N/A", "-"], ("恶心",)),
        (["很长" * 200, "恶心"], ("恶心",)),
        (["偏头痛", "恶心"], ("恶心",)),
        (140, ("140",)),
    ],
)
def test_values_are_cleaned(tmp_path, given, values):
    path = write(tmp_path, "g.jsonl", json.dumps({"中心词": "偏头痛", "症状": given}))
    assert dict(read_graph([path]).entities[0].facts) == {"相关症状": values}


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"head": "甲", "relation": "", "tail": "乙"}], "relation must be one text"),
        ([{"head": "", "relation": "症状", "tail": "乙"}], "head must be one text"),
        ([edge(0, "症状", 1)], "unknown node"),
        ([{"type": "node", "id": "1", "labels": [], "properties": {"age": 3}}], "node without a name"),
        ([{"question": "什么？"}], "neither a record, nor a triple"),
        ([{"中心词": "甲", "症状": ["无"]}], "nothing is said about 甲"),
        ([{"中心词": "甲", "症状": []}], "nothing is said about 甲"),
        ([{"中心词": "甲"}], "nothing is said about 甲"),
        ([{"中心词": "长" * 500, "症状": ["乙"]}], "中心词 must be one text"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_line(tmp_path, records, reason):
    lines = [json.dumps(one) for one in [{"中心词": "好", "症状": "乙"}, *records]]
    path = write(tmp_path, "g.jsonl", "\n".join(lines))
    (bad,) = read_graph([path], max_bad_share=1.0).bad
    assert reason in str(bad)
    assert bad.source == f"{path}:2"


def test_one_unnamed_node_spoils_only_itself_and_its_relationships(tmp_path):
    nameless = {"type": "node", "id": "8", "labels": [], "properties": {"age": 3}}
    odd = node(7, "发热", notes={"a": 1})
    nodes, edges = [*APOC[:2], nameless, odd, *APOC[2:4]], [*APOC[4:], edge(0, "并发症", 8)]
    path = write(tmp_path, "g.json", json.dumps({"nodes": nodes, "rels": edges}))
    graph = read_graph([path], max_bad_share=0.9)
    assert [(entity.name, dict(entity.facts)) for entity in graph.entities] == [("偏头痛", FACTS)]
    assert [line.reason for line in graph.bad] == ["node without a name", "wrong type", "unknown node"]
    assert {line.source for line in graph.bad} == {f"{path}:1"} and "id 8" in str(graph.bad[0])


def test_entities_that_name_each_other_are_no_trouble(tmp_path):
    lines = [{"中心词": "甲", "相关疾病": ["乙", "甲"]}, {"中心词": "乙", "相关疾病": ["甲"]}]
    graph = read_graph([write(tmp_path, "g.jsonl", "\n".join(map(json.dumps, lines)))])
    assert [entity.facts for entity in graph.entities] == [(("相关疾病", ("乙",)),), (("相关疾病", ("甲",)),)]
    assert graph_stats(graph, load_templates()).num_links == 2


def test_mixed_encodings_spoil_only_their_own_lines(tmp_path):
    good = json.dumps({"中心词": "甲", "症状": "乙"}, ensure_ascii=False)
    path = write(tmp_path, "g.jsonl", good.encode() + b"\n" + good.encode("gbk") + b"\n")
    graph = read_graph([path], max_bad_share=0.5)
    assert [line.reason for line in graph.bad] == ["not valid UTF-8"]
    utf16 = write(tmp_path, "u.jsonl", good.encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        read_graph([utf16])


def test_an_endless_line_is_one_bad_record_and_never_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 2**20)
    good = json.dumps({"中心词": "甲", "症状": "乙"})
    with (tmp_path / "g.jsonl").open("w") as file:
        file.write('{"中心词": "乙", "症状": "')
        for _ in range(30):
            file.write("x" * 2**20)
        file.write(f'"}}\n{good}\n')
    tracemalloc.start()
    graph = read_graph([tmp_path / "g.jsonl"], max_bad_share=0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(line.reason, line.source[-2:]) for line in graph.bad] == [("line too long", ":1")]
    assert graph.entities[0].source.endswith(":2")
    assert peak < 8 * 2**20


def test_stats_command(tmp_path):
    lines = [
        {"中心词": "甲", "症状": ["恶心", "畏光"], "发作频率": "不定"},
        {"中心词": "乙", "症状": "恶心"},
        {"中心词": "丙", "[/red]": ["[bold]", "[/]"], "症状": "发热"},
        {},
    ]
    path = write(tmp_path, "图 谱.jsonl", "\n".join(map(json.dumps, lines)))
    shown = CliRunner().invoke(
        app, ["data", "graph", "stats", "--graph", str(path), "--max_bad_share", "0.5"]
    )
    assert shown.exit_code == 0
    assert "3 entities, 3 relations, 7 facts" in shown.stdout
    assert "恶心 × 2" in shown.stdout and "general" in shown.stdout and "100%" in shown.stdout
    assert "[/red]" in shown.stdout and "[bold]" in shown.stdout
    assert "1 entities have one relation only: 乙" in shown.stdout
    assert f"left out: {path}:4: no 中心词" in shown.stdout
