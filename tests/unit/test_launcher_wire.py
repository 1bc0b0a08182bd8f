"""What head and agents say to each other, over real sockets, and who else may try."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from launcher.control import wire
from launcher.control.wire import Channel, WireError, introduce
from tests.unit.launcher_control import TOKEN

OTHER_TOKEN = "cd" * 32


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    with one, other:
        yield one, other


class TestWire:
    @staticmethod
    def meet(one: Channel, other: Channel, token: str = TOKEN, other_token: str = TOKEN) -> list[str]:
        """Has both introduce themselves; what they found wrong."""
        faults: list[str] = []

        def enter(channel: Channel, token: str, mine: str, theirs: str) -> None:
            try:
                introduce(channel, token, mine, theirs)
            except WireError as error:
                faults.append(str(error))
                channel.close()

        thread = threading.Thread(target=enter, args=(other, other_token, "agent", "head"))
        thread.start()
        enter(one, token, "head", "agent")
        thread.join()
        return faults

    def test_messages_arrive_in_their_order_and_as_they_are(self):
        with connection() as (one, other):
            head, agent = Channel(one), Channel(other)
            assert self.meet(head, agent) == []
            messages = [{"text": "问 \u2028 \n \udcff"}, {"many": ["x" * 1000] * 900}, {}]
            for message in messages:
                agent.send(message)
            assert [head.receive() for _ in messages] == messages

    def test_another_token_is_found_out_by_both(self):
        with connection() as (one, other):
            faults = self.meet(Channel(one), Channel(other), TOKEN, OTHER_TOKEN)
        assert "the other end does not belong to this launch" in faults
        assert len(faults) == 2

    def test_a_proof_is_no_good_when_it_is_sent_back(self):
        """Somebody without the token who says what he hears."""
        with connection() as (one, other):
            thread = threading.Thread(target=self._echo, args=(other,))
            thread.start()
            with pytest.raises(WireError, match="does not belong to this launch"):
                introduce(Channel(one), TOKEN, "head", "agent")
            one.shutdown(socket.SHUT_RDWR)
            thread.join()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        while heard := connection.recv(4096):
            with suppress(OSError):
                connection.sendall(heard)

    @pytest.mark.parametrize(
        "rubbish",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x00\xff\xfe\n",
            b"[1]\n",
            b"[" * 1000 + b"\n",
            b'{"number": 3}\n',
            b'{"number": "\\ud800"}\n',
            b'{"number": "1"}\n{"proof": "\\ud800"}\n',
            b'{"number": "1"}\n{"proof": 5}\n',
            b'{"number": "' + b"1" * 5000 + b'"}\n',
            b"x" * 100_000,
            b'{"number"',
        ],
    )
    def test_rubbish_is_refused_at_once(self, rubbish):
        with connection() as (one, other):
            channel = Channel(one)
            other.sendall(rubbish)
            other.shutdown(socket.SHUT_WR)
            with pytest.raises(WireError):
                introduce(channel, TOKEN, "head", "agent")

    def test_a_line_without_end_is_not_waited_for(self):
        with connection() as (one, other):
            other.sendall(b"x" * 2000)
            with pytest.raises(WireError, match="a line of more than 1024 bytes"):
                Channel(one).receive()

    def test_silence_and_byte_after_byte(self, monkeypatch):
        monkeypatch.setattr(wire, "SILENCE_S", 0.2)
        with connection() as (one, _), pytest.raises(WireError, match=r"silent for 0\.2 s"):
            introduce(Channel(one), TOKEN, "head", "agent")
        with connection() as (one, other):
            done = threading.Event()

            def drip() -> None:
                while not done.wait(0.05):
                    other.send(b" ")

            thread = threading.Thread(target=drip)
            thread.start()
            with pytest.raises(WireError, match=r"silent for 0\.2 s"):
                introduce(Channel(one), TOKEN, "head", "agent")
            done.set()
            thread.join()

    def test_closing_wakes_whoever_receives(self):
        with connection() as (one, _):
            channel = Channel(one)
            threading.Timer(0.1, channel.close).start()
            with pytest.raises(WireError):
                channel.receive()
            with pytest.raises(WireError, match="cannot send"):
                channel.send({})

    def test_the_other_end_is_gone(self):
        with connection() as (one, other):
            other.close()
            with pytest.raises(WireError, match="the connection was closed"):
                Channel(one).receive()

    @pytest.mark.parametrize("change", ["another message", "said again", "sent back", "without a seal"])
    def test_who_sits_in_between_cannot_say_a_word(self, change):
        """All goes through his hands: two connections, and he passes on what he likes."""
        with connection() as (one, left), connection() as (right, other):
            agent, head = Channel(one), Channel(other)
            lines = {right: left.makefile("rb"), left: right.makefile("rb")}

            def carry(number: int) -> None:
                for _ in range(number):
                    for towards, source in lines.items():
                        towards.sendall(source.readline())

            thread = threading.Thread(target=carry, args=(2,))
            thread.start()
            assert self.meet(head, agent) == []
            thread.join()
            agent.send({"says": "beat"})
            line = lines[right].readline()
            if change == "another message":
                right.sendall(line.replace(b"beat", b"meet"))
            elif change == "said again":
                right.sendall(line)
                assert head.receive() == {"says": "beat"}
                right.sendall(line)
            elif change == "sent back":
                left.sendall(line)
                head = agent
            else:
                right.sendall(b'{"says": "beat"}\n')
            with pytest.raises(WireError, match="does not come from the other end"):
                head.receive()
