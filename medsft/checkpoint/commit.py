"""How a checkpoint comes to be and goes, so that a kill at any instant leaves only complete ones.

    begin        .step-N.tmp is made; every rank writes its file there and has it on the disk
    commit       manifest, everything on the disk, rename to step-N, then the pointer `latest`
    delete       rename to .step-N.deleted, then the files
    clean, point at the next start: what a kill left behind is removed, the pointer set right

All of it on rank 0 only: one process per run folder does this, the one that holds its lock. Where the disk
is full or fails, `UserError` names the place and what happened.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from medsft.checkpoint.crash_points import reach
from medsft.checkpoint.layout import (
    LATEST,
    MANIFEST,
    deleted_folder,
    is_leftover,
    read_latest,
    step_folder,
    steps_in,
    temporary_folder,
)
from medsft.checkpoint.manifest import Manifest, write_manifest
from medsft.errors import UserError
from medsft.files import sync, write_text
from medsft.run_folder import step_name, writing

logger = logging.getLogger(__name__)

HEADROOM_BYTES = 8 * 2**20
"""Left free beside a checkpoint, with a hundredth of its size: for its manifest, metrics, the file system."""


def check_space(root: Path, num_bytes: int) -> None:
    """Raises `UserError` if the disk has no room for one more checkpoint of `num_bytes`.

    Quotas are not seen; a save that meets one fails like one on a full disk.
    """
    with writing(root):
        there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
        free = shutil.disk_usage(there).free
    needed = num_bytes + num_bytes // 100 + HEADROOM_BYTES
    if free < needed:
        raise UserError(
            f"{root} has {_gib(free)} free, the next checkpoint needs {_gib(needed)}; the earlier ones are "
            "untouched. Make room there, keep fewer (medsft checkpoint prune, a lower --save_total_limit), "
            "or give an --output_dir on a larger disk."
        )


def begin(root: Path, step: int) -> Path:
    """Makes the folder that the checkpoint of a step is written into, empty, and returns it.

    What an earlier attempt at this step left there is removed. `UserError` if the step has a checkpoint.
    """
    temporary = temporary_folder(root, step)
    with writing(root):
        _check_unused(root, step)
        if temporary.exists():
            shutil.rmtree(temporary)
        is_new = not root.exists()
        temporary.mkdir(parents=True)
        if is_new:
            sync(root.parent)
    reach("begin", step)
    return temporary


def commit(root: Path, step: int, temporary: Path, manifest: Manifest) -> Path:
    """Gives a written checkpoint its name and has `latest` name it; returns its folder.

    All files that the manifest lists are in `temporary`, complete. `UserError` if one of them is not there
    with its size, which is what a folder that the nodes do not share looks like, or if the step has a
    checkpoint; `temporary` is then left as it is, for `abandon`. A pointer that cannot be written is told to
    the log only: the checkpoint is there without it.
    """
    final = step_folder(root, step)
    with writing(root):
        _check_unused(root, step)
        _settle(temporary, manifest)
        reach("before-manifest", step)
        write_manifest(temporary, manifest)
        sync(temporary)
        reach("before-rename", step)
        temporary.rename(final)
        reach("after-rename", step)
        sync(root)
    reach("before-pointer", step)
    try:
        write_text(root / LATEST, step_name(step) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s); %s is complete all the same", root / LATEST, error, final)
    reach("after-pointer", step)
    return final


def abandon(temporary: Path) -> None:
    """Removes a checkpoint that cannot be finished, so that its room is free again.

    What cannot be removed is told to the log and left to `clean` at the next start.
    """
    assert is_leftover(temporary.name), temporary
    if temporary.exists():
        _remove(temporary)


def delete(root: Path, step: int) -> None:
    """Deletes the checkpoint of a step; it is hidden first, so that nobody finds half of it.

    `UserError` if it is the only one: a run is never left without.
    """
    if steps_in(root) == [step]:
        raise UserError(f"{step_folder(root, step)} is the only checkpoint there; it is not deleted.")
    hidden = deleted_folder(root, step)
    reach("before-delete", step)
    with writing(root):
        if hidden.exists():
            shutil.rmtree(hidden)
        step_folder(root, step).rename(hidden)
        sync(root)
        # First of all files: without it nobody takes the rest for a checkpoint, whatever its name.
        (hidden / MANIFEST).unlink(missing_ok=True)
        reach("in-delete", step)
        shutil.rmtree(hidden)


def clean(root: Path) -> list[str]:
    """Removes what saves and deletions that were killed have left; returns the names, sorted."""
    if not root.exists():
        return []
    names = sorted(item.name for item in root.iterdir() if is_leftover(item.name))
    return [name for name in names if _remove(root / name)]


def point(root: Path) -> None:
    """Has `latest` name the newest committed checkpoint; removes it where there is none."""
    steps = steps_in(root)
    with writing(root):
        if not steps:
            (root / LATEST).unlink(missing_ok=True)
        elif read_latest(root) != steps[-1]:
            write_text(root / LATEST, step_name(steps[-1]) + "\n")


def _check_unused(root: Path, step: int) -> None:
    final = step_folder(root, step)
    if final.exists():  # a rename would fail on it, or, were it empty, replace it
        raise UserError(
            f"{final} exists already and is not replaced. Resume from it, or move it away if it is damaged."
        )


def _settle(temporary: Path, manifest: Manifest) -> None:
    """Has all files, and the folders they are in, on the disk; `UserError` if one is not as listed."""
    for name, entry in manifest.files.items():
        path = temporary / name
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise UserError(
                f"{path} was written by its rank but is not there for rank 0. --output_dir must be on a file "
                "system that all nodes share."
            ) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != entry.size:
                raise UserError(
                    f"{path} has {size} bytes where rank 0 sees it, and its rank wrote {entry.size}. "
                    "--output_dir must be on a file system that all nodes share."
                )
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for folder, _, _ in os.walk(temporary):
        sync(Path(folder))


def _remove(path: Path) -> bool:
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        logger.warning("%s cannot be removed (%s); the next start tries again", path, error)
        return False
    return True


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
