"""Replies kept on disk, so that none is paid for twice: one JSON object a line, flushed as it comes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from medsft.errors import UserError


def request_key(request: dict[str, Any]) -> str:
    """SHA-256 over all that decides about a reply: model, messages, settings."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class ReplyCache:
    """Replies by key. A line that a killed run left half written counts as none."""

    def __init__(self, path: Path) -> None:
        """Raises `UserError` where the file cannot be read or written."""
        self._path = path
        self._replies: dict[str, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._read()
            self._file = path.open("ab")
            # A torn last line must not swallow the next one.
            self._file.write(b"\n" if path.stat().st_size else b"")
        except OSError as error:
            raise UserError(f"The cache {path} cannot be used: {error.strerror}.") from error

    def _read(self) -> None:
        for line in self._path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                self._replies[entry["key"]] = entry["reply"]
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, key: str) -> str | None:
        """The reply, if there is one."""
        return self._replies.get(key)

    def put(self, key: str, reply: str) -> None:
        """Keeps a reply, on the disk before this returns. Raises `UserError` when there is no room."""
        self._replies[key] = reply
        try:
            self._file.write(json.dumps({"key": key, "reply": reply}, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"The cache {self._path} cannot be written: {error.strerror}. Make room and run again; what "
                "it holds is not asked for again."
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
