"""SIGKILL in the middle of saves: at every point of one, and at random times."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from campaign import NUM_STEPS, Campaign, leftovers, resumed_step
from jobs import committed, kill, last_step
from runs import REPOSITORY, clean_environment
from tally import Tally

from medsft.checkpoint.crash_points import POINTS, VARIABLE
from medsft.checkpoint.layout import deleted_folder, temporary_folder

_SAVE_STEPS = 2
# Until then the folder has another name, or is about to get one.
_UNCOMMITTED = ("begin", "shard-half", "shard-written", "before-manifest", "before-rename")
_DELETING = ("before-delete", "in-delete")
# Two checkpoints are kept. The first three kills let each save commit and none delete, so that the next two
# have something to delete.
_AFTER_COMMIT = tuple(point for point in POINTS if point not in (*_UNCOMMITTED, *_DELETING))


def kill_while_saving(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 4: at every point of a save; at random times of a training; at random times of saves on end."""
    points = [(point, 0) for point in (*_AFTER_COMMIT, *_DELETING, *_UNCOMMITTED)]
    points += [("shard-half", 1), ("shard-written", 1)]
    assert {point for point, _ in points} == set(POINTS)
    _at_points(campaign, tally, [("after-rename", 0), ("shard-half", 1)] if quick else points)
    if not quick:
        _at_random_times(campaign, tally, 6, random.Random(4))
    _saves_on_end(campaign, tally, 15 if quick else 100)


def _at_points(campaign: Campaign, tally: Tally, points: list[tuple[str, int]]) -> None:
    """One training, killed at one point after the other, each time started again by hand."""
    run = campaign.new_run("killed at points")
    root = run / "checkpoints"
    for point, rank in points:
        before = committed(run)
        newest, reached = max(before, default=0), last_step(run)
        saved = newest + _SAVE_STEPS
        step = before[0] if point in _DELETING else saved
        tally.inject(f"kill -9 of rank {rank} at the point {point} of the save of step {saved}")
        with campaign.start(
            run, save_steps=_SAVE_STEPS, environment={VARIABLE: f"{point}:{step}:{rank}"}
        ) as job:
            job.wait_until(lambda job=job: len(job.ranks()) == 2, "two ranks")
            died_s = job.wait_for_death(job.ranks()[rank])
            tally.equal(job.end(), 128 + signal.SIGKILL, f"exit code\n{job.text}\n")
            tally.detected_s.append(time.monotonic() - died_s)
            tally.equal(resumed_step(job.text), newest, "step that the run went on from")
        tally.steps_lost.append(reached - newest)
        good = campaign.check_checkpoints(tally, run)
        tally.equal(max(good, default=0), newest if point in _UNCOMMITTED else saved, "newest checkpoint")
        expected = []
        if point in _UNCOMMITTED:
            expected = [temporary_folder(root, saved).name]
        elif point == "in-delete":
            expected = [deleted_folder(root, step).name]
        tally.equal(leftovers(run), expected, f"left over after a kill at {point}")
    campaign.finish(tally, run, last_step(run), save_steps=_SAVE_STEPS)
    tally.check(max(tally.steps_lost) <= 2 * _SAVE_STEPS, f"{max(tally.steps_lost)} steps were lost")


def _at_random_times(campaign: Campaign, tally: Tally, times: int, chance: random.Random) -> None:
    """One training, killed at random times, be it set up or training, each time started again by hand."""
    run = campaign.new_run("killed at random")
    for number in range(times):
        reached = last_step(run)
        victim = chance.choice(["rank 0", "rank 1", "the launcher"])
        in_training = number % 2 == 0 and reached < NUM_STEPS - 4
        tally.inject(
            f"kill -9 of {victim} at a random time of {'the training' if in_training else 'the whole start'}"
        )
        with campaign.start(run, save_steps=_SAVE_STEPS) as job:
            job.wait_until(lambda job=job: len(job.ranks()) == 2, "two ranks")
            ranks = job.ranks()
            if in_training:
                job.wait_for_step(reached + 1)
            time.sleep(chance.uniform(0, 1 if in_training else 15))
            is_over = job.process.poll() is not None
            if not is_over:
                killed_s = time.monotonic()
                if victim == "the launcher":
                    job.process.kill()
                else:
                    kill(ranks[int(victim[-1])])
            code = job.end()
            if not is_over:
                tally.equal(code, -9 if victim == "the launcher" else 137, f"exit code\n{job.text}\n")
                tally.detected_s.append(time.monotonic() - killed_s)
        good = campaign.check_checkpoints(tally, run)
        lost = last_step(run) - max(good, default=0)
        # One save may be in flight, and the next one waits for it.
        tally.check(lost <= 2 * _SAVE_STEPS, f"{lost} steps are lost")
        tally.steps_lost.append(lost)
    campaign.finish(tally, run, last_step(run), save_steps=_SAVE_STEPS)


def _saves_on_end(campaign: Campaign, tally: Tally, times: int) -> None:
    """Two ranks that do nothing but save, killed at random times (`saver_worker`)."""
    tally.say(f"{times} times: kill -9 at a random time of ranks that do nothing but save")
    worker = Path(__file__).with_name("saver_worker.py")
    root = campaign.new_run("saves on end") / "checkpoints"
    done = subprocess.run(
        [sys.executable, str(worker), str(root), str(times), "4"],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60 + 10 * times,
        check=False,
    )
    tally.equal(done.returncode, 0, f"exit code of the saving ranks\n{done.stderr}\n")
    left: Counter[str] = Counter()
    newest = num_before = 0
    for line in done.stdout.splitlines():
        finding = json.loads(line)
        tally.injections += 1
        for fault in finding["bad"]:
            tally.load(False, fault)
        for _ in range(finding["num_read"]):
            tally.load(True, "")
        tally.check(finding["newest"] >= finding["told"], f"a checkpoint that was told is lost: {line}")
        tally.check(finding["newest"] >= newest, f"there is no newer checkpoint than before: {line}")
        # Two are kept while the next one is written. A kill between its commit and the deletion of what it
        # supersedes leaves that until the next save; another kill at that very point leaves one more.
        tally.check(finding["num_read"] <= max(3, num_before + 1), f"superseded checkpoints stay: {line}")
        num_before = finding["num_read"]
        newest = finding["newest"]
        left.update({name.rpartition(".")[2] for name in finding["left"]} or {"nothing"})
    tally.equal(tally.injections >= times, True, "kills")
    tally.check(newest > times // 2, f"only {newest} steps in {times} starts: hardly anything was saved")
    told = ", ".join(f"{what} {count}" for what, count in left.most_common())
    tally.remarks.append(f"left by {times} kills of saves on end: {told}")
