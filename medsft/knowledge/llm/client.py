"""Requests to an OpenAI-compatible endpoint: several at a time, no more a minute than allowed, retried."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from medsft.errors import UserError

KEY_VARIABLES = ("MEDSFT_LLM_KEY", "OPENAI_API_KEY")
"""Not the key that `medsft serve` asks of its clients: that one is sent to no other endpoint."""

_GARBAGE_ATTEMPTS = 3
_MIN_WAIT_S, _MAX_WAIT_S = 0.5, 8.0
_MAX_ASKED_WAIT_S = 300.0
"""A server that asks for more has no quota left today: the request is given up, and told."""
_REFUSALS_TO_STOP = 3

Request = dict[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how fast.

    Attributes:
        base_url: of the API, most often ending in /v1.
        concurrency: requests under way at a time.
        requests_per_minute: started in a minute at most, repetitions included.
        max_retries: of a request that fails with 408, 409, 429, 5xx or on the way; waits grow from half a
            second to eight. What the server asks to wait all requests wait, five minutes at most.
        timeout_s: for one reply.
    """

    base_url: str
    concurrency: int = 4
    requests_per_minute: float = 60.0
    max_retries: int = 5
    timeout_s: float = 120.0


def api_key(environment: Mapping[str, str] = os.environ) -> str:
    """The key, from the environment only; it never stands in a message."""
    for name in KEY_VARIABLES:
        if environment.get(name):
            return environment[name]
    raise UserError(
        f"No key: set {KEY_VARIABLES[0]} (or {KEY_VARIABLES[1]}) in the environment. A local server that "
        "needs none takes any text."
    )


def without_secrets(url: str) -> str:
    """The address without user, password and query, which can hold keys."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class _Pace:
    """Spreads the starts of requests evenly, repetitions included."""

    def __init__(self, per_minute: float) -> None:
        self._interval_s = 60.0 / per_minute
        self._next_s = 0.0

    def hold(self, wait_s: float) -> None:
        """No request starts before."""
        self._next_s = max(self._next_s, asyncio.get_running_loop().time() + wait_s)

    async def turn(self) -> None:
        now_s = asyncio.get_running_loop().time()
        start_s = max(now_s, self._next_s)
        self._next_s = start_s + self._interval_s
        await asyncio.sleep(start_s - now_s)


def ask_all(
    requests: Sequence[tuple[str, Request]],
    endpoint: Endpoint,
    key: str,
    on_reply: Callable[[str, str], None],
    on_refusal: Callable[[str, str], None],
    has_worked: bool = False,
) -> list[str]:
    """Sends (name, request) pairs and hands (name, reply) to `on_reply` as they come.

    A request that the endpoint refuses for its content (400, 422) goes to `on_refusal` with the reason, once
    another got a reply: in this call, or before it (`has_worked`). Returns what went wrong with each request
    that got neither. Raises `UserError` at once for what no repetition would mend: a wrong key, an unknown
    model or address (401, 403, 404), or the first few requests all refused.
    """
    return asyncio.run(
        _ask_all(requests, endpoint, key, on_reply, _Refusals(endpoint, on_refusal, has_worked))
    )


class _Refused(Exception):
    """The endpoint will not answer this request, however often it is asked."""


class _Refusals:
    """Keeps refusals back until the endpoint is known to answer other requests."""

    def __init__(self, endpoint: Endpoint, on_refusal: Callable[[str, str], None], has_worked: bool) -> None:
        self._endpoint = endpoint
        self._on_refusal = on_refusal
        self._has_worked = has_worked
        self._held: list[tuple[str, str]] = []

    def add(self, name: str, reason: str) -> None:
        self._held.append((name, reason))
        if self._has_worked:
            self.release()
        elif len(self._held) >= _REFUSALS_TO_STOP:
            self.stop_if_any()

    def release(self) -> None:
        self._has_worked = True
        for name, reason in self._held:
            self._on_refusal(name, reason)
        self._held.clear()

    def stop_if_any(self) -> None:
        if self._held:
            raise _refused(self._endpoint, self._held[-1][1])


async def _ask_all(
    requests: Sequence[tuple[str, Request]],
    endpoint: Endpoint,
    key: str,
    on_reply: Callable[[str, str], None],
    refusals: _Refusals,
) -> list[str]:
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise UserError("Generating needs the openai package: pip install 'medsft[generate]'.") from error
    pace = _Pace(endpoint.requests_per_minute)
    waiting = iter(requests)
    failures: list[str] = []

    async def worker(client: AsyncOpenAI) -> None:
        for name, request in waiting:
            try:
                reply = await _ask(client, request, endpoint, pace, failures)
            except _Refused as refused:
                refusals.add(name, str(refused))
                continue
            if reply is not None:
                on_reply(name, reply)
                refusals.release()

    settings = {"max_retries": 0, "timeout": endpoint.timeout_s}  # the client's own would escape the pace
    async with AsyncOpenAI(base_url=endpoint.base_url, api_key=key, **settings) as client:
        workers = [asyncio.create_task(worker(client)) for _ in range(endpoint.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
    refusals.stop_if_any()
    return failures


def _refused(endpoint: Endpoint, reason: str) -> UserError:
    return UserError(
        f"{endpoint.base_url} refuses the request ({reason}). Check the key in {KEY_VARIABLES[0]}, the "
        "model's name and the address."
    )


async def _ask(
    client: Any, request: Request, endpoint: Endpoint, pace: _Pace, failures: list[str]
) -> str | None:
    import openai

    hopeless = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)
    refused = (openai.BadRequestError, openai.UnprocessableEntityError)
    num_garbage = 0
    for attempt in range(endpoint.max_retries + 1):
        await pace.turn()
        try:
            done = await client.chat.completions.create(**request)
            content = done.choices[0].message.content
            if isinstance(content, str) and content.strip():
                return content
            told = "an empty reply"
        except hopeless as error:
            raise _refused(endpoint, f"{error.status_code} {type(error).__name__}") from error
        except refused as error:
            raise _Refused(f"{error.status_code} {type(error).__name__}") from error
        except openai.APIError as error:
            told = type(error).__name__
            asked_s = _asked_wait_s(getattr(error, "response", None))
            if asked_s is not None and asked_s > _MAX_ASKED_WAIT_S:
                told += f" that asks to wait {asked_s:,.0f} s"
                break
            if not _may_pass(error):
                break
            if asked_s is not None:
                pace.hold(asked_s)
            elif attempt < endpoint.max_retries:
                await asyncio.sleep(min(_MIN_WAIT_S * 2**attempt, _MAX_WAIT_S) * random.uniform(0.75, 1.0))
            continue
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            told = f"a reply that is no completion ({type(error).__name__})"
        num_garbage += 1  # it was paid for
        if num_garbage == _GARBAGE_ATTEMPTS:
            break
    failures.append(told)
    return None


def _may_pass(error: Exception) -> bool:
    """Whether the same request may get a reply later."""
    import openai

    status = getattr(error, "status_code", None)
    return isinstance(error, openai.APIConnectionError) or status in (408, 409, 429) or (status or 0) >= 500


def _asked_wait_s(response: Any) -> float | None:
    """What a server asks to wait, by `retry-after-ms` or `retry-after` (RFC 9110: seconds or a date)."""
    headers = getattr(response, "headers", {})
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            wait_s = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return wait_s if 0 <= wait_s < float("inf") else None
    try:
        when = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return max(when.timestamp() - time.time(), 0.0)
