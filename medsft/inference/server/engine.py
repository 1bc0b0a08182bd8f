"""One model answering many clients: whose turn it is, and the thread that decodes for all of them."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.inference.decoding import Decoder, Row
from medsft.inference.sampling import Sampling

logger = logging.getLogger(__name__)

Delivery = int | str | Exception
"""A token; or last of all why the answer ends ("stop", "length"), or what made it fail."""


class Busy(Exception):
    """As many requests as may wait are waiting."""


class Stopped(RuntimeError):
    """The decoding thread has ended, or is about to."""


@dataclass(eq=False)
class Ticket:
    """One request: its place in the queue, then its row.

    deliver: called from the decoding thread with each `Delivery`. num_told: tokens delivered so far.
    """

    client: str
    prompt_ids: list[int]
    sampling: Sampling
    deliver: Callable[[Delivery], None]
    cancelled: bool = False
    num_told: int = 0


class FairQueue:
    """Clients take turns, whoever has asked most often; one client's requests keep their order."""

    def __init__(self) -> None:
        self._of_client: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._of_client.values()))

    def put(self, ticket: Ticket) -> None:
        """At the end of its client's line."""
        self._of_client.setdefault(ticket.client, deque()).append(ticket)

    def take(self) -> Ticket:
        """The first of the client whose turn it is, who then goes to the end; IndexError when empty."""
        if not self._of_client:
            raise IndexError("nobody waits")
        client, line = self._of_client.popitem(last=False)
        ticket = line.popleft()
        if line:
            self._of_client[client] = line
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Takes out a request that nobody waits for any more, if it still stands in line."""
        line = self._of_client.get(ticket.client)
        if line is not None and ticket in line:
            line.remove(ticket)
            if not line:
                del self._of_client[ticket.client]


class Engine:
    """Decodes up to `max_rows` answers side by side; up to `max_waiting` more stand in line.

    A request joins as soon as there is room, without waiting for the others to end.
    """

    def __init__(self, model: ChatGLMForConditionalGeneration, max_rows: int, max_waiting: int) -> None:
        self._model = model
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting = FairQueue()
        self._running: dict[Row, Ticket] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Answers in the making."""
        return len(self._running)

    @property
    def is_alive(self) -> bool:
        """Whether the decoding thread runs."""
        return self._thread.is_alive()

    def submit(self, ticket: Ticket) -> None:
        """Puts a request in line. Raises Busy when the line is full, and Stopped after the thread's end."""
        with self._changed:
            if self._closing or not self._thread.is_alive():
                raise Stopped("the server was stopped")
            num_free = max(0, self._max_rows - len(self._running))
            if len(self._waiting) >= self._max_waiting + num_free:
                raise Busy
            self._waiting.put(ticket)
            self._changed.notify()

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this answer any more; its generation stops. Nothing happens to one that ended."""
        with self._changed:
            ticket.cancelled = True
            self._waiting.remove(ticket)
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread after its current token; requests that are not answered yet fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            decoder = Decoder(self._model)
            while self._has_work():
                try:
                    self._advance(decoder)
                except Exception as error:
                    # Out of memory, mostly. What the rows had in common is lost; later requests start afresh.
                    logger.exception("generation failed")
                    self._fail_running(error)
                    decoder = Decoder(self._model)
        finally:  # whatever ended the thread, nobody waits for it in vain
            with self._changed:
                self._closing = True
                left = [self._waiting.take() for _ in range(len(self._waiting))]
            error = Stopped("the server was stopped")
            self._fail_running(error)
            for ticket in left:
                _fail(ticket, error)

    def _has_work(self) -> bool:
        """Waits for something to do; False when the engine is to close."""
        with self._changed:
            while not (self._closing or self._waiting or self._running):
                self._changed.wait()
            return not self._closing

    def _advance(self, decoder: Decoder) -> None:
        """Those who left go, one request enters, and every answer gets a token."""
        gone = [row for row, ticket in self._running.items() if ticket.cancelled]
        decoder.leave(gone)
        for row in gone:
            del self._running[row]
        with self._changed:
            has_room = len(self._running) < self._max_rows
            # One a step: those who are being answered wait for one prompt at most.
            entering = self._waiting.take() if has_room and self._waiting else None
        if entering is not None:
            self._enter(decoder, entering)
        for row in decoder.step():
            self._tell(row, self._running[row])

    def _enter(self, decoder: Decoder, ticket: Ticket) -> None:
        try:
            row = decoder.add(ticket.prompt_ids, ticket.sampling)
        except Exception as error:  # of this prompt alone: the other rows are as they were
            logger.exception("a prompt of %d tokens failed", len(ticket.prompt_ids))
            _fail(ticket, error)
            return
        self._running[row] = ticket
        self._tell(row, ticket)

    def _fail_running(self, error: Exception) -> None:
        for ticket in self._running.values():
            _fail(ticket, error)
        self._running.clear()

    def _tell(self, row: Row, ticket: Ticket) -> None:
        for token in row.answer_ids[ticket.num_told :]:
            ticket.deliver(token)
            ticket.num_told += 1
        if row.finish is not None:
            del self._running[row]
            ticket.deliver(row.finish)


def _fail(ticket: Ticket, error: Exception) -> None:
    """Tells it to this request; when even that fails, the others shall still be told."""
    try:
        ticket.deliver(error)
    except Exception:
        logger.exception("a client could not be told: %s", error)
