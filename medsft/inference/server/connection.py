"""Connections on which nothing moves are closed: no question comes, or no answer is taken."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's, closed when a request's head does not arrive, or what is sent is not taken, in time.

    Without this, clients that send or read nothing hold their connections for ever, and `max_connections` of
    them keep everybody else out. uvicorn itself limits only the pause after an answer.

    head_s: from the connection's begin, or the next head's first byte, to the head's end. write_s: for the
    client's system to take what was sent last.
    """

    def __init__(self, head_s: float, write_s: float, *arguments: object, **more: object) -> None:
        super().__init__(*arguments, **more)
        self._head_s = head_s
        self._write_s = write_s
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:
        """As asyncio has it."""
        super().connection_made(transport)
        # Writing pauses as soon as the system takes no more: also a connection that is being closed waits so.
        transport.set_write_buffer_limits(high=0)
        self._watch()

    def pause_writing(self) -> None:
        """As asyncio has it."""
        super().pause_writing()
        # `close` would wait for the client to read.
        self._timers["write"] = self.loop.call_later(self._write_s, self.transport.abort)

    def resume_writing(self) -> None:
        """As asyncio has it."""
        super().resume_writing()
        self._cancel("write")

    def data_received(self, data: bytes) -> None:
        """As asyncio has it."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio has it."""
        super().connection_lost(exc)
        self._cancel("head")
        self._cancel("write")

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:  # the head is complete
            self._cancel("head")
        elif "head" not in self._timers:
            self._timers["head"] = self.loop.call_later(self._head_s, self.transport.close)

    def _cancel(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()
