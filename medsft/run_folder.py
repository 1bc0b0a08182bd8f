"""The folder of a run: its files by name, and who may write there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from medsft.errors import UserError


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


def claim(path: Path, overwrite: bool) -> FileLock:
    """Takes the folder for this run, or raises `UserError`. Called by rank 0 only.

    A folder that holds a run is refused, or, with `overwrite`, what the run left is moved to `previous-N`.
    The returned lock is held until released or until the process ends; a dead job leaves none behind.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(
            f"--output_dir {path} is in use by another run (its process holds {path / '.lock'}). Wait for "
            "it, or give another folder."
        ) from error
    except OSError as error:
        raise UserError(
            f"--output_dir {path} cannot be written ({error.strerror}). Give another folder."
        ) from error
    left = [path / name for name in _OF_A_RUN if (path / name).exists()]
    if left and not overwrite:
        lock.release()
        raise UserError(
            f"--output_dir {path} already holds a run ({', '.join(item.name for item in left)}). Give "
            "another folder, or --overwrite_output_dir true to start over there; the old run is moved to "
            "previous-N."
        )
    if left:
        number = 1 + sum(1 for _ in path.glob("previous-*"))
        while (aside := path / f"previous-{number}").exists():
            number += 1
        aside.mkdir()
        for item in left:
            item.rename(aside / item.name)
    return lock
