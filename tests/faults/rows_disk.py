"""A disk that is full when a checkpoint is due, and one that fills up while it is written."""

from __future__ import annotations

from campaign import NUM_STEPS, SAVE_STEPS, Campaign, leftovers, resumed_step
from disk import TinyDisk, can_mount, tiny_disk
from jobs import committed, frozen, last_step
from tally import Tally

_FIRST = SAVE_STEPS
_SECOND = 2 * SAVE_STEPS
_GOES_ON_UNTIL = 3 * SAVE_STEPS + 1


def fill_the_disk(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 8: no bytes left, hardly any bytes left, no names left; the run is to stop, or to go on."""
    if not can_mount():
        tally.remarks.append("not run: this needs the right to mount a disk")
        return
    ways = (
        ("some bytes left, too few for a checkpoint", lambda disk: disk.fill_but(3 << 20)),
        ("full when the save has begun: names for two of its files", lambda disk: disk.leave_names(2)),
        ("no byte left", TinyDisk.fill),
    )
    for number, (what, fill) in enumerate(ways):
        with tiny_disk(campaign.folder / "磁盘 disks" / f"stop {number}") as disk:
            _stops(campaign, tally, disk, what, fill)
        with tiny_disk(campaign.folder / "磁盘 disks" / f"continue {number}") as disk:
            _goes_on(campaign, tally, disk, what, fill)


def _stops(campaign: Campaign, tally: Tally, disk: TinyDisk, what: str, fill) -> None:
    tally.inject(f"{what}, --on_save_failure stop")
    run = disk.path / "run"
    seen = disk.seen_at / "run"
    with campaign.start(run, seen_at=seen, inside=disk.inside, on_save_failure="stop") as job:
        job.wait_for_checkpoint(_FIRST)
        with frozen(job.ranks()):
            fill(disk)
            at = last_step(seen)
        assert at < _SECOND, "the disk was filled too late"
        tally.equal(job.end(), 2, f"exit code\n{job.text}\n")
        tally.says(job.text, [f"the checkpoint of step {_SECOND} could not be saved"])
        tally.check("Traceback" not in job.text, f"there is a traceback:\n{job.text}")
    reached = last_step(seen)
    _check_the_first(campaign, tally, disk)
    disk.make_room()
    campaign.finish(tally, run, reached, seen_at=seen, inside=disk.inside)


def _goes_on(campaign: Campaign, tally: Tally, disk: TinyDisk, what: str, fill) -> None:
    tally.inject(f"{what}, --on_save_failure continue, room again after step {_GOES_ON_UNTIL}")
    run = disk.path / "run"
    seen = disk.seen_at / "run"
    with campaign.start(run, seen_at=seen, inside=disk.inside, on_save_failure="continue") as job:
        job.wait_for_checkpoint(_FIRST)
        with frozen(job.ranks()):
            fill(disk)
            at = last_step(seen)
        assert at < _SECOND, "the disk was filled too late"
        job.wait_for_words(f"step {_GOES_ON_UNTIL}/{NUM_STEPS}")
        with frozen(job.ranks()):
            _check_the_first(campaign, tally, disk)
            disk.make_room()
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
        tally.says(job.text, [f"the checkpoint of step {_SECOND} could not be saved"])
        tally.equal(resumed_step(job.text), 0, "step that the run went on from")
    campaign.check_finished(tally, seen)


def _check_the_first(campaign: Campaign, tally: Tally, disk: TinyDisk) -> None:
    """The checkpoint from before is intact, and nothing is left of the one that failed."""
    seen = disk.seen_at / "run"
    tally.equal(committed(seen), [_FIRST], "checkpoints")
    campaign.check_checkpoints(tally, seen)
    tally.equal(leftovers(seen), [], "left over in the checkpoints folder")
