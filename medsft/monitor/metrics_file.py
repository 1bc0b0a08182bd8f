"""`metrics.jsonl`: everything that a run reports, a JSON object a line."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medsft.files import replace_file
from medsft.monitor.metrics import Metrics, Save, Start
from medsft.monitor.sink import Sample, Sink

logger = logging.getLogger(__name__)


class MetricsFile(Sink):
    """`metrics.jsonl`: one JSON object a line, appended and flushed to disk line by line.

    A run that goes on after `start_step` steps computes the later ones again, so their lines are dropped
    first, with what a killed process left of a line.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        if path.exists():
            _drop_later_lines(path, start_step)
        self._file = path.open("a", encoding="utf-8")

    def start(self, start: Start) -> None:
        """Appends a line of kind start."""
        self._append("start", asdict(start))

    def train(self, metrics: Metrics) -> None:
        """Appends a line of kind train."""
        self._append("train", asdict(metrics))

    def validation(self, step: int, loss: float) -> None:
        """Appends a line of kind validation."""
        self._append("validation", {"step": step, "loss": loss})

    def checkpoint(self, save: Save) -> None:
        """Appends a line of kind checkpoint."""
        self._append("checkpoint", asdict(save))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Appends a line of kind samples."""
        self._append("samples", {"step": step, "samples": [asdict(sample) for sample in samples]})

    def _append(self, kind: str, values: Mapping[str, Any]) -> None:
        # JSON has no NaN or infinity: a skipped step's gradient norm is written as null.
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        record = {"kind": kind, "time": round(time.time(), 3), **finite}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _drop_later_lines(path: Path, start_step: int) -> None:
    """Leaves whole lines up to `start_step`; the file is replaced at once, or left alone if none is to go."""
    lines = path.read_bytes().split(b"\n")
    kept = [line for line in lines if _is_until(line, start_step)]
    content = b"".join(line + b"\n" for line in kept)
    if content == b"\n".join(lines):
        return
    replace_file(path, content)
    num_dropped = sum(1 for line in lines if line) - len(kept)
    logger.info("%s: lines dropped that come again after step %d: %d", path, start_step, num_dropped)


def _is_until(line: bytes, start_step: int) -> bool:
    """Whether this is a whole line of a step up to `start_step`; a cut one is no JSON object any more."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    step = record.get("step")
    return not isinstance(step, int) or step <= start_step
