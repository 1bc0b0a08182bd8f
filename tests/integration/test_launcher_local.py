"""The launcher with real processes: exit codes, signals, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Longest wait for what must happen soon, in seconds; generous, the machine may be busy.
PATIENCE_S = 60
# Every rank script begins so: it can say that it is ready, and with which processes.
PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
def ready(*pids):
    (folder / f"tmp-{rank}").write_text(json.dumps([os.getpid(), *pids]))
    (folder / f"tmp-{rank}").rename(folder / f"ready-{rank}")
def say(text):
    os.write(1, f"{text}\\n".encode())  # one write: lines of ranks must not mix
def begin():
    number = 1  # of this start of the job
    while (folder / f"start-{number}-of-{rank}").exists():
        number += 1
    (folder / f"start-{number}-of-{rank}").touch()
    ranks = range(int(os.environ["WORLD_SIZE"]))
    while not all((folder / f"start-{number}-of-{peer}").exists() for peer in ranks):
        time.sleep(0.01)  # nobody fails before everybody has counted
    return number
def checkpoint(step):
    path = folder / "out put" / "checkpoints" / f"step-{step:08}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
def helper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
def sleep():
    while True:
        time.sleep(0.1)  # Python sees a signal of the instant before a sleep only after it
"""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie whose parent has not looked at it yet is not running any more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Run:
    """A launcher with ranks that run a few lines of Python."""

    def __init__(
        self,
        folder: Path,
        body: str,
        num_ranks: int,
        *flags: str,
        ignored: tuple[int, ...] = (),
        arguments: tuple[str, ...] | None = None,
    ):
        self.folder = folder
        self.num_ranks = num_ranks
        if arguments is None:
            arguments = ("--output_dir", str(folder / "out put"))
        script = folder / "rank's 脚本.py"
        script.write_text(PRELUDE + body, encoding="utf-8")

        def dispositions() -> None:
            # Tests may themselves run in the background of a shell, with SIGINT ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for signum in ignored:
                signal.signal(signum, signal.SIG_IGN)

        self.launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "launcher", "run"),
                *("--num-gpus", str(num_ranks), *flags, str(script), str(folder), *arguments),
            ],
            cwd=REPOSITORY,
            env=os.environ | {"DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            preexec_fn=dispositions,
        )

    def pids(self) -> list[list[int]]:
        """For each rank its process and the helpers it told of, once all are ready."""
        files = [self.folder / f"ready-{rank}" for rank in range(self.num_ranks)]
        wait_until(lambda: all(file.exists() for file in files), "all ranks to be ready")
        return [json.loads(file.read_text()) for file in files]

    def starts(self) -> list[int]:
        """How often each rank was started, where ranks count it by `begin()`."""
        return [len(list(self.folder.glob(f"start-*-of-{rank}"))) for rank in range(self.num_ranks)]

    def wait_for_line(self, text: str) -> str:
        """Reads the launcher's stderr up to the line that holds `text`."""
        for line in self.launcher.stderr:
            if text in line:
                return line
        raise AssertionError(f"the launcher ended without saying {text!r}")

    def result(self) -> tuple[int, str, str]:
        out, err = self.launcher.communicate(timeout=PATIENCE_S)
        return self.launcher.returncode, out, err


@pytest.fixture
def start(tmp_path):
    runs: list[Run] = []

    def start_one(body: str, num_ranks: int, *flags: str, **options) -> Run:
        folder = tmp_path / f"blank and 中文 {len(runs)}"
        folder.mkdir()
        runs.append(Run(folder, body, num_ranks, *flags, **options))
        return runs[-1]

    yield start_one
    for run in runs:
        run.launcher.kill()
        run.launcher.communicate()


def assert_all_gone(pids: list[list[int]]) -> None:
    for rank, processes in enumerate(pids):
        for pid in processes:
            wait_until(lambda pid=pid: not is_running(pid), f"process {pid} of rank {rank} to be gone")


SLEEP = "ready(helper()); sleep()"


def test_environment_arguments_and_output_of_the_ranks(start):
    body = """
(folder / f"seen-{rank}").write_text(json.dumps(dict(os.environ)))
say(f"read {sys.stdin.read()!r}")
os.write(2, b"said\\n")
"""
    odd = "a=b 'c' \"d\" $(reboot) 中文"
    run = start(body, 3, "--env", f"ODD={odd}")
    assert run.result() == (0, "read ''\n" * 3, "said\n" * 3)
    environments = [json.loads((run.folder / f"seen-{rank}").read_text()) for rank in range(3)]
    assert [(one["RANK"], one["LOCAL_RANK"]) for one in environments] == [(str(r), str(r)) for r in range(3)]
    for one in environments:
        assert {one["WORLD_SIZE"], one["LOCAL_WORLD_SIZE"], one["LOCAL_SIZE"]} == {"3"}
        assert one["MASTER_ADDR"] == "127.0.0.1"
        assert one["ODD"] == odd
        assert one["DS_ACCELERATOR"] == "cpu"
        assert int(one["OMP_NUM_THREADS"]) >= 1
    assert len({one["MASTER_PORT"] for one in environments}) == 1


@pytest.mark.parametrize(("code", "said"), [(2, ""), (5, "rank 1 (process ")])
def test_a_failing_rank_ends_the_others_and_gives_the_exit_code(start, code, said):
    run = start(f"{SLEEP} if rank == 0 else (ready(), sys.exit({code}))", 2)
    pids = run.pids()
    returned, _, err = run.result()
    assert returned == code
    assert (said in err) if said else err == ""
    assert_all_gone(pids)


def test_a_user_error_counts_though_a_peer_fails_first(start):
    body = """
if rank == 1:
    ready()
    sys.exit(1)
while not (folder / "ready-1").exists():
    time.sleep(0.01)
time.sleep(0.3)
print("one paragraph", file=sys.stderr)
sys.exit(2)
"""
    assert start(body, 2).result() == (2, "", "one paragraph\n")


def test_a_killed_rank_is_named(start):
    run = start(SLEEP, 3)
    pids = run.pids()
    os.kill(pids[2][0], signal.SIGKILL)
    code, _, err = run.result()
    assert code == 137
    assert f"rank 2 (process {pids[2][0]})" in err
    assert "SIGKILL" in err
    assert_all_gone(pids)


def test_a_rank_deaf_to_sigterm_is_killed_after_the_grace(start):
    run = start(f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}", 2, "--grace", "0.3")
    pids = run.pids()
    os.kill(pids[0][0], signal.SIGKILL)
    assert run.result()[0] == 137
    assert_all_gone(pids)


def test_a_killed_launcher_leaves_nothing_behind(start):
    run = start(f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}", 3)
    pids = run.pids()
    run.launcher.kill()
    assert_all_gone(pids)


def test_no_rank_outlives_the_launcher_even_without_the_keeper(start):
    run = start("ready(); time.sleep(600)", 2)
    pids = run.pids()
    ranks = {processes[0] for processes in pids}
    keepers = [child for child in psutil.Process(run.launcher.pid).children() if child.pid not in ranks]
    assert len(keepers) == 1
    keepers[0].kill()
    wait_until(lambda: not is_running(keepers[0].pid), "the keeper to be gone")
    run.launcher.kill()
    assert_all_gone(pids)


def test_a_job_whose_keeper_was_killed_still_ends_well(start):
    run = start("ready()\nwhile not (folder / 'go').exists(): time.sleep(0.01)", 1)
    pids = run.pids()
    for child in psutil.Process(run.launcher.pid).children():
        if child.pid != pids[0][0]:
            child.kill()
    (run.folder / "go").touch()
    assert run.result() == (0, "", "")


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_stopped_launcher_stops_everything(start, signum, code):
    run = start(SLEEP, 2)
    pids = run.pids()
    run.launcher.send_signal(signum)
    returned, _, err = run.result()
    assert returned == code
    assert f"ended by {signum.name}" in err
    assert_all_gone(pids)


def test_a_frozen_rank_does_not_hold_up_ctrl_c(start):
    run = start(SLEEP, 2, "--grace", "0.3")
    pids = run.pids()
    os.kill(pids[1][0], signal.SIGSTOP)
    run.launcher.send_signal(signal.SIGINT)
    assert run.result()[0] == 130
    assert_all_gone(pids)


def test_the_third_ctrl_c_kills_ranks_that_go_on(start):
    run = start("signal.signal(signal.SIGINT, lambda *_: (folder / 'asked').touch()); " + SLEEP, 2)
    pids = run.pids()
    run.launcher.send_signal(signal.SIGINT)
    wait_until((run.folder / "asked").exists, "the ranks to be asked")
    run.launcher.send_signal(signal.SIGINT)  # an echo of the first
    for _ in range(2):
        time.sleep(1.2)
        assert run.launcher.poll() is None
        run.launcher.send_signal(signal.SIGINT)
    code, _, err = run.result()
    assert code == 130
    assert "SIGINT: ranks have 900 s" in err
    assert_all_gone(pids)


def test_ranks_may_checkpoint_when_asked_to_stop(start):
    body = """
def save(signum, frame):
    time.sleep(0.2 * rank)
    (folder / f"saved-{rank}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
ready()
time.sleep(600)
"""
    run = start(body, 3)
    run.pids()
    run.launcher.send_signal(signal.SIGTERM)
    code, _, err = run.result()
    assert code == 75
    assert "checkpointed" in err
    assert all((run.folder / f"saved-{rank}").exists() for rank in range(3))


def test_the_last_rank_to_checkpoint_is_left_in_peace(start):
    body = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
if rank == 1:
    while not (folder / "ready-0").exists():
        time.sleep(0.01)
    time.sleep(0.5)
ready()
sys.exit(75)
"""
    assert start(body, 2).result()[0] == 75


def test_user_signals_reach_every_rank_and_nothing_ends(start):
    body = """
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append("USR1"))
signal.signal(signal.SIGUSR2, lambda *_: seen.append("USR2"))
ready(helper())
while len(seen) < 2:
    time.sleep(0.01)
say(" ".join([str(rank), *sorted(seen)]))
"""
    run = start(body, 2)
    pids = run.pids()
    run.launcher.send_signal(signal.SIGUSR1)
    run.launcher.send_signal(signal.SIGUSR2)
    code, out, err = run.result()
    assert (code, sorted(out.splitlines()), err) == (0, ["0 USR1 USR2", "1 USR1 USR2"], "")
    # Helpers that a rank leaves behind end with the job.
    assert_all_gone(pids)


def test_an_ignored_hangup_stays_ignored(start):
    body = """
ready()
while not (folder / "go").exists():
    time.sleep(0.01)
print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
"""
    run = start(body, 1, ignored=(signal.SIGHUP,))
    run.pids()
    run.launcher.send_signal(signal.SIGHUP)
    (run.folder / "go").touch()
    assert run.result() == (0, "True\n", "")


def test_ranks_meet(start):
    body = """
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
say(f"{dist.get_rank()} {dist.get_world_size()} {total.item()}")
dist.destroy_process_group()
"""
    code, out, _ = start(body, 2, "--env", "OMP_NUM_THREADS=1").result()
    assert code == 0
    assert sorted(out.splitlines()) == ["0 2 3.0", "1 2 3.0"]


# Rank 1 of the first two starts dies, the first time by a signal.
CRASHES_TWICE = """
number = begin()
if rank == 1 and number == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 1 and number == 2:
    sys.exit(7)
if number < 3:
    time.sleep(600)
"""


def test_a_crashed_job_is_started_again_until_it_finishes(start):
    run = start(CRASHES_TWICE, 2, "--max-restarts", "2", "--restart-delay", "0.1", "--grace", "1")
    code, _, err = run.result()
    assert code == 0
    assert run.starts() == [3, 3]
    first, second = err.splitlines()
    assert first.startswith("launcher: rank 1 (process ") and "ended by SIGKILL" in first
    assert first.endswith(
        "; starting again in 0.1 s from the beginning, there is no checkpoint yet (restart 1 of at most 2 "
        "without a new checkpoint)"
    )
    assert "exit code 7; starting again in 0.2 s from the beginning" in second
    assert "(restart 2 of at most 2 without a new checkpoint)" in second


def test_without_the_flag_a_crash_is_final(start):
    run = start(CRASHES_TWICE, 2)
    assert run.result()[0] == 137
    assert run.starts() == [1, 1]


def test_a_job_without_progress_is_given_up(start):
    run = start("begin(); sys.exit(7)", 1, "--max-restarts", "2", "--restart-delay", "0")
    code, _, err = run.result()
    assert code == 4
    assert run.starts() == [3]
    last = err.splitlines()[-1]
    assert last.startswith("launcher: gave up: crashed again, and 2 restarts in a row brought no new ")
    assert "rank 0 (process " in last and "exit code 7" in last and "do not requeue" in last
    assert len(err.splitlines()) == 3


def test_restarts_that_bring_new_checkpoints_are_not_counted(start):
    body = """
number = begin()
if rank == 0 and number <= 4:
    checkpoint(10 * number)
    sys.exit(7)
if number <= 4:
    time.sleep(600)
"""
    run = start(body, 2, "--max-restarts", "1", "--restart-delay", "0", "--grace", "1")
    code, _, err = run.result()
    assert (code, run.starts()) == (0, [5, 5])
    for number, line in enumerate(err.splitlines(), start=1):
        assert f"from the newest checkpoint, step {10 * number} (restart 1 of at most 1 " in line
    assert len(err.splitlines()) == 4


def test_a_job_that_stops_getting_on_is_given_up(start):
    body = """
number = begin()
if number in (2, 3):
    checkpoint(10 * number)
if number > 3:
    # Begun and never finished: no progress.
    (folder / "out put" / "checkpoints" / f".step-{10 * number:08}.tmp").mkdir()
    (folder / "out put" / "checkpoints" / f"step-{10 * number:08}").mkdir()
sys.exit(7)
"""
    run = start(body, 1, "--max-restarts", "2", "--restart-delay", "0")
    code, _, err = run.result()
    assert (code, run.starts()) == (4, [5])
    assert [line.partition("(restart ")[2][:1] for line in err.splitlines()[:-1]] == ["1", "1", "1", "2"]


def test_checkpoints_from_before_are_no_progress(start):
    earlier = start("checkpoint(500)", 1)
    assert earlier.result()[0] == 0
    arguments = (f"--output_dir={earlier.folder / 'out put'}",)
    run = start("begin(); sys.exit(7)", 1, "--max-restarts", "1", "--restart-delay", "0", arguments=arguments)
    code, _, err = run.result()
    assert (code, run.starts()) == (4, [2])
    assert "from the newest checkpoint, step 500 (restart 1 of at most 1" in err


def test_where_the_output_folder_is_unknown_every_restart_counts(start):
    body = "checkpoint(10 * begin()); sys.exit(7)"
    run = start(body, 1, "--max-restarts", "2", "--restart-delay", "0", arguments=())
    code, _, err = run.result()
    assert (code, run.starts()) == (4, [3])
    first, second, third, last = err.splitlines()
    assert "--output_dir is not among the script's own arguments" in first
    assert "starting again in 0 s (restart 1 of at most 2" in second
    assert "(restart 2 of at most 2" in third
    assert "gave up" in last


@pytest.mark.parametrize("code", [0, 2, 3, 75, 130])
def test_what_a_restart_would_not_mend_is_left(start, code):
    run = start(f"begin(); sys.exit({code})", 2, "--max-restarts", "3", "--restart-delay", "0")
    returned, _, err = run.result()
    assert (returned, run.starts()) == (code, [1, 1])
    assert "starting again" not in err


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_a_signal_before_a_restart_stops_at_once(start, signum, code):
    run = start("begin(); sys.exit(7)", 1, "--max-restarts", "3", "--restart-delay", "60")
    run.wait_for_line("starting again in 60 s")
    run.launcher.send_signal(signum)
    returned, _, err = run.result()
    assert (returned, run.starts()) == (code, [1])
    assert err == f"launcher: ended by {signum.name} before the job was started again; no rank is running.\n"


def test_a_stopped_job_is_not_started_again(start):
    run = start(f"begin(); {SLEEP}", 2, "--max-restarts", "3", "--restart-delay", "0")
    pids = run.pids()
    run.launcher.send_signal(signal.SIGTERM)
    assert run.result()[0] == 143
    assert run.starts() == [1, 1]
    assert_all_gone(pids)


def test_a_job_stopped_while_it_crashes_is_not_started_again(start):
    body = """
begin()
def asked(number, frame):
    (folder / "asked").touch()
signal.signal(signal.SIGTERM, asked)
ready()
while rank == 1:
    time.sleep(0.01)
while not (folder / "ready-1").exists():
    time.sleep(0.01)
sys.exit(7)
"""
    run = start(body, 2, "--max-restarts", "3", "--restart-delay", "0", "--grace", str(PATIENCE_S))
    pids = run.pids()
    # The launcher has seen the crash once it asks the other rank to end.
    wait_until((run.folder / "asked").exists, "rank 1 to be asked to end")
    run.launcher.send_signal(signal.SIGINT)
    code, _, err = run.result()
    assert (code, run.starts()) == (7, [1, 1])
    assert "starting again" not in err
    assert_all_gone(pids)


def test_a_frozen_rank_is_named_and_the_job_started_again(start):
    body = """
number = begin()
ready()
if number == 1 and rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
if number == 1:
    frozen = Path(f"/proc/{json.loads(wait_for('ready-1'))[0]}/stat")
    while frozen.read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    sys.exit(7)  # as when it has waited for the other one until the timeout
"""
    waiting = """
def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.01)
    return (folder / name).read_text()
"""
    run = start(waiting + body, 2, "--max-restarts", "1", "--restart-delay", "0", "--grace", "0.3")
    code, _, err = run.result()
    assert (code, run.starts()) == (0, [2, 2])
    assert "rank 0 (process " in err
    assert "exit code 7, while rank 1 (process " in err


def test_a_restarted_job_meets_again(start):
    body = """
number = begin()
import torch.distributed as dist
dist.init_process_group("gloo")
if number == 1 and rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
dist.barrier()
say(f"{number} {os.environ['MASTER_PORT']}")
dist.destroy_process_group()
"""
    flags = ("--max-restarts", "1", "--restart-delay", "0", "--env", "OMP_NUM_THREADS=1", "--grace", "1")
    code, out, err = start(body, 2, *flags).result()
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["2", "2"]
