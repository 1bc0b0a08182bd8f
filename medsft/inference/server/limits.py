"""What may come in: from whom, how much, how slowly. A request within the limits reaches the app whole."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OPEN_PATHS = ("/", "/healthz")
"""What may be fetched without a key: the page (which asks for one) and whether the server lives."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for; more is refused with a 4xx that says so.

    max_body_bytes: of a request. max_new_tokens: of an answer. max_messages: turns of a conversation.
    max_rows: answers decoded side by side, for each model. max_waiting: requests in line behind them, for
    each model. read_s: for a request's head to arrive, and as long again for its body. write_s: for a client
    to take what it is sent. max_connections: open at once.
    """

    max_body_bytes: int = 262_144
    max_new_tokens: int = 1024
    max_messages: int = 200
    max_rows: int = 8
    max_waiting: int = 32
    read_s: float = 10.0
    write_s: float = 30.0
    max_connections: int = 256


def is_loopback(host: str) -> bool:
    """Whether an address, or the name of one, is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as OpenAI's clients understand it."""
    kinds = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    content = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(content, status, headers)


class _TooLarge(Exception):
    """A body beyond the limit."""


class _ClientLeft(Exception):
    """A connection that was closed before the body was complete."""


class Guard:
    """ASGI middleware that refuses, before any of it is looked at, what is not within the limits.

    With an `api_key`, clients have to send it. Without, only requests to a name of this machine are taken:
    a page from elsewhere could otherwise have its own name point here (DNS rebinding) and ask through the
    user's browser.
    """

    def __init__(self, app: ASGIApp, limits: Limits, api_key: str | None) -> None:
        self._app = app
        self._limits = limits
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            refusal = self._refusal(scope, headers)
            body = b"" if refusal else await self._body(receive)
        except _ClientLeft:
            return
        except _TooLarge:
            refusal = _too_large(self._limits)
        except TimeoutError:
            refusal = error_response(408, f"the request's body did not arrive in {self._limits.read_s:g} s")
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, receive_again, send)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> JSONResponse | None:
        if self._api_key is None:
            name = re.sub(r":\d+$", "", headers.get("host", ""))
            if not is_loopback(name):  # an address cannot be made to point elsewhere
                return error_response(403, "ask for this server by the name localhost or 127.0.0.1")
        elif scope["method"] not in ("GET", "HEAD") or scope["path"] not in _OPEN_PATHS:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode("latin-1"), self._api_key.encode()):
                return error_response(401, "send the server's key: Authorization: Bearer KEY")
        length = headers.get("content-length", "0")
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > self._limits.max_body_bytes:
            return _too_large(self._limits)
        return None

    async def _body(self, receive: Receive) -> bytes:
        """The whole body. Raises _TooLarge, _ClientLeft and TimeoutError."""
        body = bytearray()
        async with asyncio.timeout(self._limits.read_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _ClientLeft
                body += message.get("body", b"")
                if len(body) > self._limits.max_body_bytes:
                    raise _TooLarge
                if not message.get("more_body", False):
                    return bytes(body)


def _too_large(limits: Limits) -> JSONResponse:
    return error_response(413, f"a request may have {limits.max_body_bytes:,} bytes at most")
