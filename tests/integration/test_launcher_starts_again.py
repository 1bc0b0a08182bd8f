"""A launcher whose ranks crash: started again from where they got to, until they get no further."""

from __future__ import annotations

import signal

import pytest
from launcher_runs import PATIENCE_S, SLEEP, assert_all_gone, starting, wait_until


@pytest.fixture
def start(tmp_path):
    with starting(tmp_path) as start_one:
        yield start_one


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
    assert "--output_dir is neither among the script's own arguments" in first
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
