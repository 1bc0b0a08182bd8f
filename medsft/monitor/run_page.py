"""`medsft report`: runs as one HTML page with curves in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.monitor.console import duration
from medsft.monitor.run import Run, is_number
from medsft.monitor.run_tables import evaluation_tables, setting_tables, told_tables
from medsft.pages.line_chart import Chart, Series, colour_of, line_chart
from medsft.pages.page import render, shown

_PAGE = Path(__file__).with_name("run_page.html.jinja")


@dataclass(frozen=True)
class Curve:
    """A chart: its title with unit, and what it is drawn from in metrics.jsonl."""

    title: str
    kind: str
    field: str


GROUPS: Mapping[str, Sequence[Curve]] = {
    "Learning 学习": (
        Curve("training loss 训练损失 (nats)", "train", "loss"),
        Curve("validation loss 验证损失 (nats)", "validation", "loss"),
        Curve("learning rate 学习率", "train", "learning_rate"),
        Curve("gradient norm 梯度范数", "train", "grad_norm"),
        Curve("skipped steps 跳过的步数", "train", "skipped_steps"),
        Curve("loss scale 损失缩放", "train", "loss_scale"),
    ),
    "Speed 速度": (
        Curve("throughput 吞吐量 (tokens/s)", "train", "tokens_per_s"),
        Curve("supervised tokens 监督 token (tokens/s)", "train", "supervised_tokens_per_s"),
        Curve("examples 样本 (1/s)", "train", "examples_per_s"),
        Curve("MFU 算力利用率", "train", "mfu"),
        Curve("arithmetic of a device 单卡有效算力 (TFLOP/s)", "train", "tflops_per_device"),
        Curve("packing 打包效率", "train", "packing_efficiency"),
    ),
    "Time of a step 每步用时": (
        Curve("whole step 整步 (s)", "train", "step_time_s"),
        Curve("forward 前向 (s)", "train", "forward_s"),
        Curve("backward 反向 (s)", "train", "backward_s"),
        Curve("optimiser 优化器 (s)", "train", "optimizer_s"),
        Curve("wait for data 等数据 (s)", "train", "data_wait_s"),
        Curve("own work of the slowest rank 最慢进程 (s)", "train", "busy_max_s"),
    ),
    "Memory and checkpoints 内存与检查点": (
        Curve("GPU memory, peak 显存峰值 (GB)", "train", "gpu_peak_gb"),
        Curve("GPU memory, reserved 显存预留 (GB)", "train", "gpu_reserved_gb"),
        Curve("host memory of a rank 单进程内存 (GB)", "train", "host_memory_gb"),
        Curve("wait for a checkpoint 检查点等待 (s)", "checkpoint", "stall_s"),
        Curve("writing a checkpoint 检查点写盘 (s)", "checkpoint", "write_s"),
    ),
}

_SUMMARY = {
    "loss 损失": "loss",
    "tokens/s": "tokens_per_s",
    "MFU": "mfu",
    "packing 打包": "packing_efficiency",
    "host memory 内存 (GB)": "host_memory_gb",
}


def run_page(runs: Sequence[Run]) -> str:
    """The whole page; runs are drawn into the same charts."""
    colours = [colour_of(number) for number in range(len(runs))]
    groups = {title: _charts(curves, runs, colours) for title, curves in GROUPS.items()}
    progress = line_chart(
        "progress 进度 (steps; ◆ checkpoint 检查点, ▲ start 启动)",
        [_progress(run, colour) for run, colour in zip(runs, colours, strict=True)],
        lambda seconds: duration(seconds),
    )
    return render(
        _PAGE,
        runs=list(zip(runs, colours, strict=True)),
        summary=_summary(runs),
        damaged=[(run.name, _numbers(run.damaged)) for run in runs if run.damaged],
        unreadable=[(run.name, ", ".join(run.unreadable)) for run in runs if run.unreadable],
        progress=progress,
        groups={title: charts for title, charts in groups.items() if charts},
        evaluations=evaluation_tables(runs),
        tables=[(run.name, told_tables(run), setting_tables(run)) for run in runs],
    )


def _charts(curves: Sequence[Curve], runs: Sequence[Run], colours: Sequence[str]) -> list[Chart]:
    drawn = (
        line_chart(
            curve.title,
            [
                Series(run.name, colour, run.points(curve.kind, curve.field))
                for run, colour in zip(runs, colours, strict=True)
            ],
            lambda step: f"step {step:g}",
        )
        for curve in curves
    )
    return [chart for chart in drawn if chart is not None]


def _progress(run: Run, colour: str) -> Series:
    """Steps over the seconds since the run's first line, with its starts and checkpoints."""
    timed = [
        record
        for kind in ("start", "train", "checkpoint")
        for record in run.of_kind(kind)
        if is_number(record.get("time"))
    ]
    timed.sort(key=lambda record: record["time"])
    begin_s = timed[0]["time"] if timed else 0.0
    points: list[tuple[float, float | None]] = []
    marks = []
    for record in timed:
        place = record["time"] - begin_s, record["step"]
        if record["kind"] == "train":
            points.append(place)
        elif record["kind"] == "start":
            # Between the last line of one process and the first of the next nothing was trained.
            points += [(place[0], None), place]
            hosts = record.get("hosts")
            where = f" on {shown(hosts)}" if hosts else ""
            marks.append((*place, "▲", f"start at step {record['step']:g}{where}"))
        else:
            marks.append((*place, "◆", f"checkpoint of step {record['step']:g}"))
    return Series(run.name, colour, points, marks)


def _summary(runs: Sequence[Run]) -> list[list[str]]:
    """The head, and a row for each run: how far it is and its last figures."""
    head = ["run 训练", "state 状态", "step 步", "starts 启动", "checkpoints 检查点", *_SUMMARY]
    rows = [[*head, "validation loss, best 最低验证损失"]]
    for run in runs:
        last = run.last("train")
        losses = [value for _, value in run.points("validation", "loss") if value is not None]
        rows.append(
            [
                run.name,
                "finished 已完成" if run.is_done else "not finished 未完成",
                f"{shown(last.get('step', 0))} / {shown(run.description.get('num_steps', '?'))}",
                shown(max(1, len(run.of_kind("start")))),
                shown(len(run.of_kind("checkpoint"))),
                *(shown(last.get(field)) for field in _SUMMARY.values()),
                shown(min(losses, default=None)),
            ]
        )
    return rows


def _numbers(numbers: Sequence[int]) -> str:
    """The first numbers of lines, and how many more there are."""
    first = ", ".join(map(str, numbers[:5]))
    return first if len(numbers) <= 5 else f"{first} … ({len(numbers)})"
