"""Small checkpoints, written as a run writes them; as a program, saves and deletions that a test may kill.

python checkpoint_saves.py CHECKPOINTS_FOLDER save:30 delete:10
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from medsft.checkpoint.commit import begin, commit, delete
from medsft.checkpoint.crash_points import reach
from medsft.checkpoint.layout import shard_name
from medsft.checkpoint.manifest import (
    STATES,
    FileEntry,
    Identity,
    Manifest,
    Parameter,
    RankState,
    Slice,
)
from medsft.checkpoint.shard import write_shard

WORLD_SIZE = 2
NUM_ELEMENTS = 300_001  # a rank's file has several chunks


def save(root: Path, step: int, num_elements: int = NUM_ELEMENTS) -> Path:
    """A checkpoint of one parameter of two ranks, committed."""
    temporary = begin(root, step)
    files = write_files(temporary, step, num_elements)
    return commit(root, step, temporary, make_manifest(step, files, num_elements))


def write_files(temporary: Path, step: int, num_elements: int = NUM_ELEMENTS) -> dict[str, FileEntry]:
    """Both ranks' files and one of the model; their values tell the step."""
    config = f"the model of step {step}".encode()
    (temporary / "model").mkdir()
    (temporary / "model" / "config.json").write_bytes(config)
    files = {"model/config.json": FileEntry(len(config), hashlib.sha256(config).hexdigest())}
    for piece in slices(num_elements):
        length = piece.end - piece.start
        tensors = {f"{state}.w": torch.full((length,), float(step)) for state in STATES}
        to_half = [4 * length * len(STATES) // 2]  # bytes

        def on_bytes(count: int, to_half: list[int] = to_half) -> None:
            to_half[0] -= count
            if to_half[0] <= 0:
                reach("shard-half", step)

        files[piece.file] = write_shard(temporary / piece.file, tensors, on_bytes)
        reach("shard-written", step)
    return files


def slices(num_elements: int) -> list[Slice]:
    """The two ranks' parts of the parameter."""
    half = -(-num_elements // WORLD_SIZE)
    bounds = [(rank * half, min(num_elements, (rank + 1) * half)) for rank in range(WORLD_SIZE)]
    return [Slice(shard_name(rank, WORLD_SIZE), *bound) for rank, bound in enumerate(bounds)]


def make_manifest(step: int, files: Mapping[str, FileEntry], num_elements: int = NUM_ELEMENTS) -> Manifest:
    return Manifest(
        step=step,
        epoch=0.5,
        examples_seen=8 * step,
        tokens_seen=99 * step,
        train_loss=2.0,
        validation=None,
        created="2026-01-01T00:00:00+00:00",
        world_size=WORLD_SIZE,
        identity=Identity(model="aa", tokenizer="bb", data="cc", seed=1, global_batch_size=8),
        plan={"num_steps": 100},
        base_model="toy",
        prompt_template="chatglm",
        flags={},
        deepspeed={},
        versions={},
        adam_step=step,
        loss_scaler={},
        counters={},
        ranks=tuple(RankState(0.0, {}) for _ in range(WORLD_SIZE)),
        files=files,
        parameters={"w": Parameter((num_elements,), tuple(slices(num_elements)))},
    )


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        action, _, number = argument.partition(":")
        {"save": save, "delete": delete}[action](Path(sys.argv[1]), int(number))
