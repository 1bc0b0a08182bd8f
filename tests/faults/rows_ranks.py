"""Ranks that die, stand still or crash for ever, and two jobs that want one folder."""

from __future__ import annotations

import time

from campaign import NUM_STEPS, SAVE_STEPS, Campaign, resumed_step
from jobs import committed, frozen, kill, last_step
from tally import Tally

from medsft.checkpoint.crash_points import VARIABLE

_SECOND_SAVE = 2 * SAVE_STEPS
_IN_BETWEEN = _SECOND_SAVE + SAVE_STEPS // 2


def kill_a_rank(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 1: kill -9 of rank 0 and of the last rank, in the middle of the training."""
    kill_and_restart(campaign, tally)
    _kill_under_deepspeed(campaign, tally)


def kill_and_restart(campaign: Campaign, tally: Tally) -> None:
    """Of rank 0 and of the last rank; the launcher starts the job again by itself."""
    for victim, name in ((0, "rank 0"), (-1, "the last rank")):
        tally.inject(f"kill -9 of {name}; the launcher starts the job again by itself")
        run = campaign.new_run(f"{name} killed")
        with campaign.start(run, launcher_flags=["--max-restarts", "1"]) as job:
            job.wait_for_checkpoint(_SECOND_SAVE)
            rank = job.ranks()[victim]  # looked for before: meanwhile the training goes on
            job.wait_for_step(_IN_BETWEEN)
            killed_s = kill(rank)
            tally.detected_s.append(job.wait_for_words("ended by SIGKILL") - killed_s)
            reached = last_step(run)
            tally.recovered_s.append(job.wait_for_step(min(reached + 1, NUM_STEPS)) - killed_s)
            tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
            tally.steps_lost.append(reached - resumed_step(job.text))
        tally.check(tally.steps_lost[-1] <= SAVE_STEPS, f"{tally.steps_lost[-1]} steps were lost")
        campaign.check_finished(tally, run)


def _kill_under_deepspeed(campaign: Campaign, tally: Tally) -> None:
    tally.inject("kill -9 of the last rank, started by deepspeed, which does not start it again")
    run = campaign.new_run("killed under deepspeed")
    with campaign.start(run, launcher="deepspeed") as job:
        job.wait_for_checkpoint(_SECOND_SAVE)
        rank = job.ranks()[-1]
        job.wait_for_step(_IN_BETWEEN)
        killed_s = kill(rank)
        tally.check(job.end() != 0, "deepspeed leaves with 0 although a rank was killed")
        tally.detected_s.append(time.monotonic() - killed_s)
    reached = last_step(run)
    campaign.check_checkpoints(tally, run)
    campaign.finish(tally, run, reached, launcher="deepspeed")
    tally.check(tally.steps_lost[-1] <= SAVE_STEPS, f"{tally.steps_lost[-1]} steps were lost")


def stop_a_rank(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 3: SIGSTOP of the last rank, with the shortest timeout there is."""
    tally.inject("SIGSTOP of the last rank (--distributed_timeout_min 1)")
    run = campaign.new_run("rank stopped")
    with campaign.start(
        run, launcher_flags=["--max-restarts", "1", "--grace", "2"], distributed_timeout_min=1
    ) as job:
        job.wait_for_checkpoint(_SECOND_SAVE)
        job.wait_for_step(_IN_BETWEEN)
        rank = job.ranks()[-1]
        rank.suspend()
        stopped_s = time.monotonic()
        tally.detected_s.append(job.wait_for_words("not been heard from") - stopped_s)
        reached = last_step(run)
        tally.recovered_s.append(job.wait_for_step(min(reached + 1, NUM_STEPS)) - stopped_s)
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
        tally.steps_lost.append(reached - resumed_step(job.text))
        line = next(line for line in job.text.splitlines() if "not been heard from" in line)
        tally.says(line, ["rank 1 ", f"pid {rank.pid}", "all ranks stop"])
        tally.says(job.text, [f"process {rank.pid}) stood still (stopped by a signal", "starting again in"])
    tally.check(tally.steps_lost[-1] <= SAVE_STEPS, f"{tally.steps_lost[-1]} steps were lost")
    campaign.check_finished(tally, run)


def crash_for_ever(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 25: every start dies at its first save."""
    max_restarts = 2
    tally.inject(f"every start dies at its first save (--max-restarts {max_restarts})")
    run = campaign.new_run("crash loop")
    flags = ["--max-restarts", str(max_restarts), "--restart-delay", "0"]
    with campaign.start(run, launcher_flags=flags, environment={VARIABLE: f"begin:{SAVE_STEPS}:0"}) as job:
        job.wait_for_words("starting again", times=max_restarts)
        job.wait_until(lambda: len(job.ranks()) == 2, "the last start's ranks")
        died_s = job.wait_for_death(job.ranks()[0])
        tally.equal(job.end(), 4, f"exit code\n{job.text}\n")
        tally.detected_s.append(time.monotonic() - died_s)
        tally.equal(job.text.count("starting again"), max_restarts, "restarts")
        tally.says(job.text, ["gave up", "do not requeue"])
    tally.equal(committed(run), [], "checkpoints")
    reached = last_step(run)
    campaign.finish(tally, run, reached)


def two_jobs(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 22: a second job for the folder of a living one, then one for the folder of a dead one."""
    run = campaign.new_run("two jobs")
    with campaign.start(run) as first:
        first.wait_for_checkpoint(_SECOND_SAVE)
        owner = first.ranks()[0].pid
        # It stands still meanwhile, as it would be over before the second has made up its mind.
        with frozen(first.ranks()):
            before = last_step(run)
            tally.inject("a second job for the same --output_dir, while the first one lives")
            with campaign.start(run) as second:
                tally.equal(second.end(), 2, f"exit code of the second job\n{second.text}\n")
                tally.detected_s.append(time.monotonic() - second.started_s)
                tally.says(second.text, ["in use by another run", f"process {owner} on host"])
            tally.equal(last_step(run), before, "step of the first job, after the second")
        first.wait_for_step(before + 2)
        tally.check(first.process.poll() is None, "the second job has ended the first")
        tally.inject("kill -9 of the job that holds the folder")
        killed_s = kill(first.ranks()[0])
        tally.equal(first.end(), 137, f"exit code of the first job\n{first.text}\n")
        tally.detected_s.append(time.monotonic() - killed_s)
    reached = last_step(run)
    campaign.check_checkpoints(tally, run)
    text = campaign.finish(tally, run, reached)
    tally.says(text, [f"was held by process {owner} on host", "which is gone; this run takes over"])
