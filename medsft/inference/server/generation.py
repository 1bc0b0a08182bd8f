"""One answer for one client, between the decoding thread and the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from medsft.inference.responder import History, Responder
from medsft.inference.sampling import Sampling
from medsft.inference.server.engine import Delivery, Engine, Ticket
from medsft.inference.stop_strings import StopStrings


@dataclass(frozen=True)
class Served:
    """A model under the name that clients know it by."""

    name: str
    responder: Responder
    engine: Engine


class Generation:
    """An answer on its way.

    stops: strings that end it. finish: None until the end, then "stop" or "length". was_cut: whether the
    oldest part of the conversation had to be left out.
    """

    def __init__(
        self, served: Served, prompt_ids: list[int], was_cut: bool, stops: Sequence[str] = ()
    ) -> None:
        self.was_cut = was_cut
        self.num_prompt_tokens = len(prompt_ids)
        self.num_tokens = 0
        self.finish: str | None = None
        self._engine = served.engine
        self._text = served.responder.new_text()
        self._stops = StopStrings(stops)
        self._items: asyncio.Queue[Delivery] = asyncio.Queue()
        self._ticket: Ticket | None = None
        self._prompt_ids = prompt_ids

    def submit(self, client: str, sampling: Sampling) -> None:
        """Stands in line. Raises Busy when too many do."""
        loop = asyncio.get_running_loop()

        def deliver(item: Delivery) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._items.put_nowait, item)

        self._ticket = Ticket(client, self._prompt_ids, sampling, deliver)
        self._engine.submit(self._ticket)

    def cancel(self) -> None:
        """Stops the generation, if it has not ended."""
        if self._ticket is not None and self.finish is None:
            self._engine.cancel(self._ticket)

    async def pieces(self) -> AsyncIterator[str]:
        """The answer's text as it comes, what has come meanwhile in one piece. Raises what made it fail."""
        while self.finish is None:
            piece = self._take(await self._items.get())
            while self.finish is None and not self._items.empty():
                piece += self._take(self._items.get_nowait())
            if piece:
                yield piece

    def _take(self, item: Delivery) -> str:
        if isinstance(item, Exception):
            raise item
        if isinstance(item, str):
            piece = self._stops.add(self._text.end()) + self._stops.end()
            self.finish = "stop" if self._stops.is_reached else item
            return piece
        self.num_tokens += 1
        piece = self._stops.add(self._text.add(item))
        if self._stops.is_reached:
            self.cancel()
            self.finish = "stop"
        return piece


async def begin(
    served: Served,
    client: str,
    query: str,
    history: History,
    sampling: Sampling,
    stops: Sequence[str] = (),
) -> Generation:
    """Puts a question in line. Raises Busy, and UserError where no room is left for the question."""
    prompt_ids, was_cut = await asyncio.to_thread(
        served.responder.prompt_ids, query, history, sampling.max_new_tokens
    )
    generation = Generation(served, prompt_ids, was_cut, stops)
    generation.submit(client, sampling)
    return generation
