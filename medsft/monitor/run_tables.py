"""The tables of a report: what a run learned from, what it answered, how it was judged, how it was set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsft.monitor.run import Record, Run, is_number
from medsft.pages.page import shown


@dataclass(frozen=True)
class Table:
    """A table: cells as they are shown, the first row being the head; or pairs of name and value."""

    title: str
    rows: Sequence[Sequence[str]]
    has_head: bool = False


_DATA = {
    "num_examples": "examples 样本",
    "num_bad": "left out 弃用",
    "num_tokens": "tokens",
    "num_targets": "supervised tokens 监督 token",
    "num_sources_cut": "prompts cut 截短的问题",
    "num_targets_cut": "answers cut 截短的回答",
}
_SHARES = {
    "num_targets": "num_tokens",
    "num_sources_cut": "num_examples",
    "num_targets_cut": "num_examples",
}
"""Count of the data -> the count that it is a part of."""
_SETTINGS = {"flags": "Flags 参数", "deepspeed": "DeepSpeed", "versions": "Versions 版本"}


def told_tables(run: Run) -> list[Table]:
    """Statistics of the data, and samples."""
    return [table for table in (_data_table(run), _samples_table(run)) if table is not None]


def _data_table(run: Run) -> Table | None:
    """Training and validation data side by side; None where the run says nothing of them."""
    found = {
        title: facts
        for title, name in (("training 训练", "data"), ("validation 验证", "validation_data"))
        if isinstance(facts := run.description.get(name), dict)
    }
    if not found:
        return None
    rows = [["", *found]]
    for name, label in _DATA.items():
        rows.append([label, *(_count(facts, name) for facts in found.values())])
    rows.append(["reasons 弃用原因", *(_pairs(facts.get("bad_by_reason")) for facts in found.values())])
    lengths = (_pairs(facts.get("length_quantiles")) for facts in found.values())
    rows.append(["length in tokens 长度", *lengths])
    rows.append(["prompt template 问题模板", *(shown(facts.get("template")) for facts in found.values())])
    packing = [value for _, value in run.points("train", "packing_efficiency") if value is not None]
    if packing:
        mean = f"{sum(packing) / len(packing):.1%}"
        rows.append(["packed, useful share 打包效率", mean, *["—"] * (len(found) - 1)])
    return Table("Data 数据", rows, has_head=True)


def _count(facts: Record, name: str) -> str:
    """A count, with its share where it is a part of something."""
    count, whole = facts.get(name), facts.get(_SHARES.get(name, ""))
    if is_number(count) and is_number(whole) and whole > 0:
        return f"{shown(count)} ({count / whole:.1%})"
    return shown(count)


def _pairs(values: object) -> str:
    """Names and values of an object on one line."""
    if not isinstance(values, dict):
        return shown(values)
    return shown([f"{name} {shown(value)}" for name, value in values.items()])


def _samples_table(run: Run) -> Table | None:
    """What the model answered the first and the last time that it was asked."""
    lines = [line for line in run.of_kind("samples") if isinstance(line.get("samples"), list)]
    if not lines:
        return None
    asked = lines[:1] + lines[1:][-1:]
    answers: dict[tuple[str, str], list[str]] = {}
    for number, line in enumerate(asked):
        for sample in line["samples"]:
            if isinstance(sample, dict):  # by its words: a run may go on with other data, and other questions
                question = shown(sample.get("question")), shown(sample.get("expected"))
                answers.setdefault(question, ["—"] * len(asked))[number] = shown(sample.get("answer"))
    rows = [["question 问题", "expected 标准答案", *(f"step {line['step']:g}" for line in asked)]]
    rows += [[*question, *found] for question, found in answers.items()]
    return Table("Samples 回答示例", rows, has_head=True)


def evaluation_tables(runs: Sequence[Run]) -> list[Table]:
    """For each file of evaluations what all runs have in it, side by side."""
    tables = []
    for file in sorted({name for run in runs for name in run.evaluations}):
        of_run = {run.name: run.evaluations[file] for run in runs if file in run.evaluations}
        flat = {name: dict(_flat(found)) for name, found in of_run.items()}
        measures = dict.fromkeys(
            measure
            for values in flat.values()
            for measure, value in values.items()
            if not _is_list_of_objects(value)
        )
        rows = [["measure 指标", *flat]]
        rows += [[name, *(shown(values.get(name)) for values in flat.values())] for name in measures]
        tables.append(Table(file, rows, has_head=True))
        for name, found in of_run.items():
            tables += [table for table in _nested(f"{file}, {name}", found) if table.has_head]
    return tables


def setting_tables(run: Run) -> list[Table]:
    """Everything else that run.json says."""
    facts = {
        name: value for name, value in run.description.items() if name not in ("data", "validation_data")
    }
    parts = {title: facts.pop(name, None) for name, title in _SETTINGS.items()}
    tables = _nested("Run 训练", facts)
    for title, part in parts.items():
        tables += _nested(title, part) if isinstance(part, Mapping) else []
    return tables


def _nested(title: str, values: Record) -> list[Table]:
    """An object as tables: plain values as pairs, a list of objects as a table of its own."""
    plain = [[name, shown(value)] for name, value in _flat(values) if not _is_list_of_objects(value)]
    tables = [Table(title, plain)] if plain else []
    for name, value in _flat(values):
        if _is_list_of_objects(value):
            names = list(dict.fromkeys(key for item in value for key in item))
            rows = [names, *([shown(item.get(key)) for key in names] for item in value)]
            tables.append(Table(f"{title}: {name}", rows, has_head=True))
    return tables


def _flat(values: Record, before: str = "") -> list[tuple[str, object]]:
    """Name and value, those of objects inside under `outer.inner`."""
    flat: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat += _flat(value, f"{before}{name}.")
        else:
            flat.append((f"{before}{name}", value))
    return flat


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
