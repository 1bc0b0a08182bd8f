"""What a run's folder tells of it, read while it is being written too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.errors import UserError
from medsft.run_folder import RunFolder

Record = Mapping[str, Any]

_LARGEST = 1e300
"""Beyond it the difference of two values, or an integer of JSON's, may be too large for a float."""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: how the page calls it.
        records: the whole lines of metrics.jsonl, in order.
        damaged: numbers of the lines, from 1, that cannot be read: the last while the run writes it, others
            after damage.
        unreadable: other files of the run that hold no JSON object: half written, or damaged.
        description: run.json; empty where there is none.
        evaluations: file name -> JSON object that `medsft eval` and `medsft compare` left in `evaluation`.
        is_done: whether the run finished.
    """

    name: str
    records: tuple[Record, ...]
    damaged: tuple[int, ...]
    unreadable: tuple[str, ...]
    description: Record
    evaluations: Mapping[str, Record]
    is_done: bool

    def of_kind(self, kind: str) -> list[Record]:
        """Lines of one kind that have a step."""
        return [
            record
            for record in self.records
            if record.get("kind") == kind and is_number(record.get("step")) and record["step"] >= 0
        ]

    def points(self, kind: str, field: str) -> list[tuple[float, float | None]]:
        """(step, value); None where the value is missing or no number, and where lines were unreadable."""
        points: list[tuple[float, float | None]] = []
        for record in self.of_kind(kind):
            if record.get("after_damage"):
                points.append((record["step"], None))
            value = record.get(field)
            points.append((record["step"], float(value) if is_number(value) else None))
        return points

    def last(self, kind: str) -> Record:
        """The last line of a kind; empty where there is none."""
        return next(reversed(self.of_kind(kind)), {})


def is_number(value: object) -> bool:
    """Whether a value read from JSON is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def read_run(path: Path) -> Run:
    """Reads a run's folder; raises `UserError` where there is no run, or it cannot be read."""
    folder = RunFolder(path)
    if not folder.metrics.is_file() and not folder.description.is_file():
        raise UserError(
            f"{path} holds no run: neither run.json nor metrics.jsonl is there. Give the --output_dir of a "
            "training."
        )
    try:
        lines = folder.metrics.read_bytes().splitlines() if folder.metrics.is_file() else []
        files = [folder.description] if folder.description.is_file() else []
        files += sorted((path / "evaluation").glob("*.json"))
        found = {file: _object(file.read_bytes()) for file in files}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder that can.") from error
    records: list[Record] = []
    damaged: list[int] = []
    for number, line in enumerate(lines, start=1):
        record = _object(line)
        if record is not None:
            # What follows unreadable lines is not joined to what stands before them.
            records.append({**record, "after_damage": True} if number - 1 in damaged else record)
        elif line.strip():
            damaged.append(number)
    unreadable = tuple(str(file.relative_to(path)) for file, content in found.items() if content is None)
    description = found.pop(folder.description, None) or {}
    evaluations = {file.name: content for file, content in found.items() if content}
    is_done = folder.done.exists()
    return Run(str(path), tuple(records), tuple(damaged), unreadable, description, evaluations, is_done)


def _object(text: bytes) -> dict[str, Any] | None:
    """A JSON object; None where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
