"""Data files -> examples, and what could not be used: `file:line` and the reason."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.data.files import BadRecord, OnBytes, expand_files, iter_objects
from medsft.data.layouts import Columns, parse_record
from medsft.errors import UserError

logger = logging.getLogger(__name__)

__all__ = ["BadLine", "Columns", "Example", "Records", "iter_file", "iter_raw", "read_files"]


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    Attributes:
        query: the question, not empty.
        response: the answer, not empty.
        history: earlier (question, answer) rounds, oldest first.
        source: "file:line".
    """

    query: str
    response: str
    history: tuple[tuple[str, str], ...]
    source: str


@dataclass(frozen=True)
class BadLine:
    """A record that was left out.

    Attributes:
        source: "file:line".
        reason: the kind of fault, one of a few.
        detail: what exactly; may be empty.
    """

    source: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Records:
    """What some files hold, in their order."""

    examples: tuple[Example, ...]
    bad: tuple[BadLine, ...]

    def usable(self) -> tuple[Example, ...]:
        """The examples; bad lines are warned of. Raises UserError where nothing can be used."""
        listed = "; ".join(str(line) for line in self.bad[:3])
        if not self.examples:
            raise UserError(f"No example can be used, {len(self.bad):,} lines are bad: {listed}. Mend them.")
        if self.bad:
            logger.warning("%d lines are left out: %s", len(self.bad), listed)
        return self.examples


def iter_raw(
    path: Path, columns: Columns, on_bytes: OnBytes | None = None
) -> Iterator[tuple[int, Any, Example | BadLine]]:
    """Records of one file, one at a time: (line number, raw record, what it is read as).

    The raw record of an unreadable line is None. Raises `UserError` as `iter_objects` does.
    """
    for line, value in iter_objects(path, on_bytes):
        source = f"{path}:{line}"
        try:
            if isinstance(value, BadRecord):
                raise value
            query, response, history = parse_record(value, columns)
        except BadRecord as bad:
            raw = None if isinstance(value, BadRecord) else value
            yield line, raw, BadLine(source, bad.reason, bad.detail)
        else:
            yield line, value, Example(query, response, history, source)


def iter_file(
    path: Path, columns: Columns, on_bytes: OnBytes | None = None
) -> Iterator[tuple[int, Example | BadLine]]:
    """Records of one file, one at a time: (line number, example or bad line).

    Raises:
        UserError: as in `iter_objects`, and for a file without any record.
    """
    is_empty = True
    for line, _, record in iter_raw(path, columns, on_bytes):
        is_empty = False
        yield line, record
    if is_empty:
        raise UserError(f"The data file {path} holds no record.")


def read_files(files: Sequence[str | Path], columns: Columns | None = None) -> Records:
    """All records of files, folders and globs (see `expand_files`), held in memory.

    Raises:
        UserError: a file cannot be read (see `expand_files` and `iter_file`). Bad lines do not raise.
    """
    examples: list[Example] = []
    bad: list[BadLine] = []
    for path in expand_files(files):
        for _, record in iter_file(path, columns or Columns()):
            if isinstance(record, Example):
                examples.append(record)
            else:
                bad.append(record)
    return Records(tuple(examples), tuple(bad))
