"""Records of a file, each made into something, where one that cannot be used is the user's to mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medsft.data.files import FROM_GBK, NOT_UTF8, BadRecord, expand_files, iter_objects
from medsft.errors import UserError

T = TypeVar("T")


def read_each(path: Path, make: Callable[[object], T], what: str, needs: str) -> list[tuple[str, T]]:
    """("file:line", what `make` makes of the record) for each record of a file, a folder or a glob.

    what, needs: for the messages: what a record is to be, and what it needs for that. Raises `UserError` for
    a file that cannot be read or holds no record, and for the first record that `make` refuses with
    `BadRecord`.
    """
    made = []
    for file in expand_files([path]):
        before = len(made)
        for line, value in iter_objects(file):
            try:
                if isinstance(value, BadRecord):
                    raise value
                made.append((f"{file}:{line}", make(value)))
            except BadRecord as bad:
                remedy = FROM_GBK if bad.reason == NOT_UTF8 else needs
                raise UserError(f"{file}:{line} is no {what} ({bad}). {remedy}") from bad
        if len(made) == before:
            raise UserError(f"The file {file} holds no {what}. {needs}")
    return made
