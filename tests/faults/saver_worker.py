"""Two ranks that save as a training does, killed again and again at random times.

python saver_worker.py CHECKPOINTS_FOLDER NUM_KILLS SEED

Every time two processes are forked. They hold the newest checkpoint against what was written for its step, go
on from there and save step after step, until one of them, or both, get SIGKILL. Then this process, which
writes nothing there, reads what is left and prints a line of JSON (`Finding`).
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist

from medsft.checkpoint import commit
from medsft.checkpoint.layout import is_leftover, step_folder, steps_in
from medsft.checkpoint.manifest import STATES, Identity, Manifest
from medsft.checkpoint.reader import open_checkpoint
from medsft.checkpoint.retention import Keep
from medsft.checkpoint.saver import CheckpointSaver
from medsft.checkpoint.verify import verify
from medsft.engine.distributed import World
from medsft.errors import UserError

WORLD_SIZE = 2
SHAPES = {"a": (1000, 301), "b": (7,), "c": (1,)}  # rank 1 has nothing of the last one
# A survivor of the other rank has so long to do harm.
_SURVIVES_S = 0.1
_LATEST_KILL_S = 0.6
_HANG_S = 60.0


@dataclass(frozen=True)
class Finding:
    """What a kill left.

    victims: ranks killed. told: the last step that rank 0 was told is saved; newest: that of the newest
    committed checkpoint; both 0 for none. num_read: checkpoints read. bad: what is wrong with those that are
    not what was written. left: names of what is unfinished.
    """

    victims: list[int]
    told: int
    newest: int
    num_read: int
    bad: list[str]
    left: list[str]


def values(step: int, name: str, state: str, start: int, end: int) -> torch.Tensor:
    """Elements start … end-1 of a flattened parameter after a step."""
    place = 10_000 * STATES.index(state) + 1000 * ord(name)
    return torch.arange(start, end, dtype=torch.float32).mul_(0.5).add_(step + place)


class ToyState:
    """Stands for `medsft.engine.state.TrainingState`; like there, a copy overwrites the one before."""

    shapes = SHAPES
    loss_scaler = SimpleNamespace(dynamic=False)

    def __init__(self, rank: int) -> None:
        self.step = 0
        self._copies = {}
        for name, shape in SHAPES.items():
            num_elements = torch.Size(shape).numel()
            share = -(-num_elements // WORLD_SIZE)
            bounds = (min(rank * share, num_elements), min((rank + 1) * share, num_elements))
            if bounds[0] < bounds[1]:
                self._copies |= {
                    (state, name): (bounds, torch.empty(bounds[1] - bounds[0])) for state in STATES
                }

    def copy(self) -> tuple[dict[tuple[str, str], torch.Tensor], int]:
        for (state, name), (bounds, copy) in self._copies.items():
            copy.copy_(values(self.step, name, state, *bounds))
        return {key: copy for key, (_, copy) in self._copies.items()}, self.step


def rank_main(rank: int, root: Path, store: Path, told: int) -> NoReturn:
    """One rank: saves until it is killed, or until another rank is gone."""
    try:
        meeting = dist.FileStore(str(store), WORLD_SIZE)
        dist.init_process_group(
            "gloo", store=meeting, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=_HANG_S)
        )
        if rank == 0:
            commit.clean(root)
            commit.point(root)
        dist.barrier()
        steps = steps_in(root)
        state = ToyState(rank)
        state.step = steps[-1] if steps else 0
        if steps and (fault := fault_of(root, steps[-1])):
            raise AssertionError(fault)
        dist.barrier()
        world = World(rank, WORLD_SIZE, rank, torch.device("cpu"))
        saver = CheckpointSaver(root, state, world, Keep(2, None, False), write_model)
        while True:
            state.step += 1
            saver.save(draft(state.step), 0.0, 0.0)
            state.step += 1  # a training goes on meanwhile
            end = saver.take()
            assert end is not None and end.fault is None, end
            os.write(told, f"{end.step}\n".encode())
    except BaseException as error:
        # Only one whose peer is gone has a reason to fail; the parent knows whether that is so.
        os.write(told, f"failed: {error!r}\n".replace("\n", " ").encode() + b"\n")
    os._exit(1)


def write_model(folder: Path) -> None:
    """Stands for configuration and tokenizer."""
    folder.mkdir()
    (folder / "config.json").write_text("{}\n")


def draft(step: int) -> Manifest:
    """A manifest without what the saver adds."""
    return Manifest(
        step=step,
        epoch=0.0,
        examples_seen=step,
        tokens_seen=step,
        train_loss=None,
        validation=None,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        world_size=WORLD_SIZE,
        identity=Identity(model="aa", tokenizer="bb", data="cc", seed=1, global_batch_size=8),
        plan={"num_steps": 10**6},
        base_model="toy",
        prompt_template="chatglm",
        flags={},
        deepspeed={},
        versions={},
        adam_step=step,
        loss_scaler={},
        counters={},
        ranks=(),
        files={},
        parameters={},
    )


def fault_of(root: Path, step: int) -> str | None:
    """What is wrong with a committed checkpoint, None where every value is that of its step."""
    folder = step_folder(root, step)
    try:
        manifest = verify(folder)
    except UserError as error:
        return str(error)
    if (manifest.step, manifest.adam_step, manifest.tokens_seen) != (step, step, step):
        return f"{folder} says it is of step {manifest.step}"
    checkpoint = open_checkpoint(folder)
    for name, shape in SHAPES.items():
        for state in STATES:
            num_elements = torch.Size(shape).numel()
            found = checkpoint.read_range(name, 0, num_elements, state)
            if not torch.equal(found, values(step, name, state, 0, num_elements)):
                return f"{folder} has values of {state} {name} that were not written for step {step}"
    return None


def attempt(root: Path, folder: Path, chance: random.Random) -> Finding:
    """Forks the ranks, kills at a random time, reads what is left."""
    before = max(steps_in(root), default=0)
    reading, writing = os.pipe()
    pids = []
    store = folder / f"store {chance.random()}"
    for rank in range(WORLD_SIZE):
        if not (pid := os.fork()):
            os.close(reading)
            rank_main(rank, root, store, writing)
        pids.append(pid)
    os.close(writing)
    lines = Lines(reading)
    # From the first save on, as the time before it is no time of a save.
    first = root / f".step-{before + 1:08}.tmp"
    deadline_s = time.monotonic() + _HANG_S
    while not first.exists() and max(steps_in(root), default=0) == before:
        if time.monotonic() > deadline_s or (early := lines.so_far()):
            raise RuntimeError(f"no save begins: {early}")
        time.sleep(0.002)
    time.sleep(chance.uniform(0, _LATEST_KILL_S))
    victims = chance.choice([[0], [1], [0, 1]])
    early = lines.so_far()
    for rank in victims:
        os.kill(pids[rank], signal.SIGKILL)
    if len(victims) < WORLD_SIZE:
        time.sleep(_SURVIVES_S)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # as the launcher does; not yet reaped, it is still theirs
    for pid in pids:
        os.waitpid(pid, 0)
    told = [int(line) for line in lines.to_the_end() if line.isdecimal()]
    bad = [f"before the kill: {line}" for line in early if not line.isdecimal()]
    steps = steps_in(root)
    bad += [fault for step in steps if (fault := fault_of(root, step))]
    left = sorted(path.name for path in root.iterdir() if is_leftover(path.name))
    return Finding(victims, max(told, default=0), max(steps, default=0), len(steps), bad, left)


class Lines:
    """Lines that come from a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        self._bytes = b""

    def so_far(self) -> list[str]:
        while select.select([self._file], [], [], 0)[0] and (more := self._file.read(65536)):
            self._bytes += more
        return self._bytes.decode().splitlines()

    def to_the_end(self) -> list[str]:
        self._bytes += self._file.read()
        self._file.close()
        return self._bytes.decode().splitlines()


def findings(root: Path, num_kills: int, seed: int) -> Iterator[Finding]:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(num_kills):
            yield attempt(root, Path(folder), chance)


if __name__ == "__main__":
    place, number, start = sys.argv[1:]
    Path(place).mkdir(parents=True)
    for finding in findings(Path(place), int(number), int(start)):
        sys.stdout.write(json.dumps(asdict(finding)) + "\n")
        sys.stdout.flush()
