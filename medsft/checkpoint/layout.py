"""Names inside the checkpoints folder of a run, and what is there by these names.

latest                             a hint: the name of the newest checkpoint
step-00000100/                     a checkpoint, complete when it has this name and a manifest
    manifest.json                  written last
    rank-00000-of-00002.safetensors
    model/                         configuration and tokenizer
.step-00000100.tmp/                being written, or left by a save that was killed
.step-00000080.deleted/            being deleted, or left half deleted
"""

from __future__ import annotations

import re
from pathlib import Path

from medsft.run_folder import step_name, step_of

MANIFEST = "manifest.json"
LATEST = "latest"

_LEFTOVER = re.compile(r"\.step-[0-9]{8,}\.(tmp|deleted)|\.latest\.[0-9]+\.tmp")


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is; `root` is the run's checkpoints folder."""
    return root / step_name(step)


def temporary_folder(root: Path, step: int) -> Path:
    """Where it is while it is written."""
    return root / f".{step_name(step)}.tmp"


def deleted_folder(root: Path, step: int) -> Path:
    """Where it is while it is deleted."""
    return root / f".{step_name(step)}.deleted"


def is_leftover(name: str) -> bool:
    """Whether a name in the checkpoints folder is that of something unfinished, of any step."""
    return _LEFTOVER.fullmatch(name) is not None


def shard_name(rank: int, world_size: int) -> str:
    """File name of one rank's slices."""
    return f"rank-{rank:05}-of-{world_size:05}.safetensors"


def steps_in(root: Path) -> list[int]:
    """Steps of the committed checkpoints, ascending; empty where there is no such folder.

    By the number in the name: clocks of several hosts disagree, and copying changes times.
    """
    if not root.exists():
        return []
    steps = (step_of(item.name) for item in root.iterdir())
    return sorted(step for step in steps if step is not None and _is_committed(root, step))


def folders_in(root: Path) -> list[Path]:
    """All folders named as checkpoints, ascending by step; one without a manifest is damaged, but listed."""
    if not root.exists():
        return []
    found = [(step_of(item.name), item) for item in root.iterdir() if item.is_dir()]
    return [item for step, item in sorted(found, key=lambda pair: pair[0] or 0) if step is not None]


def read_latest(root: Path) -> int | None:
    """The step that the pointer names, or None: missing, not understood, or it names no checkpoint."""
    try:
        text = (root / LATEST).read_bytes().decode("ascii")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError):
        return None
    step = step_of(text.removesuffix("\n"))
    return step if step is not None and _is_committed(root, step) else None


def _is_committed(root: Path, step: int) -> bool:
    return (step_folder(root, step) / MANIFEST).is_file()
