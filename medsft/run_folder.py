"""The folder of a run: its files by name, and what makes room there for another run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from medsft.errors import UserError
from medsft.files import replace_file, sync


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
    def trackers(self) -> Path:
        """What --report_to keeps here: the names of the run elsewhere, and what was not sent."""
        return self.path / "trackers"

    @property
    def model(self) -> Path:
        """The final model, complete when the folder exists."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, one folder each, and of the pointer `latest`."""
        return self.path / "checkpoints"

    @property
    def stop(self) -> Path:
        """STOP: made by the user, it asks the run to write a checkpoint and end."""
        return self.path / "STOP"

    @property
    def done(self) -> Path:
        """DONE: the run finished and everything it promised is on disk."""
        return self.path / "DONE"

    @property
    def data_cache(self) -> Path:
        """Tokenised data, unless `--data_cache_dir` names another place."""
        return self.path / "data_cache"


def model_folder(folder: Path) -> Path:
    """The folder itself, or the final model inside it when it is that of a run.

    Raises `UserError` for a run that has written no model yet, and for a checkpoint.
    """
    run = RunFolder(folder)
    name = shlex.quote(str(folder))
    if (folder / "config.json").exists():
        return folder
    if (folder / "manifest.json").exists():
        raise UserError(f"{folder} is a checkpoint. Take its model out: medsft export {name} MODEL_FOLDER.")
    if (run.model / "config.json").exists():
        return run.model
    if run.description.exists():
        can_export = any(run.checkpoints.glob("step-*/manifest.json"))
        from_a_checkpoint = (
            f", or take the model out of its newest checkpoint: medsft export {name} MODEL_FOLDER"
        )
        raise UserError(
            f"The run in {folder} has not written its model yet. Let it finish"
            f"{from_a_checkpoint if can_export else ''}."
        )
    return folder


_OF_A_RUN = (
    "run.json",
    "metrics.jsonl",
    "tensorboard",
    "trackers",
    "model",
    "checkpoints",
    "DONE",
)
_ABOUT_A_RUN = ("evaluation", "report.html")
"""What other commands put beside it: true of this run only."""


def left_by_a_run(path: Path) -> list[Path]:
    """What an earlier run left in a folder: the files and folders that `move_aside` moves."""
    own, about = (
        [path / name for name in names if (path / name).exists()] for names in (_OF_A_RUN, _ABOUT_A_RUN)
    )
    return own + about if own else []


def holds_run(path: Path) -> bool:
    """Whether a run began in this folder. Other files, the user's, make none."""
    return bool(left_by_a_run(path))


def step_name(step: int) -> str:
    """Name of what is kept of a step: step-00000100. Sorted by name they are sorted by step, up to 10⁸."""
    return f"step-{step:08}"


def step_of(name: str) -> int | None:
    """The step of such a name; None for any other name."""
    digits = name.removeprefix("step-")
    is_one = digits.isascii() and digits.isdecimal() and step_name(int(digits)) == name
    return int(digits) if is_one else None


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


def move_aside(path: Path) -> Path | None:
    """Moves what an earlier run left, its checkpoints too, to `previous-N`, the next number.

    Returns that folder, or None where there is nothing to move.
    """
    left = left_by_a_run(path)
    return _move(left, _next_previous(path)) if left else None


def move_aside_results(path: Path) -> None:
    """Moves DONE, the final model and what was said of it to `previous-N`, of a run that goes on."""
    folder = RunFolder(path)
    about = (path / name for name in _ABOUT_A_RUN)
    left = [item for item in (folder.done, folder.model, *about) if item.exists()]
    if left:
        _move(left, _next_previous(path))


def move_aside_newer(path: Path, step: int) -> Path | None:
    """Moves checkpoints of later steps than `step` to `checkpoints/previous-N`, or None if there are none.

    A run that goes on from `step` calls it: the later ones are damaged, or belong to a branch that is given
    up, and would be taken for this run's. Folders without a manifest go too: they are in the way of its own.
    The branch's metrics go with them, as a copy. It all stays in the checkpoints folder, which may be a link
    to another disk. The pointer `latest` is left as it is.
    """
    folder = RunFolder(path)
    if not folder.checkpoints.exists():
        return None
    found = {step_of(item.name): item for item in folder.checkpoints.iterdir()}
    newer = sorted((each for each in found if each is not None and each > step), reverse=True)
    if not newer:
        return None
    # From the newest down: cut short, it leaves the line of checkpoints without a gap.
    aside = _move([found[each] for each in newer], _next_previous(folder.checkpoints))
    if folder.metrics.exists():
        replace_file(aside / folder.metrics.name, folder.metrics.read_bytes())
    return aside


def _next_previous(path: Path) -> Path:
    number = 1 + sum(1 for _ in path.glob("previous-*"))
    while (aside := path / f"previous-{number}").exists():
        number += 1
    return aside


def _move(items: Sequence[Path], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for item in items:
        item.rename(folder / item.name)
    for changed in {folder, folder.parent, *(item.parent for item in items)}:
        sync(changed)
    return folder
