"""Connections that do not ask for anything are closed."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's, closed when the head of a request does not arrive whole in time.

    Without this, clients that send nothing hold their connections for ever, and `max_connections` of them
    keep everybody else out. uvicorn itself limits only the pause after an answer.

    head_s: from the connection's begin, or the next head's first byte, to the head's end.
    """

    def __init__(self, head_s: float, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        self._head_s = head_s
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As asyncio has it."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head is complete
            self._unwatch()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_s, self.transport.close)

    def _unwatch(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
