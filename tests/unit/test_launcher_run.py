"""A job started again and again, on the hosts that are fit for it; and when it is called finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Set
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launcher import __main__ as command_line
from launcher import options, run_folder, shell
from launcher.errors import LauncherError
from launcher.job import Node
from launcher.make_job import make_job
from launcher.place import Place
from launcher.preflight.findings import CHECKS
from launcher.ranks import local
from launcher.ranks.commands import rank_commands
from launcher.run_folder import RunFolder
from launcher.shell import Done, InterruptedWork
from launcher.signals import held_back
from launcher.starts import Starts, finished_for_sure
from launcher.supervision.job_end import JobEnd

REPOSITORY = Path(__file__).resolve().parents[2]
ON_CPU = {"DS_ACCELERATOR": "cpu"}
# Notes who was there, and crashes as often as it is told.
SCRIPT = """
import os, sys
from pathlib import Path

folder = Path(sys.argv[1])
number = len(list(folder.glob("start-*-rank-0")))
if os.environ["RANK"] != "0":
    sys.exit(0)
(folder / f"start-{number}-rank-0").write_text(os.environ["WORLD_SIZE"])
sys.exit(5 if number < int(sys.argv[2]) else 0)
"""


@pytest.fixture(autouse=True)
def others_fail_at_once(monkeypatch):
    monkeypatch.setattr("launcher.supervision.watch._SETTLE_S", 0.1)


class Hosts:
    """A transport whose hosts are all this machine; `gone` are those that cannot be reached."""

    name = "hosts"

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.refuses: Exception | None = None
        self.met_at: list[str] = []

    def shell(self, host, command, stdin, limit_s):
        if host in self.gone:
            return Done(255, "", f"ssh: connect to host {host} port 22: No route to host\n")
        return shell.here(host, command, stdin, limit_s)

    @contextmanager
    def started(self, job, signals, start_limit_s, say):
        if self.refuses is not None:
            raise self.refuses
        self.met_at.append(job.master_address)
        commands = [
            command
            for index in range(len(job.nodes))
            for command in rank_commands(job, index, "127.0.0.1", 29500, os.environ)
        ]
        with local.started(commands, job.logs, signals, has_terminal=True) as ranks:
            yield ranks


class StartsOfThreeHosts:
    """What `run` does with a job of three hosts, start by start."""

    def __init__(self, folder: Path, *flags: str, num_crashes: int = 1):
        self.folder = folder / "a 结果"
        self.folder.mkdir()
        script = folder / "script.py"
        script.write_text(SCRIPT, encoding="utf-8")
        # What this machine has is not what is tested here.
        skips = [word for name in CHECKS if name != "reach" for word in ("--skip", name)]
        words = ["run", *flags, *skips, str(script), str(self.folder), str(num_crashes)]
        chosen = options.parse(words)
        self.hosts = Hosts()
        self.said: list[str] = []
        nodes = tuple(Node(name, 1) for name in ("node1", "node2", "node3"))
        where = Place(self.hosts, nodes)
        job = make_job(chosen, where, None, dict(os.environ) | ON_CPU)
        self._start = Starts(chosen, where, job, None, dict(os.environ) | ON_CPU, self.said.append)

    def next(self) -> JobEnd:
        with held_back() as signals:
            return self.next_with(signals)

    def next_with(self, signals: Set[signal.Signals]) -> JobEnd:
        return self._start(signals)

    def worlds(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.iterdir())]


def test_a_host_that_is_gone_is_left_out_if_that_is_allowed_and_taken_again(tmp_path):
    starts = StartsOfThreeHosts(tmp_path, "--allow-shrink", num_crashes=2)
    assert starts.next().kind == "crashed"
    starts.hosts.gone = {"node2"}
    assert starts.next().kind == "crashed"
    assert [said.split(":")[0] for said in starts.said if said.startswith("going on")] == [
        "going on without node2"
    ]
    starts.hosts.gone = set()
    assert starts.next() == JobEnd("finished", 0, None)
    assert starts.worlds() == ["3", "2", "3"]


def test_an_address_to_meet_at_is_let_go_with_its_host(tmp_path):
    starts = StartsOfThreeHosts(tmp_path, "--allow-shrink", "--master-addr", "10.1.2.3", num_crashes=2)
    starts.next()
    starts.hosts.gone = {"node3"}
    starts.next()
    starts.hosts.gone = {"node1"}
    assert starts.next().kind == "finished"
    assert starts.hosts.met_at == ["10.1.2.3", "10.1.2.3", ""]
    (told,) = [said for said in starts.said if "--master-addr" in said]
    assert told == "--master-addr 10.1.2.3 was for node1; ranks meet at node2's own address now"


def test_a_host_less_changes_no_address_where_none_was_given(tmp_path):
    starts = StartsOfThreeHosts(tmp_path, "--allow-shrink", num_crashes=1)
    starts.next()
    starts.hosts.gone = {"node1"}
    assert starts.next().kind == "finished"
    assert not [said for said in starts.said if "--master-addr" in said]


def test_a_signal_during_the_check_is_heeded_before_anything_starts(tmp_path):
    starts = StartsOfThreeHosts(tmp_path)
    with held_back() as signals:
        signal.raise_signal(signal.SIGUSR1)  # to this thread: others do not hold it back
        with pytest.raises(InterruptedWork):
            starts.next_with(signals)
    assert starts.worlds() == []


def test_otherwise_that_start_counts_as_a_crash(tmp_path):
    starts = StartsOfThreeHosts(tmp_path)
    assert starts.next().kind == "crashed"
    starts.hosts.gone = {"node2", "node3"}
    end = starts.next()
    assert (end.kind, end.exit_code, end.is_crash) == ("lost host", 1, True)
    assert end.failure == "nothing was started, not fit for it: node2 and node3"
    assert "No route to host" in end.message
    assert starts.worlds() == ["3"]


def test_no_host_at_all_is_no_start(tmp_path):
    starts = StartsOfThreeHosts(tmp_path, "--allow-shrink")
    starts.next()
    starts.hosts.gone = {"node1", "node2", "node3"}
    assert starts.next().kind == "lost host"
    assert starts.worlds() == ["3"]


@pytest.mark.parametrize("flags", [[], ["--allow-shrink"]])
def test_the_first_start_wants_all_hosts(tmp_path, flags):
    starts = StartsOfThreeHosts(tmp_path, *flags)
    starts.hosts.gone = {"node3"}
    with pytest.raises(LauncherError, match=r"^nothing was started, not fit for it: node3\.\n[^✗]*✗"):
        starts.next()
    assert starts.worlds() == []


@pytest.mark.parametrize(
    "error", [LauncherError("node2 went away"), FileNotFoundError(2, "No such file", "pdsh")]
)
def test_a_start_that_is_not_possible(tmp_path, error):
    starts = StartsOfThreeHosts(tmp_path)
    starts.hosts.refuses = error
    with pytest.raises(LauncherError, match=r"node2 went away|could not be started: .*'pdsh'"):
        starts.next()
    # What has worked before may work again, with restarts left.
    end = starts.next()
    assert (end.kind, end.is_crash) == ("lost host", True)
    starts.hosts.refuses = None
    assert starts.next().kind == "crashed"


class TestFinishedForSure:
    FINISHED = JobEnd("finished", 0, None)

    @pytest.fixture
    def folder(self, tmp_path) -> RunFolder:
        (tmp_path / "run 一").mkdir()
        return run_folder.find(["--output_dir", str(tmp_path / "run 一")])

    def test_without_a_run_nothing_is_known(self, folder):
        assert finished_for_sure(self.FINISHED, None) == self.FINISHED
        assert finished_for_sure(self.FINISHED, folder) == self.FINISHED

    def test_a_run_that_has_not_written_its_last_file_is_not_finished(self, folder):
        (folder.path / "run.json").touch()
        end = finished_for_sure(self.FINISHED, folder)
        assert (end.kind, end.exit_code, end.is_crash) == ("crashed", 1, True)
        assert f"{folder.path} has no DONE" in end.message
        (folder.path / "DONE").touch()
        assert finished_for_sure(self.FINISHED, folder) == self.FINISHED

    @pytest.mark.parametrize("kind", ["checkpointed", "user error", "hung", "stopped"])
    def test_other_ends_are_left_alone(self, folder, kind):
        (folder.path / "run.json").touch()
        end = JobEnd(kind, 75, "so it is")
        assert finished_for_sure(end, folder) is end


class TestTheLaunchersOwnStreams:
    """Whoever started it may have closed them, or be gone: the job's end is told all the same."""

    @pytest.fixture
    def script(self, tmp_path) -> str:
        path = tmp_path / "script.py"
        path.write_text("import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(9)\n")
        return str(path)

    @pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | true", ">/dev/full 2>&1"])
    def test_closed(self, script, closed, tmp_path):
        """With logs the launcher itself carries what ranks print."""
        run = f'{sys.executable} -m launcher run --num-gpus 2 --grace 1 "$0" --output_dir "$1"'
        line = f"{run} {closed}; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(
            ["bash", "-c", line, script, str(tmp_path / "run 一")],
            cwd=REPOSITORY,
            env=os.environ | ON_CPU,
            check=False,
        )
        assert done.returncode == 9

    def test_a_terminal_that_stands_still(self, script, tmp_path):
        """As after Ctrl-S, but a pipe that nobody reads: the rank's end is seen, and the launcher ends."""
        code = (
            "import sys; from launcher.ranks import output; output._LAST_WORDS_S = 0.1\n"
            "from launcher.__main__ import main; sys.exit(main(['run', '--num-gpus', '1', *sys.argv[1:]]))"
        )
        reader, full = os.pipe()
        try:
            os.set_blocking(full, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(full, bytes(65536))
            os.set_blocking(full, True)
            done = subprocess.run(
                [sys.executable, "-c", code, script, "--output_dir", str(tmp_path / "run")],
                cwd=REPOSITORY,
                env=os.environ | ON_CPU,
                stdout=subprocess.DEVNULL,
                stderr=full,
                check=False,
                timeout=60,
            )
        finally:
            os.close(reader)
            os.close(full)
        assert done.returncode == 9

    def test_a_log_folder_that_cannot_be_made_is_one_paragraph(self, capsys, script, tmp_path, monkeypatch):
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        (tmp_path / "file").touch()
        assert command_line.main(["run", script, "--output_dir", str(tmp_path / "file")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("launcher: the ranks could not be started: [Errno 20] Not a directory: ")
        assert said.count("\n") == 1


def test_where_the_first_start_is_not_possible_slurm_is_asked_whether_that_was_a_preemption(
    tmp_path, monkeypatch, capsys
):
    """As when it ended the sruns of the check: the launcher itself is sent nothing."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    script = tmp_path / "script.py"
    script.touch()
    asked = []
    monkeypatch.setattr("launcher.supervision.requeue.after_run", lambda *given: asked.append(given))

    def red(*_):
        raise LauncherError("nothing was started")

    monkeypatch.setattr("launcher.starts.before_start", red)
    assert command_line.main(["run", "--num-gpus", "1", "--max-requeues", "5", str(script)]) == 2
    ((exit_code, asked_by, _, max_requeues, *_),) = asked
    assert (exit_code, asked_by, max_requeues) == (None, None, 5)
    assert capsys.readouterr().err.count("nothing was started") == 1


def test_signals_are_held_back_until_the_job_is_requeued(tmp_path, monkeypatch):
    """A second SIGUSR1 while slurmctld thinks: it would end the launcher before it has asked."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(75)")
    blocked = []
    monkeypatch.setattr(
        "launcher.supervision.requeue.after_run",
        lambda *_: blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert command_line.main(["run", "--num-gpus", "1", str(script)]) == 75
    assert blocked[0] >= {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
