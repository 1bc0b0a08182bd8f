"""What a measurement was taken on, and where its figures go."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from medsft.provenance import software_versions

RESULTS = Path(__file__).resolve().parent / "results"


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this machine."""
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpu_info.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def at_least(least: int) -> Callable[[str], int]:
    """A type for argparse: a whole number that is not below `least`."""

    def whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, {least} or more")
        return value

    return whole


def above_zero(text: str) -> float:
    """A type for argparse: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def device(text: str) -> str:
    """A type for argparse: a device of this machine."""
    try:
        kind = torch.device(text).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise argparse.ArgumentTypeError(f"{text!r} must be cpu, or cuda or cuda:0 where there is a GPU")
    return text


def write_result(
    name: str, settings: dict[str, Any], rows: list[dict[str, Any]], folder: Path = RESULTS
) -> Path:
    """Writes `<name>.json` and the same as a Markdown table into `folder`; returns the JSON's path.

    Every row has the same keys; they are the table's columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y-%m-%d")
    record = {
        "benchmark": name,
        "date": stamp,
        "hardware": hardware(),
        "versions": software_versions(),
        "settings": settings,
        "rows": rows,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(_markdown(record), encoding="utf-8")
    return path


def _markdown(record: dict[str, Any]) -> str:
    machine = record["hardware"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
    columns = list(record["rows"][0])
    lines = [
        f"# {record['benchmark']}",
        "",
        f"{record['date']}; {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {gpus}; "
        f"{versions}.",
        f"Settings: {settings}.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(str(row[column]) for column in columns) + " |" for row in record["rows"]),
    ]
    return "\n".join(lines) + "\n"
