"""`medsft report`: runs as one HTML page with curves in SVG, that needs neither network nor script."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from medsft.errors import UserError
from medsft.run_folder import RunFolder

Record = Mapping[str, Any]
Point = tuple[float, float | None]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 520, 240, 62, 26, 10
_COLOURS = ("#1f6fb4", "#d1602b", "#2f8f4e", "#8a4fb0", "#b8860b", "#555555")
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#222}"
    "figure{display:inline-block;margin:.5em}figcaption{font-weight:bold}"
    "svg{background:#fafbfc;border:1px solid #ddd}"
    "table{border-collapse:collapse;margin:1em 0}"
    "th,td{border:1px solid #ccc;padding:.25em .6em;text-align:left;vertical-align:top}"
    "th{background:#f3f5f8}.gap{color:#a33}"
)


@dataclass(frozen=True)
class Curve:
    """A chart: its title with unit, and what it is drawn from in metrics.jsonl."""

    title: str
    kind: str
    field: str


CURVES = (
    Curve("training loss 训练损失 (nats)", "train", "loss"),
    Curve("validation loss 验证损失 (nats)", "validation", "loss"),
    Curve("learning rate 学习率", "train", "learning_rate"),
    Curve("gradient norm 梯度范数", "train", "grad_norm"),
    Curve("throughput 吞吐量 (tokens/s)", "train", "tokens_per_s"),
    Curve("time of a step 每步用时 (s)", "train", "step_time_s"),
    Curve("packing 打包效率", "train", "packing_efficiency"),
    Curve("skipped steps 跳过的步数", "train", "skipped_steps"),
    Curve("wait for a checkpoint 检查点等待 (s)", "checkpoint", "stall_s"),
)


@dataclass(frozen=True)
class Run:
    """What a run's folder tells.

    Attributes:
        name: how the page calls it.
        records: the whole lines of metrics.jsonl, in order.
        num_damaged: lines that cannot be read: the last one while the run writes it, others after damage.
        description: run.json; empty where there is none.
        evaluation: what `medsft eval` left in the run's folder; empty where it has not been there.
        is_done: whether the run finished.
    """

    name: str
    records: tuple[Record, ...]
    num_damaged: int
    description: Record
    evaluation: Record
    is_done: bool

    def points(self, curve: Curve) -> list[Point]:
        """(step, value) of a curve; None where the value is missing or no number."""
        of_kind = [record for record in self.records if record.get("kind") == curve.kind]
        return [
            (record["step"], _number(record.get(curve.field)))
            for record in of_kind
            if isinstance(record.get("step"), int)
        ]


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def read_run(path: Path) -> Run:
    """Reads a run's folder, while it is being written too; raises `UserError` where there is no run."""
    folder = RunFolder(path)
    if not folder.metrics.is_file() and not folder.description.is_file():
        raise UserError(
            f"{path} holds no run: neither run.json nor metrics.jsonl is there. Give the --output_dir of a "
            "training."
        )
    records, num_damaged = [], 0
    lines = folder.metrics.read_bytes().splitlines() if folder.metrics.is_file() else []
    for line in lines:
        record = _object(line)
        if record:
            records.append(record)
        elif line.strip():
            num_damaged += 1
    description, evaluation = (
        _object(file.read_bytes()) if file.is_file() else {}
        for file in (folder.description, path / "evaluation" / "evaluation.json")
    )
    return Run(str(path), tuple(records), num_damaged, description, evaluation, folder.done.exists())


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one where the text is none."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def run_page(runs: Sequence[Run]) -> str:
    """The whole page; runs are drawn into the same charts."""
    legend = " ".join(
        f'<span style="color:{_colour(number)}">■</span> {escape(run.name)}'
        for number, run in enumerate(runs)
    )
    charts = "".join(_chart(curve, [run.points(curve) for run in runs]) for curve in CURVES)
    return (
        '<!doctype html><html lang="zh"><head><meta charset="utf-8"><title>medsft report</title>'
        f"<style>{_STYLE}</style></head><body><h1>Training 训练报告</h1><p>{legend}</p>"
        f"{_summary(runs)}{charts}{''.join(map(_details, runs))}</body></html>\n"
    )


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _chart(curve: Curve, series: Sequence[Sequence[Point]]) -> str:
    """An SVG of one curve for each run; values that are missing leave a gap. Empty where nobody has any."""
    known = [point for points in series for point in points if point[1] is not None]
    if not known:
        return ""
    steps, values = [x for x, _ in known], [y for _, y in known]
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    low, high, last = low - margin, high + margin, max(steps)
    first = min(*steps, last - 1)

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - 12)
        return right, _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)

    parts = []
    for share in (0.05, 0.5, 0.95):
        value = low + share * (high - low)
        _, y = place(first, value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        x, _ = place(step, low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="{anchor}">step {step:g}</text>')
    for number, points in enumerate(series):
        for stretch in _stretches(points):
            places = [place(*point) for point in stretch]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            colour = _colour(number)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            x, y = places[-1]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>')
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    picture = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="11">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(curve.title)}</figcaption>{picture}</figure>"


def _stretches(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """Runs of points without a gap between them."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            stretches[-1].append((x, y))
        elif stretches[-1]:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def _summary(runs: Sequence[Run]) -> str:
    """One row a run: how far it is and its last figures."""
    rows = []
    for run in runs:
        last = next((record for record in reversed(run.records) if record.get("kind") == "train"), {})
        damaged = f'<span class="gap">{run.num_damaged} unreadable</span>' if run.num_damaged else "0"
        saves = sum(record.get("kind") == "checkpoint" for record in run.records)
        cells = [
            escape(run.name),
            "finished 已完成" if run.is_done else "not finished 未完成",
            escape(f"{last.get('step', 0)} / {run.description.get('num_steps', '?')}"),
            _shown(last.get("loss")),
            _shown(last.get("tokens_per_s")),
            str(saves),
            damaged,
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = ("run", "state", "step", "loss", "tokens/s", "checkpoints", "damaged lines")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(rows)}</table>"


def _details(run: Run) -> str:
    """Evaluation, configuration and data of one run."""
    flags = run.description.get("flags")
    facts = {name: value for name, value in run.description.items() if isinstance(value, str | int | float)}
    return (
        f"<h2>{escape(run.name)}</h2>"
        + _table("Evaluation 评测", _flat(run.evaluation))
        + _table("Run 训练", facts)
        + _table("Flags 参数", flags if isinstance(flags, dict) else {})
    )


def _flat(values: Record) -> dict[str, object]:
    """Values of an object and of the objects in it."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def _table(title: str, values: Mapping[str, object]) -> str:
    if not values:
        return ""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{_shown(value)}</td></tr>" for name, value in values.items()
    )
    return f"<details open><summary>{title}</summary><table>{rows}</table></details>"


def _shown(value: object) -> str:
    if value is None or value == []:
        return "—"
    return f"{value:,.5g}" if isinstance(value, float) else escape(str(value))
