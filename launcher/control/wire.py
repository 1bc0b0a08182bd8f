"""Messages over TCP: JSON objects, one a line, between ends that have proved to each other who they are.

The proof is an HMAC of the other end's random number under the launch's token, so that the token itself is
never sent. From then on every line carries an HMAC under a key of this connection and this direction, and its
place in the row is part of it: who sits in between can read along, but not say a word. What is sent is not
secret: numbers of ranks and signals, exit codes, last lines.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Any

SILENCE_S = 15.0
"""A connection on which nothing has come for so long, in seconds, is lost."""
BEAT_S = 3.0
"""Each end says something at least this often, in seconds."""
# Longest line, in bytes; and from somebody who has not proved anything yet.
_LONGEST = 1 << 20
_LONGEST_OF_STRANGERS = 1 << 10

Message = dict[str, Any]


class WireError(OSError):
    """The other end is gone, silent, or not what it should be."""


class Channel:
    """One connection. Any thread may send; one thread receives."""

    def __init__(self, connection: socket.socket):
        connection.settimeout(SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._received = bytearray()
        self._sending = threading.Lock()
        self._seal_of_mine: _Seal | None = None
        self._seal_of_theirs: _Seal | None = None

    @property
    def addresses(self) -> tuple[str, str]:
        """This end's address and the other's."""
        return self._connection.getsockname()[0], self._connection.getpeername()[0]

    def send(self, message: Message) -> None:
        """Raises `WireError` when the other end is gone."""
        text = json.dumps(message).encode()
        try:
            with self._sending:
                seal = b"" if self._seal_of_mine is None else self._seal_of_mine.next(text) + b" "
                self._connection.sendall(seal + text + b"\n")
        except OSError as error:
            raise WireError(f"cannot send: {error}") from error

    def receive(self) -> Message:
        """The next message. Raises `WireError` at the end, after too long a silence, and for other stuff."""
        is_stranger = self._seal_of_theirs is None
        text = self._line(_LONGEST_OF_STRANGERS if is_stranger else _LONGEST)
        if self._seal_of_theirs is not None:
            seal, _, text = text.partition(b" ")
            if not hmac.compare_digest(seal, self._seal_of_theirs.next(text)):
                raise WireError("a line does not come from the other end")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WireError(f"not a message: {text[:80]!r}") from error
        if not isinstance(message, dict):
            raise WireError(f"not a message: {text[:80]!r}")
        return message

    def protect(self, mine: bytes, theirs: bytes) -> None:
        """From here on lines carry an HMAC: those sent under the key `mine`, those received `theirs`."""
        self._seal_of_mine, self._seal_of_theirs = _Seal(mine), _Seal(theirs)

    def close(self) -> None:
        """Wakes the thread that receives, too."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _line(self, longest: int) -> bytes:
        """Without its end. Whoever sends byte after byte gets no longer than one who sends nothing."""
        deadline_s = time.monotonic() + SILENCE_S
        looked_at = 0
        while (end := self._received.find(b"\n", looked_at)) < 0:
            looked_at = len(self._received)
            if looked_at > longest:
                raise WireError(f"not a message: a line of more than {longest} bytes")
            try:
                if time.monotonic() > deadline_s:
                    raise TimeoutError
                some = self._connection.recv(65_536)
            except TimeoutError as error:
                raise WireError(f"silent for {SILENCE_S:g} s") from error
            except OSError as error:
                raise WireError(f"the connection broke: {error}") from error
            if not some:
                raise WireError("the connection was closed")
            self._received += some
        if end > longest:
            raise WireError(f"not a message: a line of more than {longest} bytes")
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line


class _Seal:
    """HMACs of one direction's lines, one after the other."""

    def __init__(self, key: bytes):
        self._key = key
        self._number = 0

    def next(self, text: bytes) -> bytes:
        self._number += 1
        return hmac.new(self._key, b"%d " % self._number + text, "sha256").hexdigest().encode()


def introduce(channel: Channel, token: str, mine: str, theirs: str) -> None:
    """Proves to be `mine` and has the other end prove to be `theirs`; both ends call it.

    Raises `WireError` when the other end does not know the token.
    """
    number = secrets.token_hex(16)
    channel.send({"number": number})
    asked = channel.receive().get("number")
    if not isinstance(asked, str) or not asked.isascii():
        raise WireError("the other end does not belong to this launch")
    channel.send({"proof": _proof(token, f"{mine} {asked}").hex()})
    proof = channel.receive().get("proof")
    expected = _proof(token, f"{theirs} {number}").hex()
    if not isinstance(proof, str) or not hmac.compare_digest(
        proof.encode("ascii", "replace"), expected.encode()
    ):
        raise WireError("the other end does not belong to this launch")
    # Each direction's key hangs on both numbers; the words keep it apart from any proof.
    channel.protect(
        mine=_proof(token, f"said by {mine}: {asked} {number}"),
        theirs=_proof(token, f"said by {theirs}: {number} {asked}"),
    )


def _proof(token: str, text: str) -> bytes:
    return hmac.new(bytes.fromhex(token), text.encode(), "sha256").digest()
