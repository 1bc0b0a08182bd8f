"""The head, with agents that are no more than connections."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress

import pytest

from launcher.command import Command
from launcher.control import head as head_module
from launcher.control import wire
from launcher.control.head import Head
from launcher.control.spec import Spec
from launcher.control.wire import Channel, WireError, introduce
from launcher.exit_codes import CHECKPOINTED
from launcher.ranks.process import RankProcess
from launcher.signals import held_back
from tests.unit.launcher_control import REPOSITORY, TOKEN, a_job, wait_until


class Listening:
    """A head with agents that are no more than connections of this test."""

    def __init__(self, *slots: int, **changes):
        self.asked: list[int] = []
        self.heard = threading.Event()
        self.head = Head(a_job(*slots), TOKEN, 30.0, self.heard.set, self.asked.append, print, **changes)

    def agent(self, index: int, token: str = TOKEN) -> Channel:
        channel = Channel(socket.create_connection(("127.0.0.1", self.head.port)))
        introduce(channel, token, mine="agent", theirs="head")
        channel.send({"index": index, "address": "127.0.0.1"})
        return channel


@pytest.fixture
def listening(monkeypatch):
    monkeypatch.setattr(head_module, "_ASKED_SETTLE_S", 0.2)

    @contextmanager
    def start(*slots: int):
        with held_back() as signals:
            starter = RankProcess(Command("starter", ("sleep", "60"), ()), signals)
            listening = Listening(*slots)
            try:
                with closing(listening.head), listening.head.serving(starter):
                    yield listening
            finally:
                starter.kill_group()
                starter.reap()

    return start


def next_order(channel: Channel) -> wire.Message:
    while (message := channel.receive())["do"] == "beat":
        pass
    return message


class TestHead:
    def test_a_second_agent_of_a_host_and_unknown_ones_are_sent_away(self, listening):
        with listening(1, 1) as here:
            first = here.agent(0)
            first.send({"says": "started", "rank": 0, "pid": 7})
            wait_until(lambda: here.head.ranks()[0].pid == 7, "it was there before the others")
            for index in (0, 2, -1, "x", None):
                other = here.agent(index)
                with pytest.raises(WireError):
                    while True:
                        other.receive()
            second = here.agent(1)
            assert next_order(first) == {"do": "choose", "peers": [], "port": None}
            first.send({"says": "master", "address": "127.0.0.1", "port": 21000})
            assert next_order(second) == {"do": "start", "address": "127.0.0.1", "port": 21000}
            assert next_order(first)["do"] == "start"
        assert next_order(first)["do"] == next_order(second)["do"] == "leave"

    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGUSR1, CHECKPOINTED)]
    )
    def test_nothing_is_started_any_more_after_a_signal(self, listening, number, code):
        with listening(1, 1) as here:
            first = here.agent(0)
            ranks = here.head.ranks()
            ranks[1].send(number)
            assert (ranks[0].ended(), ranks[1].ended().code) == (None, code)
            second = here.agent(1)
            assert next_order(first)["do"] == "choose"
            first.send({"says": "master", "address": "127.0.0.1", "port": 21000})
            first.send({"says": "asked", "number": signal.SIGUSR2})
            wait_until(lambda: here.asked == [signal.SIGUSR2], "it has heard of the master")
        assert next_order(first)["do"] == next_order(second)["do"] == "leave"

    def test_agents_that_come_after_the_end_are_told_to_leave(self):
        here = Listening(1, 1, 1)
        with closing(here.head), held_back() as signals:
            starter = RankProcess(Command("starter", ("true",), ()), signals)
            with here.head.serving(starter):
                pass
            assert [next_order(here.agent(index))["do"] for index in range(3)] == ["leave"] * 3
            starter.reap()

    def test_what_all_hosts_are_asked_is_one_request(self, listening):
        with listening(1, 1, 1) as here:
            agents = [here.agent(index) for index in range(3)]
            for agent in agents:
                agent.send({"says": "asked", "number": signal.SIGTERM})
            wait_until(lambda: bool(here.asked), "it is passed on")
            time.sleep(0.3)
        assert here.asked == [signal.SIGTERM]

    def test_a_starter_that_ends_the_others_when_a_host_is_lost_has_not_asked(self, listening, monkeypatch):
        settled: list[Timer] = []

        class Timer(threading.Timer):
            """Its time is up when the test says so, with the loss seen before."""

            def start(self) -> None:
                settled.append(self)

        with listening(1, 1) as here:
            first, second = here.agent(0), here.agent(1)
            monkeypatch.setattr(head_module.threading, "Timer", Timer)
            second.send({"says": "asked", "number": signal.SIGTERM})
            wait_until(lambda: bool(settled), "the request is heard")
            first.close()
            wait_until(lambda: here.head.ranks()[0].ended() is not None, "the loss is seen")
            (timer,) = settled
            timer.function(*timer.args)
        assert here.asked == []

    def test_a_message_that_makes_no_sense_is_the_end_of_that_host(self, listening):
        with listening(1, 1) as here:
            agent = here.agent(1)
            agent.send({"says": "beat", "ranks": []})
            wait_until(lambda: here.head.ranks()[1].ended() is not None, "the host is given up")
            assert here.head.ranks()[0].ended() is None
            assert "nothing more was heard of b: " in here.head.ranks()[1].ended().lost

    def test_more_strangers_than_there_may_be_do_not_keep_an_agent_out(self, listening, monkeypatch):
        monkeypatch.setattr(head_module, "_MOST_STRANGERS", 3)
        monkeypatch.setattr(wire, "SILENCE_S", 0.5)
        with listening(1) as here:
            strangers = [socket.create_connection(("127.0.0.1", here.head.port)) for _ in range(10)]
            # Its own patience is as short as the head's with strangers: it comes again until they are out.
            deadline_s = time.monotonic() + 60
            order = None
            while order is None:
                assert time.monotonic() < deadline_s
                with suppress(WireError):
                    channel = here.agent(0)
                    # It is in: what it is told may take its time.
                    monkeypatch.setattr(wire, "SILENCE_S", 60.0)
                    channel._connection.settimeout(60.0)
                    order = next_order(channel)
                monkeypatch.setattr(wire, "SILENCE_S", 0.5)
            assert order["do"] == "choose"
            for stranger in strangers:
                stranger.close()

    def test_many_hosts_have_the_files_they_need(self):
        """In a process of its own, as limits are a process's."""
        code = """
import resource, sys
from pathlib import Path
from launcher.control.head import Head
from launcher.errors import LauncherError
from launcher.job import Job, Node

job = Job(tuple(Node(f"n{n}", 8) for n in range(1000)), "p", Path("s"), (), (), "", 0)
for hard in (8000, 1500):
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        Head(job, "", 1, print, print, print).close()
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 2000)
    except LauncherError as error:
        print(error)
"""
        words = [sys.executable, "-c", code]
        run = subprocess.run(words, check=True, cwd=REPOSITORY, capture_output=True, text=True)
        enough, too_few = run.stdout.splitlines()
        assert enough == "True"
        assert "this machine allows a process 1500 (ulimit -Hn)" in too_few

    def test_no_way_to_the_head_is_said(self, tmp_path):
        code = (
            "import sys; from launcher.control import agent, spec; agent._CONNECT_S = 0.2\n"
            "agent.run(spec.Spec.from_json(sys.argv[1]), 0)"
        )
        with socket.socket() as deaf:  # it keeps its port and does not listen there
            deaf.bind(("127.0.0.1", 0))
            port = deaf.getsockname()[1]
            spec = Spec("id", TOKEN, ("127.0.0.1",), port, 0, "/", a_job(1))
            run = subprocess.run(
                [sys.executable, "-c", code, spec.to_json()], cwd=REPOSITORY, capture_output=True, text=True
            )
        assert f"cannot reach the launcher on port {port} (127.0.0.1: [Errno 111]" in run.stderr
