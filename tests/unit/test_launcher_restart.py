"""When a crashed job is started again, and where its progress is seen."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import run_folder
from launcher.run_folder import RunFolder
from launcher.shell import here, on_all
from launcher.supervision.job_end import JobEnd
from launcher.supervision.restart import Policy, Progress, after_crash, run


@pytest.mark.parametrize(
    ("before", "newest", "max_restarts", "expected"),
    [
        # No checkpoint yet.
        (Progress(None, 0), None, 2, Progress(None, 1)),
        (Progress(None, 1), None, 2, Progress(None, 2)),
        (Progress(None, 2), None, 2, None),
        # Without restarts allowed, progress changes nothing.
        (Progress(None, 0), 100, 0, None),
        # A new one, the first or a further one, resets the count.
        (Progress(None, 2), 100, 2, Progress(100, 1)),
        (Progress(100, 2), 200, 2, Progress(200, 1)),
        (Progress(100, 2), 101, 2, Progress(101, 1)),
        # The same one, an older one, or none any more is no progress, and the newest is remembered.
        (Progress(100, 1), 100, 2, Progress(100, 2)),
        (Progress(100, 2), 100, 2, None),
        (Progress(100, 1), 50, 2, Progress(100, 2)),
        (Progress(100, 2), 50, 2, None),
        (Progress(100, 1), None, 2, Progress(100, 2)),
    ],
)
def test_after_crash(before, newest, max_restarts, expected):
    assert after_crash(before, newest, max_restarts) == expected


def test_a_job_whose_checkpoints_come_and_go_does_not_crash_for_ever():
    progress: Progress | None = Progress(None)
    for number in range(100):
        progress = after_crash(progress, 100 if number % 2 else 50, max_restarts=3)
        if progress is None:
            break
    assert progress is None


def test_waits_double_up_to_a_minute():
    policy = Policy(max_restarts=10_000)
    assert [policy.delay_s(number) for number in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert policy.delay_s(10_000) == 60
    assert Policy(1, first_delay_s=0.25).delay_s(3) == 1.0
    assert Policy(1, first_delay_s=0.0).delay_s(10_000) == 0.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--output_dir", "runs/一 个", "--seed", "1"], "runs/一 个"),
        (["--seed", "1", "--output_dir=runs/a=b"], "runs/a=b"),
        (["--output-dir", "runs/a"], "runs/a"),
        (["--output_dir", "first", "--output_dir=last"], "last"),
        (["--output_dir=first", "--output_dir", "last"], "last"),
        (["--output_directory", "x", "--my--output_dir=x"], None),
        (["--config", "train.yaml"], None),
        (["--output_dir"], None),
        (["--output_dir="], None),
        ([], None),
    ],
)
def test_the_output_folder_is_read_from_the_scripts_arguments(arguments, expected):
    assert run_folder.find(arguments) == (None if expected is None else RunFolder(Path(expected)))


def make_checkpoint(root: Path, name: str, manifest: bool = True) -> None:
    (root / name).mkdir(parents=True)
    if manifest:
        (root / name / "manifest.json").write_text("{}", encoding="utf-8")


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(tmp_path):
    folder = RunFolder(tmp_path / "运行 1")
    root = folder.checkpoints
    assert folder.newest_step() is None
    root.mkdir(parents=True)
    assert folder.newest_step() is None
    for name in ("step-00000200", "step-00000100", "step-00000030"):
        make_checkpoint(root, name)
    # Clocks differ between hosts: the oldest by its time is the newest.
    os.utime(root / "step-00000200", (0, 0))
    assert folder.newest_step() == 200
    make_checkpoint(root, "step-123456789")
    assert folder.newest_step() == 123_456_789


def test_only_complete_checkpoints_count(tmp_path):
    root = RunFolder(tmp_path).checkpoints
    make_checkpoint(root, "step-00000100")
    make_checkpoint(root, "step-00000200", manifest=False)
    make_checkpoint(root, ".step-00000300.tmp")
    make_checkpoint(root, ".step-00000400.deleted")
    make_checkpoint(root, "step-500")
    make_checkpoint(root, "step-00000600 (copy)")
    (root / "step-00000700").write_text("a file", encoding="utf-8")
    # The pointer may be behind, or gone.
    (root / "latest").write_text("step-00000800\n", encoding="utf-8")
    assert RunFolder(tmp_path).newest_step() == 100


def test_a_file_in_the_place_of_the_folder_holds_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").write_text("", encoding="utf-8")
    assert RunFolder(tmp_path).newest_step() is None


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    (tmp_path / "checkpoints").symlink_to("checkpoints")  # a loop: unreadable for root too
    with pytest.raises(OSError):
        RunFolder(tmp_path).newest_step()


CRASH = JobEnd("crashed", 1, "it crashed", "rank 0 failed")


def test_a_crash_after_the_warning_of_a_time_limit_is_left_for_the_next_job(tmp_path):
    folder = RunFolder(tmp_path)
    asked = replace(CRASH, asked_by=signal.SIGUSR1)
    starts = []

    def start(signals):
        starts.append(signals)
        return asked if len(starts) == 1 else JobEnd("finished", 0, None)

    make_checkpoint(folder.checkpoints, "step-00000100")
    end = run(start, Policy(3, 0.0), folder, lambda line: None)
    assert (end.exit_code, end.asked_by, len(starts)) == (75, signal.SIGUSR1, 1)


def test_without_a_checkpoint_it_is_started_again_all_the_same(tmp_path):
    ends = [replace(CRASH, asked_by=signal.SIGUSR1), JobEnd("finished", 0, None)]
    end = run(lambda signals: ends.pop(0), Policy(3, 0.0), RunFolder(tmp_path), lambda line: None)
    assert end.kind == "finished"


@pytest.mark.parametrize(
    ("number", "kind", "exit_code"),
    [(signal.SIGTERM, "stopped", 143), (signal.SIGUSR1, "checkpointed", 75)],
)
def test_a_signal_while_hosts_are_checked_stops_at_once(number, kind, exit_code):
    begun = []

    def slow(host, command, stdin, limit_s):
        begun.append(host)
        return here(host, command, stdin, limit_s)

    def start(signals):
        signal.raise_signal(number)  # to this thread: others do not hold it back
        on_all(slow, [str(number) for number in range(8)], lambda host: ["sleep", "1"], 5.0, at_once=1)

    end = run(start, Policy(3, 0.0), None, lambda line: None)
    assert (end.kind, end.exit_code, end.asked_by) == (kind, exit_code, number)
    assert "before any rank was started" in end.message
    assert len(begun) < 8
