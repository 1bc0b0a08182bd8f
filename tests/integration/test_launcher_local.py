"""The launcher with real processes: exit codes, signals, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest
from launcher_runs import SLEEP, assert_all_gone, is_running, starting, wait_until


@pytest.fixture
def start(tmp_path):
    with starting(tmp_path) as start_one:
        yield start_one


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
peer = Path(f"/proc/{json.loads((folder / 'ready-1').read_text())[0]}/stat")
while peer.read_text().rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.01)
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
    frozen = psutil.Process(pids[1][0])
    wait_until(lambda: frozen.status() == psutil.STATUS_STOPPED, "rank 1 to stand still")
    run.launcher.send_signal(signal.SIGINT)
    assert run.result()[0] == 130
    assert_all_gone(pids)


def test_the_third_ctrl_c_kills_ranks_that_go_on(start):
    body = """
num_asked = 0
def asked(number, frame):
    global num_asked
    num_asked += 1
    (folder / f"asked-{num_asked}-{rank}").touch()
signal.signal(signal.SIGINT, asked)
"""
    run = start(body + SLEEP, 2)
    pids = run.pids()
    run.launcher.send_signal(signal.SIGINT)
    run.wait_for_line("SIGINT: ranks have 900 s")
    run.launcher.send_signal(signal.SIGINT)  # an echo of the first
    for number in (2, 3):
        # The launcher has had the one before when a rank has: from then on its second counts.
        wait_until((run.folder / f"asked-{number}-0").exists, f"rank 0 to be asked {number} times")
        time.sleep(1.2)
        assert run.launcher.poll() is None
        run.launcher.send_signal(signal.SIGINT)
    assert run.result()[0] == 130
    assert_all_gone(pids)


def test_ranks_may_checkpoint_when_asked_to_stop(start):
    body = """
def save(signum, frame):
    time.sleep(0.2 * rank)
    (folder / f"saved-{rank}").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
ready()
sleep()
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
