"""One rank of `benchmarks/checkpoint.py`: does one of its tasks and prints the figures as a JSON line.

    python -m launcher run --num-gpus 2 benchmarks/checkpoint_rank.py saves --model MODEL --folder FOLDER

Runs on the parts of a real training (`medsft.training`: assembly, saving) without its data. Seconds are those
of the slowest rank, all having begun together; bytes are of all ranks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from peak import Peak, private_bytes
from rank_run import Run, do_step, open_run, timed

from medsft.checkpoint import shard
from medsft.checkpoint.layout import shard_name, step_folder, steps_in
from medsft.checkpoint.retention import Keep
from medsft.checkpoint.saver import CheckpointSaver, SaveEnd
from medsft.engine.distributed import from_all, sum_over_ranks
from medsft.engine.state import TrainingState
from medsft.engine.step import TrainStep
from medsft.files import sync
from medsft.monitor.metrics import Figures
from medsft.training import assembly, saving

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

CHUNK_BYTES = 1 << 20


@contextmanager
def timing(seconds: dict[str, float], name: str, owner: Any, attribute: str) -> Iterator[None]:
    """Adds the seconds spent in the function `owner.attribute` to `seconds[name]`."""
    seconds.setdefault(name, 0.0)
    function = getattr(owner, attribute)

    def measured(*arguments: Any, **more: Any) -> Any:
        begin_s = time.perf_counter()
        try:
            return function(*arguments, **more)
        finally:
            seconds[name] += time.perf_counter() - begin_s

    with patch.object(owner, attribute, measured):
        yield


# --- saves


class NoDigest:
    """Takes the place of SHA-256 to see what it costs."""

    def update(self, _: Any) -> None:
        """Does nothing."""

    def hexdigest(self) -> str:
        """Of the right length for a manifest."""
        return "0" * 64


class Saves:
    """All ways to save one training state, each a method that returns its seconds by name."""

    def __init__(self, run: Run, engine: DeepSpeedEngine, step: TrainStep) -> None:
        self._run = run
        self._train_step = step
        self._engine = engine
        self._root = run.folder.checkpoints
        self._theirs = run.folder.path / "deepspeed"
        self._state = TrainingState(engine, run.world)
        self._saver = CheckpointSaver(
            self._root, self._state, run.world, Keep(2, None, False), run.base.write_companions
        )
        self._step = 1
        self.num_bytes = 0
        self.num_bytes_theirs = 0

    def ours(self) -> dict[str, float]:
        """A checkpoint as a run saves it, waited for; the superseded one is deleted."""
        seconds: dict[str, float] = {}
        with timing(seconds, "fsync", os, "fsync"):
            end = self._save()
        ends = from_all(self._run.world, (end.stall_s, end.write_s, seconds["fsync"]))
        stall_s, write_s, fsync_s = (max(values) for values in zip(*ends, strict=True))
        self.num_bytes = end.num_bytes
        return {"stall": stall_s, "write": write_s, "of it in fsync": fsync_s}

    def without_hashing(self) -> dict[str, float]:
        """The same, but for SHA-256 of the ranks' files."""
        with patch.object(shard, "hashlib", SimpleNamespace(sha256=NoDigest)):
            end = self._save()
        return {"write without hashing": max(from_all(self._run.world, end.write_s))}

    def hashing_alone(self) -> dict[str, float]:
        """SHA-256 of the same bytes in memory."""
        tensors, _ = self._state.copy()

        def digest() -> None:
            sha256 = hashlib.sha256()
            for tensor in tensors.values():
                sha256.update(memoryview(tensor.numpy()).cast("B"))
            sha256.hexdigest()

        return {"SHA-256 alone": timed(self._run.world, digest)}

    def file_copy(self) -> dict[str, float]:
        """A plain copy of every rank's file, flushed to the disk."""
        name = shard_name(self._run.world.rank, self._run.world.size)
        source = step_folder(self._root, steps_in(self._root)[-1]) / name
        target = self._run.folder.path / f"copy of {name}"

        def copy() -> None:
            with source.open("rb") as original, target.open("xb") as duplicate:
                shutil.copyfileobj(original, duplicate, CHUNK_BYTES)
                duplicate.flush()
                os.fsync(duplicate.fileno())

        seconds = timed(self._run.world, copy)
        target.unlink()
        return {"plain file copy": seconds}

    def deepspeed(self) -> dict[str, float]:
        """DeepSpeed's own checkpoint, and then the flush to the disk that it leaves out."""
        world = self._run.world
        if world.is_main:
            shutil.rmtree(self._theirs, ignore_errors=True)
        save = lambda: self._engine.save_checkpoint(str(self._theirs), tag="step")  # noqa: E731
        stall_s = timed(world, save)
        files = [path for path in self._theirs.rglob("*") if path.is_file()]
        self.num_bytes_theirs = sum(path.stat().st_size for path in files)
        mine = sorted(files)[world.rank :: world.size]
        flush_s = timed(world, lambda: [sync(path) for path in mine])
        return {"DeepSpeed stall": stall_s, "DeepSpeed until on the disk": stall_s + flush_s}

    def _save(self) -> SaveEnd:
        from_all(self._run.world, None)
        self._step += 1
        self._saver.save(self._run.draft(self._train_step, self._step), 0.0, 0.0)
        end = self._saver.take()
        assert end is not None and end.fault is None, end
        return end


def measure_saves(options: argparse.Namespace) -> dict[str, Any]:
    """One round of every way whose times are not taken, but the memory; then rounds in changing order."""
    run = open_run(options)
    engine = assembly.start_model(run.config, run.base, None, run.ds_config, run.world, False)
    step = run.train_step(engine)
    do_step(run, step, 0, num_examples=1)
    saves = Saves(run, engine, step)
    memory = {}
    for name, way in (("DeepSpeed stall", saves.deepspeed), ("stall", saves.ours)):
        held = private_bytes()
        with Peak() as peak:
            way()
        memory[name] = max(from_all(run.world, peak.bytes - held))
    ways = [saves.ours, saves.without_hashing, saves.file_copy, saves.hashing_alone, saves.deepspeed]
    rounds = []
    for number in range(options.repetitions):
        seconds: dict[str, float] = {}
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            seconds |= way()
        rounds.append(seconds)
    saves.ours()  # the last one is whole, for those that resume from it
    return {
        "rounds": rounds,
        "num_bytes": saves.num_bytes,
        "num_bytes_theirs": saves.num_bytes_theirs,
        "memory": memory,
    }


# --- starts


def measure_start(options: argparse.Namespace) -> dict[str, Any]:
    """A start up to the end of its first step: fresh, from a checkpoint, or from DeepSpeed's checkpoint."""
    run = open_run(options)
    world = run.world
    seconds: dict[str, float] = {}
    before = private_bytes()
    with (
        Peak() as peak,
        timing(seconds, "build", assembly, "build_partitioned"),
        timing(seconds, "read", assembly, "load_slices"),
        timing(seconds, "engine", assembly, "start_engine"),
    ):
        from_all(world, None)
        begin_s = time.perf_counter()
        checkpoint = None
        if options.mode == "resumed":
            with timing(seconds, "verify", saving, "open_best"):
                checkpoint = saving.find_checkpoint(run.config, run.base, run.plan, run.folder, world)
            assert checkpoint is not None
        engine = assembly.start_model(run.config, run.base, checkpoint, run.ds_config, world, False)
        step = run.train_step(engine)
        state = TrainingState(engine, world)
        if checkpoint is not None:
            with timing(seconds, "restore", saving, "restore"):
                saving.restore(checkpoint, state, step, Figures(world.device, sum_over_ranks), world)
        if options.mode == "deepspeed":
            with timing(seconds, "restore", engine, "load_checkpoint"):
                path, _ = engine.load_checkpoint(str(run.folder.path / "deepspeed"), tag="step")
            assert path is not None
        seconds["ready"] = time.perf_counter() - begin_s
        ready = peak.bytes - before
        do_step(run, step, 1, num_examples=1)
    stepped = peak.bytes - before
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    copy_s = timed(world, state.copy)
    everyone = from_all(world, (seconds, ready, stepped, resident))
    return {
        "seconds": {name: max(each[0][name] for each in everyone) for name in seconds},
        "private_until_ready": max(each[1] for each in everyone),
        "private": max(each[2] for each in everyone),
        "resident": max(each[3] for each in everyone),
        "first_copy": copy_s,
    }


# --- steps beside a save


def measure_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the steps that a save lies beside, the last in part, and of as many after it."""
    run = open_run(options)
    world = run.world
    engine = assembly.start_model(run.config, run.base, None, run.ds_config, world, False)
    step = run.train_step(engine)
    saver = CheckpointSaver(
        run.folder.checkpoints,
        TrainingState(engine, world),
        world,
        Keep(2, None, False),
        run.base.write_companions,
    )
    number = 0

    def timed_step() -> float:
        nonlocal number
        number += 1
        return timed(world, lambda: do_step(run, step, number, options.examples))

    for _ in range(3):
        timed_step()
    pairs = []
    for pair in range(options.repetitions + 1):
        saver.save(run.draft(step, number), 0.0, 0.0)
        beside = [timed_step()]
        while not all(from_all(world, saver.has_ended)):
            beside.append(timed_step())
        end = saver.take()
        assert end is not None and end.fault is None, end
        alone = [timed_step() for _ in range(max(3, len(beside)))]
        if pair:  # in the first, memory is still being allocated
            pairs.append({"beside": beside, "alone": alone, "stall": end.stall_s, "write": end.write_s})
    return {"pairs": pairs, "num_bytes": end.num_bytes}


TASKS = {"saves": measure_saves, "start": measure_start, "steps": measure_steps}


def main() -> None:
    """Does the task of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--model", required=True, help="model folder that the run begins with")
    parser.add_argument("--folder", required=True, help="output folder of the run")
    parser.add_argument("--deepspeed", required=True, help="DeepSpeed JSON")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--mode", choices=("fresh", "resumed", "deepspeed"), default="fresh")
    parser.add_argument("--examples", type=int, default=8, help="examples a rank in each step")
    options = parser.parse_args()
    found = TASKS[options.task](options)
    if os.environ["RANK"] == "0":
        os.write(1, (json.dumps(found) + "\n").encode())
    os._exit(0)  # as ranks do: tidying up, the process group's threads may turn the exit code into an abort


if __name__ == "__main__":
    main()
