"""The head and its agents, with ranks: real sockets and processes on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launcher import shell
from launcher.command import Command
from launcher.control.spec import VARIABLE, Spec
from launcher.signals import held_back
from launcher.supervision.job_end import JobEnd
from launcher.supervision.watch import Grace, watch
from launcher.transport.remote import RemoteTransport
from tests.unit.launcher_control import REPOSITORY, a_job, wait_until

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


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
    def start(body: str, *slots: int, comes: str = "abcdefgh", **changes):
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
            transport.started(job, signals, 60.0, launch.said.append) as ranks,
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
            # The rank's file is not written in one go: the first look may find it empty.
            wait_until(
                lambda: ranks[1].silence() and ranks[1].silence().place == "步骤 3", "heartbeats are told"
            )
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
        with launched('mark("ready")', 1, 1, comes="a") as (launch, ranks, to_its_end):
            head = ranks[0]._head
            wait_until(lambda: head._hosts[0].channel is not None, "the agent of a is there")
            head._start_limit_s = 0.5
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
