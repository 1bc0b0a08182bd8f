"""Where a run begins: with the newest checkpoint that is good, or at step 0; all ranks decide together.

Nothing is changed on the disk here, and no tensor is read before every file has been held against its
manifest.
"""

from __future__ import annotations

import json
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
from medsft.launch import is_restart
from medsft.run_folder import RunFolder, holds_run, left_by_a_run

logger = logging.getLogger(__name__)


def candidates(folder: RunFolder, wanted: str, overwrite: bool, environment: Mapping[str, str]) -> list[Path]:
    """Checkpoints to begin with, the best first; empty for a run that begins at step 0.

    `wanted` is --resume_from_checkpoint: auto, latest, none, or a path; `overwrite` is
    --overwrite_output_dir. Both say how a run begins, so a restart of the launch that began it (by
    `environment`), or the second start of a branch, goes on with it instead. Raises `UserError` where they do
    not fit what the folder holds, or run.json, which tells who began the run, is asked and cannot be read. A
    damaged checkpoint is among the candidates: whoever opens it says what is wrong.
    """
    own = folders_in(folder.checkpoints)[::-1]
    if own and wanted in ("auto", "latest") and not overwrite:
        return own  # whoever began the run
    description = _description(folder)
    has_begun = is_restart(description, environment)
    if wanted in ("auto", "latest", "none"):
        if has_begun:
            return own
        return _by_word(folder, wanted, overwrite, own)
    chosen = checkpoint_folder(Path(wanted))
    if chosen.resolve().parent == folder.checkpoints.resolve():
        if overwrite:
            raise _contradiction(folder, wanted)
        return own if has_begun else [chosen]
    begun_with = description.get("flags", {}).get("resume_from_checkpoint")
    if has_begun or (begun_with == wanted and not overwrite):
        return own or [chosen]
    if not overwrite:
        _refuse_a_run(folder)
    return [chosen]


def _description(folder: RunFolder) -> Mapping[str, Any]:
    """The content of run.json; empty where there is none.

    Raises `UserError` for one that cannot be read: taken for none, it would have the restart of a launch
    begin at step 0 again.
    """
    try:
        content = json.loads(folder.description.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder.description} cannot be read ({error}), so it is not known whether this launch has "
            "begun the run there, and nothing was changed. To go on from the newest checkpoint, leave out "
            "--overwrite_output_dir and --resume_from_checkpoint; to start over, move that file away first."
        ) from error
    return content


def _by_word(folder: RunFolder, wanted: str, overwrite: bool, own: list[Path]) -> list[Path]:
    if wanted == "latest" and overwrite:
        raise _contradiction(folder, wanted)
    if overwrite:
        return []
    if wanted == "latest" and not own:
        raise UserError(
            f"--resume_from_checkpoint latest: {folder.checkpoints} holds no checkpoint. Give the path of "
            "one, or auto to begin at step 0 where there is none."
        )
    if wanted == "none" or (not own and folder.done.exists()):
        _refuse_a_run(folder)
        return []
    return own


def _contradiction(folder: RunFolder, wanted: str) -> UserError:
    return UserError(
        f"--resume_from_checkpoint {wanted} goes on with the run in {folder.path}, and "
        "--overwrite_output_dir true starts over there; give one of them."
    )


def _refuse_a_run(folder: RunFolder) -> None:
    if holds_run(folder.path):
        left = ", ".join(item.name for item in left_by_a_run(folder.path))
        raise UserError(
            f"--output_dir {folder.path} already holds a run ({left}). Give another folder, or "
            "--overwrite_output_dir true to start over there; the old run is moved to previous-N."
        )


def open_best(
    paths: Sequence[Path],
    check: Callable[[Manifest], None],
    world: World,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint | None:
    """The first of `paths` that is good, opened on every rank; None for no paths. A collective.

    Each rank reads its share of a checkpoint's files and compares size and SHA-256; what is wrong with a
    checkpoint that is passed over is logged. Before so much is read, `check` may raise `UserError` for a
    checkpoint that is not of this run. Raises `UserError` where there are checkpoints and none is good.
    """
    faults = []
    paths = from_main(world, list(paths))
    for path in paths:
        with together(world):
            checkpoint, fault = _opened(path)
            if checkpoint is not None:
                check(checkpoint.manifest)
        if not any(from_all(world, fault)):
            with together(world):
                fault = _fault_in_share(checkpoint, world, progress)
        known = [text for text in from_all(world, fault) if text is not None]
        if not known:
            return checkpoint
        faults.append(known[0])
        if world.is_main and len(paths) > 1:
            logger.warning("%s is passed over: %s", path.name, known[0])
    if not faults:
        return None
    with together(world):
        raise UserError(
            "no checkpoint is good: " + " ".join(faults) + " Name another by --resume_from_checkpoint, or "
            "start over from step 0 by --overwrite_output_dir true alone; what is there is then moved to "
            "previous-N."
        )


def _opened(path: Path) -> tuple[Checkpoint | None, str | None]:
    """A checkpoint, or what is wrong with it at first sight."""
    try:
        return open_checkpoint(path), None
    except DamagedError as error:
        return None, str(error)


def _fault_in_share(
    checkpoint: Checkpoint, world: World, progress: Callable[[int, int], None] | None
) -> str | None:
    """What is wrong with this rank's share of the files, or with any header; None if nothing is."""
    manifest = checkpoint.manifest
    mine = list(manifest.files)[world.rank :: world.size]
    num_bytes = sum(manifest.files[name].size for name in mine)
    num_done = 0

    def count(num_read: int) -> None:
        nonlocal num_done
        num_done += num_read
        if progress is not None:
            progress(num_done, num_bytes)

    try:
        for name in mine:
            check_file(checkpoint.folder, name, manifest.files[name], count)
        check_slices(checkpoint.folder, manifest)
    except DamagedError as error:
        return str(error)
    return None


_FLAG_OF = {
    "model": "--model_name_or_path",
    "tokenizer": "--model_name_or_path",
    "data": "--train_file",
    "seed": "--seed",
    "global_batch_size": "--global_batch_size",
}


def check_same_run(
    manifest: Manifest, identity: Identity, shapes: Mapping[str, tuple[int, ...]], allowed: Sequence[str]
) -> list[str]:
    """Raises `UserError` when a checkpoint is of another model, data set, seed or batch than this run.

    Both values of every difference are shown. `allowed` (--allow_changed) names those that are meant; they
    are returned, in words. The parameters' `shapes` must be equal in any case.
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
    saved_shapes = {name: parameter.shape for name, parameter in manifest.parameters.items()}
    for name in sorted(saved_shapes.keys() | shapes.keys()):
        if saved_shapes.get(name) != shapes.get(name):
            raise UserError(
                f"the parameter {name} has the shape {shapes.get(name)} in the model and "
                f"{saved_shapes.get(name)} in the checkpoint of step {manifest.step}. Give the model that "
                "the run began with."
            )
    told = [f"{name} was {_short(saved[name])} and is {_short(now[name])}" for name in changed]
    if "global_batch_size" in changed:
        told.append(
            f"after step {manifest.step} the data goes on at example "
            f"{manifest.step * identity.global_batch_size:,}, and {manifest.examples_seen:,} were seen"
        )
    return told


def changed_flags(saved: Mapping[str, Any], now: Mapping[str, Any], own: set[str]) -> list[str]:
    """What is said on the command line now and was said differently then, without the flags in `own`."""
    return [
        f"--{name} {saved[name]} → {value}"
        for name, value in now.items()
        if name not in own and name in saved and saved[name] != value
    ]


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 16 else str(value)
