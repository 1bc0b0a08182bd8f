"""Where a run begins: with the newest checkpoint that is good, or at step 0; all ranks decide together.

Nothing is changed on the disk here, and no tensor is read before every file has been held against its
manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medsft.checkpoint.layout import folders_in
from medsft.checkpoint.manifest import DamagedError, Identity, Manifest
from medsft.checkpoint.reader import Checkpoint, open_checkpoint
from medsft.checkpoint.survey import checkpoint_folder
from medsft.checkpoint.verify import check_file, check_slices
from medsft.engine.distributed import World, from_all, from_main, together
from medsft.errors import UserError
from medsft.run_folder import RunFolder, holds_run, left_by_a_run

logger = logging.getLogger(__name__)


def candidates(folder: RunFolder, wanted: str, overwrite: bool) -> list[Path]:
    """Checkpoints to begin with, the best first; empty for a run that begins at step 0.

    `wanted` is --resume_from_checkpoint: auto, latest, none, or a path; `overwrite` is
    --overwrite_output_dir. Raises `UserError` where they do not fit what the folder holds. A damaged
    checkpoint is among the candidates: whoever opens it says what is wrong.
    """
    own = [] if overwrite else folders_in(folder.checkpoints)[::-1]
    if wanted not in ("auto", "latest", "none"):
        chosen = checkpoint_folder(Path(wanted))
        is_own = chosen.resolve().parent == folder.checkpoints.resolve()
        if is_own and overwrite:
            raise UserError(
                f"--resume_from_checkpoint {wanted} goes on with the run in {folder.path}, and "
                "--overwrite_output_dir true starts over there; give one of them."
            )
        if not is_own and not overwrite:
            _refuse_a_run(folder)
        return [chosen]
    if wanted == "none" and not overwrite:
        _refuse_a_run(folder)
    if wanted == "none" or overwrite:
        return []
    if wanted == "latest" and not own:
        raise UserError(
            f"--resume_from_checkpoint latest: {folder.checkpoints} holds no checkpoint. Give the path of "
            "one, or auto to begin at step 0 where there is none."
        )
    if not own and folder.done.exists():
        _refuse_a_run(folder)
    return own


def _refuse_a_run(folder: RunFolder) -> None:
    if holds_run(folder.path):
        left = ", ".join(item.name for item in left_by_a_run(folder.path))
        raise UserError(
            f"--output_dir {folder.path} already holds a run ({left}). Give another folder, or "
            "--overwrite_output_dir true to start over there; the old run is moved to previous-N."
        )


def open_best(
    paths: Sequence[Path], world: World, progress: Callable[[int, int], None] | None = None
) -> Checkpoint | None:
    """The first of `paths` that is good, opened on every rank; None for no paths. A collective.

    Each rank reads its share of a checkpoint's files and compares size and SHA-256; what is wrong with a
    checkpoint that is passed over is logged. Raises `UserError` where there are checkpoints and none is good.
    """
    faults = []
    for path in from_main(world, list(paths)):
        with together(world):
            checkpoint, fault = _checked(path, world, progress)
        known = [text for text in from_all(world, fault) if text is not None]
        if not known:
            return checkpoint
        faults.append(known[0])
        if world.is_main:
            logger.warning("%s is passed over: %s", path.name, known[0])
    if not faults:
        return None
    with together(world):
        raise UserError(
            "no checkpoint is good: " + " ".join(faults) + " To start over from step 0, losing what was "
            "trained, give --overwrite_output_dir true; what is there is moved to previous-N."
        )


def _checked(
    path: Path, world: World, progress: Callable[[int, int], None] | None
) -> tuple[Checkpoint | None, str | None]:
    """A checkpoint, this rank's share of it read, or what is wrong."""
    try:
        checkpoint = open_checkpoint(path)
        manifest = checkpoint.manifest
        mine = list(manifest.files)[world.rank :: world.size]
        num_bytes = sum(manifest.files[name].size for name in mine)
        num_done = 0

        def count(num_read: int) -> None:
            nonlocal num_done
            num_done += num_read
            if progress is not None:
                progress(num_done, num_bytes)

        for name in mine:
            check_file(path, name, manifest.files[name], count)
        check_slices(path, manifest)
    except DamagedError as error:
        return None, str(error)
    return checkpoint, None


_FLAG_OF = {
    "model": "--model_name_or_path",
    "tokenizer": "--model_name_or_path",
    "data": "--train_file",
    "seed": "--seed",
    "global_batch_size": "--global_batch_size",
}


def check_same_run(
    manifest: Manifest, identity: Identity, shapes: Mapping[str, tuple[int, ...]], allowed: Sequence[str]
) -> None:
    """Raises `UserError` when a checkpoint is of another model, data set, seed or batch than this run.

    Both values of every difference are shown. `allowed` (--allow_changed) names those that are meant. The
    parameters' `shapes` must be equal in any case.
    """
    saved, now = asdict(manifest.identity), asdict(identity)
    changed = [name for name in saved if saved[name] != now[name]]
    refused = [name for name in changed if name not in allowed]
    if refused:
        differences = "; ".join(
            f"{name} was {_short(saved[name])} and is {_short(now[name])} ({_FLAG_OF[name]})"
            for name in refused
        )
        raise UserError(
            f"the checkpoint of step {manifest.step} is not of this run: {differences}. Give what it was "
            f"made with, or, if the change is meant, --allow_changed {' '.join(refused)}."
        )
    for name in changed:
        logger.warning("--allow_changed: %s was %s and is %s", name, _short(saved[name]), _short(now[name]))
    saved_shapes = {name: parameter.shape for name, parameter in manifest.parameters.items()}
    for name in sorted(saved_shapes.keys() | shapes.keys()):
        if saved_shapes.get(name) != shapes.get(name):
            raise UserError(
                f"the parameter {name} has the shape {shapes.get(name)} in the model and "
                f"{saved_shapes.get(name)} in the checkpoint of step {manifest.step}. Give the model that "
                "the run began with."
            )


def changed_flags(saved: Mapping[str, Any], now: Mapping[str, Any], own: set[str]) -> list[str]:
    """What is said on the command line now and was said differently then, without the flags in `own`."""
    return [
        f"--{name} {saved[name]} → {value}"
        for name, value in now.items()
        if name not in own and name in saved and saved[name] != value
    ]


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)
