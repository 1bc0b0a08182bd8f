"""The folder of a run: its files by name, and who may write there."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from medsft.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside `--output_dir`."""

    path: Path

    @property
    def description(self) -> Path:
        """run.json: flags, versions, data fingerprint. Its presence says that a run began here."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: a line for each report."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files."""
        return self.path / "tensorboard"

    @property
    def model(self) -> Path:
        """The final model, complete when the folder exists."""
        return self.path / "model"

    def snapshot(self, step: int) -> Path:
        """The model after `step` steps, complete when the folder exists."""
        return self.path / "snapshots" / f"step-{step:08}"

    @property
    def done(self) -> Path:
        """DONE: the run finished and everything it promised is on disk."""
        return self.path / "DONE"

    @property
    def data_cache(self) -> Path:
        """Tokenised data, unless `--data_cache_dir` names another place."""
        return self.path / "data_cache"


def model_folder(folder: Path) -> Path:
    """The folder itself, or the final model inside it when it is that of a run."""
    inside = RunFolder(folder).model
    return inside if not (folder / "config.json").exists() and (inside / "config.json").exists() else folder


_OF_A_RUN = ("run.json", "metrics.jsonl", "tensorboard", "model", "snapshots", "DONE")


def claim(path: Path, overwrite: bool) -> FileLock | None:
    """Takes the folder for this run, or raises `UserError`. Called by rank 0 only.

    A folder that holds a run is refused unless `overwrite` is true; `move_aside` then makes room. The lock is
    held until released or until the process ends, so a dead job leaves none behind. None where the file
    system has no locks.
    """
    # A soft lock, which is a file that a dead job leaves behind, would be worse than none.
    lock = FileLock(path / ".lock", fallback_to_soft=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"--output_dir {path} is in use by another run (its process holds {path / '.lock'}). Wait for "
            "it, or give another folder."
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSYS:
            logger.warning("%s has no file locks; nothing keeps a second run out of it", path)
            return None
        raise UserError(
            f"--output_dir {path} cannot be written ({error.strerror}). Give another folder."
        ) from error
    left = _left_by_a_run(path)
    if left and not overwrite:
        lock.release()
        raise UserError(
            f"--output_dir {path} already holds a run ({', '.join(item.name for item in left)}). Give "
            "another folder, or --overwrite_output_dir true to start over there; the old run is moved to "
            "previous-N."
        )
    return lock


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full or not writable, found in the block, becomes a `UserError` that names `path`.

    Python raises OSError for it, safetensors and torch errors of their own.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be written ({error}). Make room there or give another --output_dir."
        ) from error


def move_aside(path: Path) -> None:
    """Moves what an earlier run left to `previous-N`, the next number."""
    left = _left_by_a_run(path)
    if not left:
        return
    number = 1 + sum(1 for _ in path.glob("previous-*"))
    while (aside := path / f"previous-{number}").exists():
        number += 1
    aside.mkdir()
    for item in left:
        item.rename(aside / item.name)


def _left_by_a_run(path: Path) -> list[Path]:
    return [path / name for name in _OF_A_RUN if (path / name).exists()]
