"""Files of JSON lines that grow by one line after another and are taken up again after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a journal; a line that a killed process left half written counts as none."""
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


class Journal:
    """Appends objects to a file, which it makes where there is none. All that it does raises OSError."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        # A torn last line must not swallow the next one.
        self._file.write(b"\n" if path.stat().st_size else b"")

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Adds a line for each; they are on the disk before this returns."""
        for entry in entries:
            try:
                line = json.dumps(entry, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # a lone surrogate
                line = json.dumps(entry).encode()
            self._file.write(line + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
