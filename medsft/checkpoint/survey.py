"""What a run's checkpoints folder holds, checked cheaply: manifests and sizes, no contents."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medsft.checkpoint.layout import LATEST, MANIFEST, folders_in, is_leftover, read_latest
from medsft.checkpoint.manifest import Manifest, read_manifest
from medsft.checkpoint.verify import check_size
from medsft.errors import UserError
from medsft.run_folder import RunFolder, step_of


@dataclass(frozen=True)
class Found:
    """One folder named as a checkpoint.

    manifest: None where it cannot be read. fault: what is wrong, in a sentence; None where nothing is.
    num_bytes: of its files as they are on the disk. is_latest: the pointer names it.
    """

    step: int
    folder: Path
    manifest: Manifest | None
    fault: str | None
    num_bytes: int
    is_latest: bool

    @property
    def is_committed(self) -> bool:
        """Whether a run could take it for one of its checkpoints, be it damaged or not."""
        return (self.folder / MANIFEST).is_file()

    @property
    def best_loss(self) -> float | None:
        """Validation loss measured at this very step, if the checkpoint can be used at all."""
        if self.fault is not None or self.manifest is None or self.manifest.validation is None:
            return None
        return self.manifest.validation.loss if self.manifest.validation.step == self.step else None


def comparable_losses(found: Sequence[Found]) -> list[tuple[int, float | None]]:
    """(step, `best_loss`) of each, for `superseded`.

    A loss counts as none where it was measured on other data than the run validates with now, which are
    those of the newest validation.
    """
    usable = [item for item in found if item.fault is None and item.manifest and item.manifest.validation]
    newest = max(usable, key=lambda item: item.step, default=None)
    of_now = {
        item.step
        for item in usable
        if item.manifest.validation.is_comparable(newest.manifest.validation.data)
    }
    return [(item.step, item.best_loss if item.step in of_now else None) for item in found]


def checkpoints_root(path: Path) -> Path:
    """The checkpoints folder of a run, given the run's folder or itself.

    Raises `UserError` where `path` is neither.
    """
    inside = RunFolder(path).checkpoints
    if inside.is_dir():
        return inside
    if path.is_dir() and any(
        step_of(item.name) is not None or item.name == LATEST for item in path.iterdir()
    ):
        return path
    fault = "holds no checkpoints" if path.exists() else "is not there"
    raise UserError(
        f"{path} {fault}. Give the --output_dir of a run that saves some, or its folder {inside.name}."
    )


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is that of one checkpoint, by its name or its manifest, and not of a run."""
    return step_of(path.name) is not None or (path / MANIFEST).is_file()


def checkpoint_folder(path: Path, step: int | None = None) -> Path:
    """A checkpoint: `path` itself, or of the run there the one of `step`, or the newest.

    Raises `UserError` where there is none. What is wrong inside is not looked at.
    """
    if is_checkpoint(path):
        if not path.is_dir():
            raise UserError(
                f"The checkpoint {path} is not there; `medsft checkpoint list` shows those of a run."
            )
        if step is not None and step_of(path.name) != step:
            raise UserError(
                f"{path} is one checkpoint, so --step {step} cannot be chosen; give the run's folder."
            )
        return path
    root = checkpoints_root(path)
    folders = {step_of(folder.name): folder for folder in folders_in(root)}
    if not folders:
        raise UserError(f"{root} holds no checkpoints.")
    if step is not None and step not in folders:
        there = ", ".join(map(str, folders))
        raise UserError(f"{root} has no checkpoint of step {step}; there are {there}.")
    return folders[max(folders) if step is None else step]


def survey(root: Path) -> list[Found]:
    """All checkpoints of a checkpoints folder, the newest first by step, unusable ones too."""
    latest = read_latest(root)
    found = [look(folder, step_of(folder.name) == latest) for folder in reversed(folders_in(root))]
    return [item for item in found if item.folder.exists()]  # a live run may have deleted one meanwhile


def look(folder: Path, is_latest: bool = False) -> Found:
    """One checkpoint, checked cheaply."""
    manifest, fault = None, None
    try:
        manifest = read_manifest(folder)
        for name, entry in manifest.files.items():
            check_size(folder, name, entry)
    except UserError as error:
        fault = str(error)
    named = step_of(folder.name)
    step = manifest.step if named is None and manifest is not None else named
    return Found(step or 0, folder, manifest, fault, _bytes_on_disk(folder), is_latest)


def unfinished(root: Path) -> list[str]:
    """Names of what is being written or deleted there, or was when its process was killed; sorted."""
    return sorted(item.name for item in root.iterdir() if is_leftover(item.name))


def _bytes_on_disk(folder: Path) -> int:
    num_bytes = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a live run deletes checkpoints
            num_bytes += path.stat().st_size if path.is_file() else 0
    return num_bytes
