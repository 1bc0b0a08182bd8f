"""Reading knowledge graphs."""

import json
from pathlib import Path

import pytest

from medsft.errors import UserError
from medsft.knowledge.graph import SAMPLE_GRAPH, Entity, read_graph


def write(folder: Path, *records: object, name: str = "graph.jsonl") -> Path:
    path = folder / name
    lines = [
        one if isinstance(one, bytes) else json.dumps(one, ensure_ascii=False).encode() for one in records
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_entities_facts_and_sources(tmp_path):
    path = write(
        tmp_path,
        {
            "中心词": "偏头痛",
            "症状": ["恶心", "畏光"],
            "科室": "神经内科",
            "并发症": [],
            "备注": None,
        },
        b"",
        {"症状": ["心悸"], "中心词": ["高血压"], "收缩压": 140},
    )
    graph = read_graph([path])
    assert graph.entities == (
        Entity("偏头痛", (("相关症状", ("恶心", "畏光")), ("所属科室", ("神经内科",))), f"{path}:1"),
        Entity("高血压", (("相关症状", ("心悸",)), ("收缩压", ("140",))), f"{path}:3"),
    )
    assert (graph.num_facts, graph.num_merged, graph.bad) == (5, 0, ())


def test_values_are_cleaned_and_distinct(tmp_path):
    path = write(tmp_path, {"中心词": " 偏 \n 头痛 ", "症状": ["恶心", " 恶心\t", "", "  "]})
    assert read_graph([path]).entities[0].name == "偏 头痛"
    assert read_graph([path]).entities[0].facts == (("相关症状", ("恶心",)),)


def test_records_of_one_name_are_merged_over_files(tmp_path):
    first = write(tmp_path, {"中心词": "痛风", "症状": ["关节红肿"]}, name="1.jsonl")
    second = write(
        tmp_path, {"中心词": "痛风", "药物": ["秋水仙碱"], "症状": ["关节疼痛", "关节红肿"]}, name="2.jsonl"
    )
    graph = read_graph([first, second])
    assert graph.entities == (
        Entity("痛风", (("相关症状", ("关节红肿", "关节疼痛")), ("药物治疗", ("秋水仙碱",))), f"{first}:1"),
    )
    assert graph.num_merged == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"broken": ', "broken JSON"),
        (b'{"\xff": 1}', "not valid UTF-8"),
        (b'["a list"]', "not a JSON object"),
        ({"相关症状": ["恶心"]}, "no 中心词"),
        ({"中心词": "", "相关症状": ["恶心"]}, "中心词 must be one text"),
        ({"中心词": ["甲", "乙"], "相关症状": ["恶心"]}, "中心词 must be one text"),
        ({"中心词": "偏头痛"}, "no facts"),
        ({"中心词": "偏头痛", "相关症状": []}, "no facts"),
        ({"中心词": "偏头痛", "相关症状": [["恶心"]]}, "相关症状 holds a list"),
        ({"中心词": "偏头痛", "相关症状": {"a": 1}}, "相关症状 holds a dict"),
        ({"中心词": "偏头痛", "相关症状": [True]}, "相关症状 holds a bool"),
        (b'{"\\u4e2d\\u5fc3\\u8bcd": "\\ud800", "a": "b"}', "not valid UTF-8"),
    ],
)
def test_a_bad_line_is_told_with_file_and_line(tmp_path, line, said):
    good = {"中心词": "痛风", "症状": ["关节红肿"]}
    path = write(tmp_path, good, line)
    graph = read_graph([path], max_bad_share=0.5)
    assert [entity.name for entity in graph.entities] == ["痛风"]
    (bad,) = graph.bad
    assert bad.source == f"{path}:2"
    assert said in str(bad)
    with pytest.raises(UserError, match="1 of 2 records"):
        read_graph([path], max_bad_share=0.49)


def test_nothing_usable_is_an_error_whatever_the_share(tmp_path):
    with pytest.raises(UserError, match="1 of 1 records"):
        read_graph([write(tmp_path, {"中心词": "偏头痛"})], max_bad_share=1.0)
    with pytest.raises(UserError, match="no record"):
        read_graph([write(tmp_path, b"", b"")])
    with pytest.raises(UserError, match="does not exist"):
        read_graph([tmp_path / "none.jsonl"])


def test_the_sample_graph():
    graph = read_graph([SAMPLE_GRAPH], max_bad_share=0.0)
    assert len(graph.entities) >= 30
    assert graph.num_merged == 0
    for entity in graph.entities:
        relations = dict(entity.facts)
        assert {"所属科室", "发病部位"} <= relations.keys(), entity.name
        assert len(relations) >= 4, entity.name
