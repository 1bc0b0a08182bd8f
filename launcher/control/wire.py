"""Messages over TCP: JSON objects, one a line, between ends that have proved to each other who they are.

The proof is an HMAC of the other end's random number under the launch's token, so that the token itself is
never sent. What is sent afterwards is not secret: numbers of ranks and signals, exit codes, last lines.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
from contextlib import suppress
from typing import Any

SILENCE_S = 15.0
"""A connection on which nothing has come for so long, in seconds, is lost."""
BEAT_S = 3.0
"""Each end says something at least this often, in seconds."""
_LONGEST = 1 << 20

Message = dict[str, Any]


class WireError(OSError):
    """The other end is gone, silent, or not what it should be."""


class Channel:
    """One connection. Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._reader = connection.makefile("rb")
        self._sending = threading.Lock()

    @property
    def addresses(self) -> tuple[str, str]:
        """This end's address and the other's."""
        return self._connection.getsockname()[0], self._connection.getpeername()[0]

    def send(self, message: Message) -> None:
        """Raises `WireError` when the other end is gone."""
        try:
            with self._sending:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise WireError(f"cannot send: {error}") from error

    def receive(self) -> Message:
        """The next message. Raises `WireError` at the end, after too long a silence, and for other stuff."""
        try:
            line = self._reader.readline(_LONGEST)
        except TimeoutError as error:
            raise WireError(f"silent for {SILENCE_S:.0f} s") from error
        except (OSError, ValueError) as error:
            raise WireError(f"the connection broke: {error}") from error
        if not line:
            raise WireError("the connection was closed")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise WireError(f"not a message: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise WireError(f"not a message: {line[:80]!r}")
        return message

    def close(self) -> None:
        """Wakes the thread that receives, too."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def introduce(channel: Channel, token: str, mine: str, theirs: str) -> None:
    """Proves to be `mine` and has the other end prove to be `theirs`; both ends call it.

    Raises `WireError` when the other end does not know the token.
    """
    number = secrets.token_hex(16)
    channel.send({"number": number})
    asked = channel.receive().get("number")
    channel.send({"proof": _proof(token, mine, str(asked))})
    proof = str(channel.receive().get("proof"))
    if not hmac.compare_digest(proof.encode(), _proof(token, theirs, number).encode()):
        raise WireError("the other end does not belong to this launch")


def _proof(token: str, role: str, number: str) -> str:
    return hmac.new(bytes.fromhex(token), f"{role} {number}".encode(), "sha256").hexdigest()
