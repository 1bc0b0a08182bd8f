"""Instruction files written: one JSON object a line, the whole file or none of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsft.errors import UserError
from medsft.files import replacing

Write = Callable[[Mapping[str, Any]], None]
"""Writes one record."""


def check_output(output: Path, inputs: Sequence[str | Path], suffix: str = ".jsonl") -> None:
    """Raises `UserError` for an output of another name than it must have, or that is one of the inputs."""
    if output.suffix != suffix:
        raise UserError(f"The output {output} must end in {suffix}: it holds one JSON object a line.")
    if any(output.exists() and output.samefile(path) for path in inputs if Path(path).exists()):
        raise UserError(f"The output {output} is one of the inputs, which it would replace. Name another.")


@contextmanager
def writing(output: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the output's name only when the block ends without an error.

    Raises `UserError` where it cannot be written (no room, no permission).
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(
            f"The output {output} cannot be written: {error.strerror}. What was there before is as it was."
        ) from error


@contextmanager
def writing_lines(output: Path) -> Iterator[Write]:
    """A function that writes records; else as `writing`."""
    with writing(output) as temporary, temporary.open("wb") as file:
        yield lambda record: file.write(as_line(record))


def as_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of a file."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate, which JSON can hold as an escape and UTF-8 cannot
        return json.dumps(record).encode() + b"\n"
