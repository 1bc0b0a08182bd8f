"""Checkpoints that are cut, flipped, lost or wrongly dated on the disk, found when a run goes on."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from campaign import SAVE_STEPS, Campaign, resumed_step
from jobs import committed, last_step
from tally import Tally

from medsft.checkpoint.layout import LATEST, MANIFEST, read_latest, shard_name, step_folder
from medsft.checkpoint.verify import verify
from medsft.errors import UserError

_OLDER, _NEWER = 2 * SAVE_STEPS, 3 * SAVE_STEPS
_HOUR_S = 3600


def cut_a_shard(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 5: shards that are too short."""
    chance = random.Random(5)

    def cut(path: Path) -> None:
        os.truncate(path, chance.randrange(path.stat().st_size))

    _many(campaign, tally, 100, "cut a random file of a checkpoint to a random length", cut, chance)

    run = campaign.killed_run("shard cut")
    shard = _folder(run, _NEWER) / shard_name(1, 2)
    size = shard.stat().st_size
    tally.inject(f"cut a shard of the newest checkpoint from {size} to {size - 1} bytes")
    os.truncate(shard, size - 1)
    words = [f"{shard} is damaged: it has {size - 1} bytes, the manifest says {size}"]
    _falls_back(campaign, tally, run, words)

    run = campaign.killed_run("all shards cut")
    tally.inject("cut a shard of every checkpoint; the run must refuse, and change nothing")
    for step in committed(run):
        cut(_folder(run, step) / shard_name(0, 2))
    before = _content(run)
    with campaign.start(run) as job:
        tally.equal(job.end(), 2, f"exit code\n{job.text}\n")
        found_s = job.wait_for_words("no checkpoint is good") - job.started_s
        tally.detected_s.append(found_s)
        tally.says(job.text, [shard_name(0, 2), f"step-{_OLDER:08}", f"step-{_NEWER:08}", "start over"])
        tally.equal(job.text.count("no checkpoint is good"), 1, "times the error is told")
    tally.equal(_content(run), before, "what is in the folder")


def flip_a_bit(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 6: single bits that are wrong."""
    chance = random.Random(6)

    def flip(path: Path) -> None:
        place = chance.randrange(path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))

    _many(campaign, tally, 200, "flip a random bit of a checkpoint", flip, chance)

    run = campaign.killed_run("bit flipped")
    shard = _folder(run, _NEWER) / shard_name(0, 2)
    tally.inject("flip one bit in a shard of the newest checkpoint; ranks started by deepspeed")
    flip(shard)
    _falls_back(campaign, tally, run, [f"{shard} is damaged: its SHA-256 is "], launcher="deepspeed")


def lose_files(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 7: the pointer is gone or empty, a shard is gone."""
    run = campaign.killed_run("pointer lost")
    tally.inject("delete the pointer `latest`")
    (run / "checkpoints" / LATEST).unlink()
    text = campaign.finish(tally, run, last_step(run))
    tally.equal(resumed_step(text), _NEWER, "step that the run went on from")

    run = campaign.killed_run("shard lost")
    tally.inject("empty the pointer, and delete a shard of the newest checkpoint")
    (run / "checkpoints" / LATEST).write_bytes(b"")
    shard = _folder(run, _NEWER) / shard_name(1, 2)
    shard.unlink()
    _falls_back(campaign, tally, run, [f"{shard} is damaged: it is missing"])


def skew_the_clock(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 18: the older checkpoint is dated an hour after the newer one."""
    run = campaign.killed_run("clock wrong")
    tally.inject("date the older checkpoint an hour ahead and the newest an hour back, and delete `latest`")
    for step, shift_s in ((_OLDER, _HOUR_S), (_NEWER, -_HOUR_S)):
        folder = _folder(run, step)
        for path in (*folder.rglob("*"), folder):
            time_s = path.stat().st_mtime + shift_s
            os.utime(path, (time_s, time_s))
    (run / "checkpoints" / LATEST).unlink()
    with campaign.start(run) as job:
        job.wait_for_checkpoint(_NEWER + SAVE_STEPS)
        job.wait_until(lambda: _OLDER not in committed(run), "the deletion of what is superseded")
        tally.check(_NEWER in committed(run), "the newer checkpoint was deleted for the older one")
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
        tally.equal(resumed_step(job.text), _NEWER, "step that the run went on from")
    tally.steps_lost.append(last_step(campaign.interrupted) - _NEWER)
    campaign.check_finished(tally, run)


def _many(
    campaign: Campaign,
    tally: Tally,
    times: int,
    what: str,
    damage: Callable[[Path], None],
    chance: random.Random,
) -> None:
    """Damages copies of a checkpoint, one file at a time; each must be found by reading it."""
    tally.say(f"{times} times: {what}")
    good = _folder(campaign.interrupted, _NEWER)
    copy = shutil.copytree(good, campaign.new_run("damaged") / good.name)
    files = sorted(path for path in good.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [path.stat().st_size for path in files]
    manifest = good / MANIFEST
    for number in range(times):
        # Every fourth time it is the manifest, which is small.
        original = manifest if number % 4 == 0 else chance.choices(files, sizes)[0]
        path = copy / original.relative_to(good)
        damage(path)
        tally.injections += 1
        try:
            verify(copy)
        except UserError:
            is_refused = True
        else:
            is_refused = False
        tally.load(is_refused, f"{path.name}, damage {number}, was not found")
        shutil.copyfile(original, path)
    verify(copy)  # or nothing was shown


def _falls_back(
    campaign: Campaign, tally: Tally, run: Path, words: list[str], launcher: str = "launcher"
) -> None:
    """The newest checkpoint is named with its fault, and the run goes on from the one before."""
    reached = last_step(run)
    with campaign.start(run, launcher=launcher) as job:
        tally.detected_s.append(job.wait_for_words("is passed over") - job.started_s)
        tally.recovered_s.append(job.wait_for_step(reached + 1) - job.started_s)
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
        tally.says(job.text, [f"step-{_NEWER:08} is passed over", *words])
        tally.equal(job.text.count("is passed over"), 1, "times the fault is told")
        tally.equal(resumed_step(job.text), _OLDER, "step that the run went on from")
    tally.steps_lost.append(reached - _OLDER)
    campaign.check_finished(tally, run)
    aside = run / "checkpoints" / "previous-1" / f"step-{_NEWER:08}"
    tally.check(aside.is_dir(), f"the damaged checkpoint is not kept as {aside}")
    tally.check(read_latest(run / "checkpoints") != _NEWER, "the pointer names the damaged checkpoint")


def _folder(run: Path, step: int) -> Path:
    return step_folder(run / "checkpoints", step)


def _content(run: Path) -> dict[str, bytes]:
    """Every file of a run but for the lock's and the logs, which each start takes and appends to."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".owner.json") and path.parent.name != "logs"
    }
