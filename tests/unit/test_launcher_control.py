"""The launcher and its agents: real sockets and processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import shell
from launcher.command import Command
from launcher.control import head as head_module
from launcher.control import wire
from launcher.control.head import Head
from launcher.control.spec import VARIABLE, Spec
from launcher.control.wire import Channel, WireError, introduce
from launcher.exit_codes import CHECKPOINTED
from launcher.job import Job, Node
from launcher.ranks.process import RankProcess
from launcher.signals import held_back
from launcher.supervision.watch import Grace, JobEnd, watch
from launcher.transport.remote import RemoteTransport

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN, OTHER_TOKEN = "ab" * 32, "cd" * 32
PATIENCE_S = 20.0

# Starts an agent for each word, as srun does, and lives as long as they do. These report more often.
STARTER = """
import os, subprocess, sys

code = "import sys; from launcher import __main__; from launcher.control import agent; agent.BEAT_S = 0.2; "
words = [sys.executable, "-c", code + "sys.exit(__main__.main(['node']))"]
agents = [
    subprocess.Popen(words, env=os.environ | {"SLURMD_NODENAME": host})
    for host in sys.argv[1:]
]
sys.exit(max(agent.wait() != 0 for agent in agents))
"""
# What every rank does first; `mark` leaves its process id.
BEGIN = """
import json, os, signal, sys, time
from pathlib import Path

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])

def mark(name):
    (folder / "new").mkdir(exist_ok=True)
    fresh = folder / "new" / f"{name}-{rank}"
    fresh.write_text(json.dumps([os.getpid(), os.getppid()]))
    fresh.rename(folder / f"{name}-{rank}")

def note(number, frame):
    mark(f"signal{number}")

signal.signal(signal.SIGUSR1, note)
"""
WAIT = """
Path(os.environ["MEDSFT_HEARTBEAT"]).write_text(json.dumps({"place": "步骤 3"}))
mark("ready")
while True:
    time.sleep(0.1)
"""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def a_job(*slots: int, **changes) -> Job:
    values = {
        "nodes": tuple(Node(host, number) for host, number in zip("abcdefgh", slots, strict=False)),
        "python": sys.executable,
        "script": Path("none.py"),
        "arguments": (),
        "environment": (),
        "master_address": "",
        "master_port": 0,
    }
    return Job(**values | changes)


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


class TestSpec:
    def test_there_and_back(self):
        odd = ("--a b", 'it\'s "q"', "$(reboot)", "", "%h", "中文\n", "\udcff\udc80", "a=b,c")
        job = a_job(
            2,
            1,
            script=Path("my code/训练.py"),
            arguments=odd,
            environment=tuple((f"N{index}", value) for index, value in enumerate(odd)),
            logs=Path("/runs/一 个/logs"),
        )
        job = replace(job, nodes=(*job.nodes, Node("z", 2, devices=(1, 5))))
        spec = Spec("id", TOKEN, ("10.0.0.1", "::1"), 4000, 2, "/my folder/仓库", job)
        assert spec.to_json().isascii()
        assert Spec.from_json(spec.to_json()) == spec
        plain = replace(spec, index=None, job=replace(job, logs=None))
        assert Spec.from_json(plain.to_json()) == plain

    def test_the_token_is_not_shown(self):
        assert TOKEN not in repr(Spec("id", TOKEN, (), 1, None, "/", a_job(1)))

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"job": {}}', "null"])
    def test_other_text_is_refused(self, text):
        with pytest.raises((ValueError, KeyError, TypeError)):
            Spec.from_json(text)


class Launch:
    """A job on "hosts" of this machine, in the block of `launched`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.said: list[str] = []
        self.spec: Spec | None = None

    def marks(self, name: str) -> dict[int, tuple[int, int]]:
        """Rank -> its process id and its agent's."""
        found = self.folder.glob(f"{name}-*")
        return {int(path.name.partition("-")[2]): tuple(json.loads(path.read_text())) for path in found}

    def wait_for(self, name: str, number: int) -> dict[int, tuple[int, int]]:
        wait_until(lambda: len(self.marks(name)) == number, f"{number} ranks say {name}")
        return self.marks(name)


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Starts a job; gives what is known of it, its ranks, and a function that watches it to its end."""
    monkeypatch.setattr("launcher.supervision.watch._SETTLE_S", 0.3)
    monkeypatch.setattr("launcher.supervision.watch._LOOK_S", 0.1)
    folder = tmp_path / "blank 中文"
    folder.mkdir()

    @contextmanager
    def start(body: str, *slots: int, comes: str = "abcdefgh", start_limit_s: float = 30.0, **changes):
        launch = Launch(folder)
        script = folder / "rank's 脚本.py"
        script.write_text(BEGIN + body, encoding="utf-8")
        job = a_job(*slots, script=script, arguments=(str(folder),), **changes)

        def command(spec: Spec) -> Command:
            launch.spec = spec
            hosts = [node.host for node in job.nodes if node.host in comes]
            words = (sys.executable, "-c", STARTER, *hosts)
            return Command("starter", words, ((VARIABLE, spec.to_json()),))

        transport = RemoteTransport("here", command, shell.here, delivers=False)
        with (
            held_back() as signals,
            transport.started(job, signals, start_limit_s, launch.said.append) as ranks,
        ):
            yield launch, ranks, lambda: watch(ranks, signals, Grace(3, 10), 300, launch.said.append)

    return start


class TestHeadAndAgents:
    def test_ranks_start_when_all_agents_are_there_and_their_ends_are_told(self, launched, tmp_path):
        body = """
(folder / f"env-{rank}").write_text(json.dumps(dict(os.environ)))
print(f"rank {rank} 说")
"""
        odd = (("ODD", "a b'c\"d $(touch x) 中文"), ("EMPTY", ""))
        logs = tmp_path / "logs 记录"
        with launched(body, 2, 1, environment=odd, logs=logs) as (launch, ranks, to_its_end):
            assert [(rank.name, rank.host) for rank in ranks] == [
                ("rank 0 on a", "a"),
                ("rank 1 on a", "a"),
                ("rank 2 on b", "b"),
            ]
            assert to_its_end() == JobEnd("finished", 0, None)
            assert all(rank.pid > 0 for rank in ranks)
        environments = [json.loads((launch.folder / f"env-{rank}").read_text()) for rank in range(3)]
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "ODD", "EMPTY")
        of_both = ("3", odd[0][1], "")
        assert [tuple(each[name] for name in names) for each in environments] == [
            ("0", "0", "3", "2", "0", *of_both[1:]),
            ("1", "1", "3", "2", "0", *of_both[1:]),
            ("2", "0", "3", "1", "1", *of_both[1:]),
        ]
        (address,) = {each["MASTER_ADDR"] for each in environments}
        (port,) = {each["MASTER_PORT"] for each in environments}
        assert (address, 20000 <= int(port) < 30000) == ("127.0.0.1", True)
        # What starts ranks is nothing that they should know.
        assert not any(VARIABLE in each for each in environments)
        assert not any(launch.spec.token in json.dumps(each) for each in environments)
        assert "rank 2 说\n" in (logs / "rank-00002.log").read_text(encoding="utf-8")
        assert launch.said == []
        # Nobody listens any more, not even to finish what it was in.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", launch.spec.port), timeout=5)

    def test_address_and_port_as_told_and_another_one_if_it_is_taken(self, launched):
        body = '(folder / f"env-{rank}").write_text(os.environ["MASTER_ADDR"] + os.environ["MASTER_PORT"])'
        with socket.create_server(("", 0)) as server:
            taken = server.getsockname()[1]
            with launched(body, 1, 1, master_address="10.1.2.3", master_port=taken) as (
                launch,
                _,
                to_its_end,
            ):
                assert to_its_end().kind == "finished"
        (told,) = launch.said
        assert told.startswith(f"port {taken} is taken; using ")
        port = told.split()[-2]
        assert [(launch.folder / f"env-{rank}").read_text() for rank in (0, 1)] == [f"10.1.2.3{port}"] * 2

    def test_a_rank_that_fails_is_named_with_its_last_lines(self, launched):
        """The last one is longer than a message may be."""
        body = """
if rank == 2:
    print("before 之前", flush=True)
    print("x" * 3_000_000, file=sys.stderr)
    sys.exit(7)
time.sleep(60)
"""
        with launched(body, 2, 1) as (launch, _, to_its_end):
            end = to_its_end()
        assert (end.kind, end.exit_code) == ("crashed", 7)
        assert end.failure.startswith("rank 2 on b (process ")
        assert any(said.startswith("rank 2 on b printed last:\n") for said in launch.said)
        assert max(len(said) for said in launch.said) < 50_000

    def test_signals_silence_frozen_ranks_and_strangers(self, launched):
        """Strangers come before the start and stay: one says nothing, others rubbish."""
        with launched(WAIT, 2, 1) as (launch, ranks, to_its_end):
            strangers = [socket.create_connection(("127.0.0.1", launch.spec.port)) for _ in range(20)]
            for stranger in strangers[5:]:
                with suppress(OSError):
                    stranger.sendall(b"[" * 900_000 + b"\n" if stranger is strangers[-1] else b"HELO\n\n\n")
            ready = launch.wait_for("ready", 3)
            ranks[2].send(signal.SIGUSR1)
            launch.wait_for(f"signal{signal.SIGUSR1:d}", 1)
            assert launch.marks(f"signal{signal.SIGUSR1:d}").keys() == {2}
            wait_until(lambda: [rank.pid for rank in ranks] == [ready[n][0] for n in range(3)], "pids known")
            wait_until(lambda: ranks[1].silence() is not None, "heartbeats are told")
            assert ranks[1].silence().place == "步骤 3"
            assert ranks[1].silence().still_s >= 0.0
            assert [rank.is_frozen() for rank in ranks] == [False] * 3
            os.kill(ready[1][0], signal.SIGSTOP)
            wait_until(lambda: [rank.is_frozen() for rank in ranks] == [False, True, False], "frozen is told")
            os.kill(ready[1][0], signal.SIGCONT)
            # A scheduler asks every host at once: one request, for the job.
            for agent in {agent for _, agent in ready.values()}:
                os.kill(agent, signal.SIGTERM)
            end = to_its_end()
            for stranger in strangers:
                stranger.close()
        assert (end.kind, end.exit_code, end.asked_by) == ("stopped", 143, signal.SIGTERM)
        assert len([said for said in launch.said if said.startswith("SIGTERM: ranks have 10 s")]) == 1
        assert not any(is_running(pid) for pid, _ in ready.values())

    def test_an_agent_that_never_comes_is_named_and_nothing_starts(self, launched):
        with launched('mark("ready")', 1, 1, comes="a", start_limit_s=0.5) as (launch, _, to_its_end):
            end = to_its_end()
        assert end.kind == "lost host"
        assert "b did not answer within 0.5 s" in end.message
        assert launch.marks("ready") == {}

    def test_an_agent_that_dies_takes_its_ranks_along(self, launched):
        with launched(WAIT, 1, 2) as (launch, _, to_its_end):
            ready = launch.wait_for("ready", 3)
            os.kill(ready[2][1], signal.SIGKILL)
            end = to_its_end()
            wait_until(lambda: not any(is_running(ready[rank][0]) for rank in (1, 2)), "its ranks are gone")
        assert (end.kind, end.exit_code) == ("lost host", 1)
        assert "on b is lost" in end.message
        assert "nothing more was heard of b: the connection " in end.message
        assert not is_running(ready[0][0])

    def test_a_starter_that_ends_is_named(self, launched):
        with launched("", 1, 1, comes="") as (_, _, to_its_end):
            end = to_its_end()
        assert end.kind == "lost host"
        assert "starter (process " in end.message

    def test_ranks_that_cannot_start(self, launched):
        with launched("", 1, 1, python="/no/such python") as (_, _, to_its_end):
            end = to_its_end()
        assert end.kind == "lost host"
        assert "the ranks could not be started: [Errno 2] No such file or directory: '/no/such" in end.message

    def test_nothing_outlives_a_head_that_is_killed(self, tmp_path):
        folder = tmp_path / "a b"
        folder.mkdir()
        (folder / "rank.py").write_text(BEGIN + WAIT, encoding="utf-8")
        driver = f"""
import sys
from pathlib import Path
from launcher import shell
from launcher.command import Command
from launcher.control.spec import VARIABLE
from launcher.job import Job, Node
from launcher.signals import held_back
from launcher.supervision.watch import Grace, watch
from launcher.transport.remote import RemoteTransport

nodes = (Node("a", 1), Node("b", 1))
job = Job(nodes, sys.executable, Path({str(folder / "rank.py")!r}), ({str(folder)!r},), (), "", 0)
words = ("setsid", "--wait", sys.executable, "-c", {STARTER!r}, "a", "b")
command = lambda spec: Command("starter", words, ((VARIABLE, spec.to_json()),))
transport = RemoteTransport("here", command, shell.here, delivers=False)
with held_back() as signals, transport.started(job, signals, 30, print) as ranks:
    watch(ranks, signals, Grace(3, 10), 300, print)
"""
        launch = Launch(folder)
        with subprocess.Popen([sys.executable, "-c", driver], cwd=REPOSITORY) as process:
            ready = launch.wait_for("ready", 2)
            process.kill()
        pids = [pid for pair in ready.values() for pid in pair]
        wait_until(lambda: not any(map(is_running, pids)), "ranks and agents are gone")


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

    def test_a_starter_that_ends_the_others_when_a_host_is_lost_has_not_asked(self, listening):
        with listening(1, 1) as here:
            first, second = here.agent(0), here.agent(1)
            second.send({"says": "asked", "number": signal.SIGTERM})
            first.close()
            wait_until(lambda: here.head.ranks()[0].ended() is not None, "the loss is seen")
            time.sleep(0.4)
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
            deadline_s = time.monotonic() + 30
            channel = None
            while channel is None:
                with suppress(WireError):
                    channel = here.agent(0)
                assert time.monotonic() < deadline_s
            assert next_order(channel)["do"] == "choose"
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
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        spec = Spec("id", TOKEN, ("127.0.0.1",), port, 0, "/", a_job(1))
        code = (
            "import sys; from launcher.control import agent, spec; agent._CONNECT_S = 0.2\n"
            "agent.run(spec.Spec.from_json(sys.argv[1]), 0)"
        )
        run = subprocess.run(
            [sys.executable, "-c", code, spec.to_json()], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert f"cannot reach the launcher on port {port} (127.0.0.1: [Errno 111]" in run.stderr
