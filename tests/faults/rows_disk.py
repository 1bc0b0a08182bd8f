"""A disk that is full when a checkpoint is due, and one that fills up while it is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from campaign import NUM_STEPS, SAVE_STEPS, Campaign, curve, leftovers, resumed_step, weights_digest
from disk import TinyDisk, can_mount, tiny_disk
from jobs import Job, committed, frozen, last_step
from tally import Tally

_FIRST = SAVE_STEPS
_SECOND = 2 * SAVE_STEPS
_GOES_ON_UNTIL = 3 * SAVE_STEPS + 1


def fill_the_disk(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 8: hardly any bytes left, no names left, no byte left; the run is to stop, or to go on."""
    if not can_mount():
        tally.remarks.append("not run: this needs the right to mount a disk")
        return
    ways = (
        ("too few bytes left for a checkpoint", lambda disk: disk.fill_but(3 << 20)),
        ("names left for two of a checkpoint's files", lambda disk: disk.leave_names(2)),
        ("no byte left, not even for a line of metrics.jsonl", TinyDisk.fill),
    )
    for number, (what, fill) in enumerate(ways):
        is_full = fill is TinyDisk.fill
        with tiny_disk(campaign.folder / "磁盘 disks" / f"stop {number}") as disk:
            tally.inject(f"{what}, --on_save_failure stop")
            _stops(campaign, tally, disk, fill)
        with tiny_disk(campaign.folder / "磁盘 disks" / f"continue {number}") as disk:
            tally.inject(f"{what}, --on_save_failure continue, room again after step {_GOES_ON_UNTIL}")
            _goes_on(campaign, tally, disk, fill, is_full)


def _stops(campaign: Campaign, tally: Tally, disk: TinyDisk, fill: Callable[[TinyDisk], None]) -> None:
    run, seen = disk.path / "run", disk.seen_at / "run"
    with campaign.start(run, seen_at=seen, inside=disk.inside, on_save_failure="stop") as job:
        filled_s = _fill_after_the_first(job, disk, fill)
        tally.equal(job.end(), 2, f"exit code\n{job.text}\n")
        tally.detected_s.append(time.monotonic() - filled_s)
        tally.says(job.text, [f"the checkpoint of step {_SECOND} could not be saved"])
        tally.check("crashed" not in job.text, f"a rank has crashed:\n{job.text}")
    reached = last_step(seen)
    _check_the_first(campaign, tally, seen)
    disk.make_room()
    campaign.finish(tally, run, reached, seen_at=seen, inside=disk.inside)


def _goes_on(
    campaign: Campaign, tally: Tally, disk: TinyDisk, fill: Callable[[TinyDisk], None], is_full: bool
) -> None:
    run, seen = disk.path / "run", disk.seen_at / "run"
    with campaign.start(run, seen_at=seen, inside=disk.inside, on_save_failure="continue") as job:
        filled_s = _fill_after_the_first(job, disk, fill)
        tally.detected_s.append(job.wait_for_words(f"step {_SECOND} could not be saved") - filled_s)
        job.wait_for_words(f"step {_GOES_ON_UNTIL}/{NUM_STEPS}")
        with frozen(job.ranks()):
            _check_the_first(campaign, tally, seen)
            disk.make_room()
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
        tally.equal(resumed_step(job.text), 0, "step that the run went on from")
    if is_full:  # steps that could not be told may be missing
        for step, figures in curve(seen).items():
            tally.equal(figures, campaign.reference.curve[step], f"figures of step {step}")
        tally.equal(weights_digest(seen), campaign.reference.weights, "digest of the final weights")
        tally.equal(campaign.check_checkpoints(tally, seen)[-1:], [NUM_STEPS], "newest checkpoint")
    else:
        campaign.check_finished(tally, seen)


def _fill_after_the_first(job: Job, disk: TinyDisk, fill: Callable[[TinyDisk], None]) -> float:
    """Fills the disk between the first checkpoint and the second; returns when that was done."""
    job.wait_for_checkpoint(_FIRST)
    with frozen(job.ranks()):
        fill(disk)
        assert last_step(job.run) < _SECOND, "the disk was filled too late"
    return time.monotonic()


def _check_the_first(campaign: Campaign, tally: Tally, seen: Path) -> None:
    """The checkpoint from before is intact, and nothing is left of the one that failed."""
    tally.equal(committed(seen), [_FIRST], "checkpoints")
    campaign.check_checkpoints(tally, seen)
    tally.equal(leftovers(seen), [], "left over in the checkpoints folder")
