"""Replies kept on disk, so that none is paid for twice: one JSON object a line, flushed as it comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsft.errors import UserError
from medsft.journal import Journal, read_journal


def request_key(request: dict[str, Any]) -> str:
    """SHA-256 over all that decides about a reply: model, messages, settings."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class ReplyCache:
    """Replies by key. A line that a killed run left half written counts as none."""

    def __init__(self, path: Path) -> None:
        """Raises `UserError` where the file cannot be read or written."""
        self._path = path
        self._replies: dict[str, str] = {}
        self._refusals: dict[str, str] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._read()
            self._journal = Journal(path)
        except OSError as error:
            raise UserError(f"The cache {path} cannot be used: {error.strerror}.") from error

    def _read(self) -> None:
        for entry in read_journal(self._path):
            key, reply, refused = entry.get("key"), entry.get("reply"), entry.get("refused")
            if isinstance(key, str) and isinstance(refused, str):
                self._refusals[key] = refused
            elif isinstance(key, str) and isinstance(reply, str):
                self._replies[key] = reply

    def get(self, key: str) -> str | None:
        """The reply, if there is one."""
        return self._replies.get(key)

    def refusal(self, key: str) -> str | None:
        """Why the endpoint refused the request, if it did."""
        return self._refusals.get(key)

    def is_settled(self, key: str) -> bool:
        """Whether the request needs not be sent again."""
        return key in self._replies or key in self._refusals

    def put(self, key: str, reply: str) -> None:
        """Keeps a reply, on the disk before this returns. Raises `UserError` when there is no room."""
        self._replies[key] = reply
        self._append({"key": key, "reply": reply})

    def put_refusal(self, key: str, reason: str) -> None:
        """Keeps that a request was refused, as `put` keeps a reply."""
        self._refusals[key] = reason
        self._append({"key": key, "refused": reason})

    def _append(self, entry: Mapping[str, str]) -> None:
        try:
            self._journal.append(entry)
        except OSError as error:
            raise UserError(
                f"The cache {self._path} cannot be written: {error.strerror}. Make room and run again; what "
                "it holds is not asked for again."
            ) from error

    def close(self) -> None:
        """Closes the file."""
        self._journal.close()
