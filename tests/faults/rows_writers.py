"""Kills while an op is compiled and while figures are written."""

from __future__ import annotations

import os
import time
from pathlib import Path

from campaign import NUM_STEPS, Campaign
from jobs import kill, last_step, metrics
from runs import REPOSITORY
from tally import Tally

_FEW_STEPS = 4
# Two cores compile CPU Adam in a minute when they have nothing else to do.
_BUILD_S = 900.0


def kill_writers(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 24: the process that compiles DeepSpeed's CPU Adam, and the one that writes TensorBoard's files."""
    _in_a_build(campaign, tally)
    _in_events(campaign, tally)


def _in_a_build(campaign: Campaign, tally: Tally) -> None:
    cache = campaign.folder / "cache 缓存"
    settings = {
        "deepspeed": REPOSITORY / "ds_configs" / "zero3_offload_optimizer.json",
        "max_steps": _FEW_STEPS,
        "environment": {"XDG_CACHE_HOME": str(cache)},
    }
    run = campaign.new_run("build killed")

    def batons() -> list[Path]:
        """The file `lock` that a build of torch leaves when it is killed."""
        return list(cache.glob("medsft/torch_extensions/*/cpu_adam/lock"))

    tally.inject("kill -9 of all ranks in the middle of CPU Adam's compilation")
    with campaign.start(run, **settings) as job:
        job.wait_until(lambda: bool(batons()), "the compilation of CPU Adam")
        time.sleep(2)  # the compiler is at work
        tally.equal(list(cache.rglob("cpu_adam.so")), [], "compiled already, too late for a kill")
        killed_s = time.monotonic()
        for rank in job.ranks():
            kill(rank)
        tally.equal(job.end(), 137, f"exit code\n{job.text}\n")
        tally.detected_s.append(time.monotonic() - killed_s)
    tally.check(bool(batons()), "no stale lock is left, so nothing was tried")
    with campaign.start(run, **settings) as job:
        tally.recovered_s.append(job.wait_for_step(1, _BUILD_S) - job.started_s)
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
    tally.equal([record["step"] for record in metrics(run)], list(range(1, _FEW_STEPS + 1)), "steps told")
    tally.equal(batons(), [], "stale locks")


def _in_events(campaign: Campaign, tally: Tally) -> None:
    run = campaign.new_run("events killed")
    for number in range(2):
        reached = last_step(run)
        tally.inject("kill -9 of rank 0 when TensorBoard's file grows; then its last record is cut, and a "
                     "half line added to metrics.jsonl")  # fmt: skip
        with campaign.start(run) as job:
            job.wait_for_step(min(reached + 5, NUM_STEPS - 4))
            rank = job.ranks()[0]
            events = _newest_events(run)
            size = events.stat().st_size
            job.wait_until(lambda file=events, size=size: file.stat().st_size > size, "an event")
            killed_s = kill(rank)
            tally.equal(job.end(), 137, f"exit code\n{job.text}\n")
            tally.detected_s.append(time.monotonic() - killed_s)
        # What a file system may leave of a write that was under way.
        os.truncate(events, events.stat().st_size - 3 - number)
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"kind": "train", "time": 17')
        campaign.check_checkpoints(tally, run)
    campaign.finish(tally, run, last_step(run))


def _newest_events(run: Path) -> Path:
    files = (run / "tensorboard").glob("events.out.tfevents.*")
    return max(files, key=lambda path: path.stat().st_mtime_ns)
