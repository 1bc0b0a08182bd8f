"""What the launcher knows of a run's output folder: where it is, and how far the run has come."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import settings_file

OUTPUT_FLAGS = ("--output_dir", "--output-dir")
_SETTINGS_FLAGS = ("--config",)


@dataclass(frozen=True)
class RunFolder:
    """The folder that the script's own arguments name."""

    path: Path

    @property
    def logs(self) -> Path:
        """Where each rank's output is kept."""
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        """Where the script writes its checkpoints."""
        return self.path / "checkpoints"

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint that is complete, None where there is none.

        Complete is a folder step-00000100 with manifest.json, which is written last. The pointer `latest` is
        not asked: a kill may leave it one checkpoint behind. Raises `OSError` when the folder cannot be read.
        """
        try:
            folders = list(self.checkpoints.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return None
        steps = (
            int(folder.name.removeprefix("step-"))
            for folder in folders
            if re.fullmatch(r"step-[0-9]{8,}", folder.name) and (folder / "manifest.json").is_file()
        )
        return max(steps, default=None)

    def lacks_done(self) -> bool:
        """Whether a run has begun here, by its run.json, and has not written DONE, its last file."""
        return (self.path / "run.json").exists() and not (self.path / "DONE").exists()


def find(arguments: Sequence[str]) -> RunFolder | None:
    """The folder that a script's own arguments, or the file of settings among them, give by --output_dir."""
    path = find_path(arguments, OUTPUT_FLAGS)
    return None if path is None else RunFolder(Path(path))


def find_path(arguments: Sequence[str], flags: Collection[str]) -> str | None:
    """The value that the last one of `flags` has among a script's own arguments.

    Without one that of the file which --config names; a flag wins over it. None without either.
    """
    path, file = _last(arguments, flags), _last(arguments, _SETTINGS_FLAGS)
    if path is not None or file is None:
        return path
    return settings_file.value(Path(file), [flag.removeprefix("--") for flag in flags])


def _last(arguments: Sequence[str], flags: Collection[str]) -> str | None:
    value = ""
    for position, argument in enumerate(arguments):
        name, equals, after = argument.partition("=")
        if name in flags:
            value = after if equals else "".join(arguments[position + 1 : position + 2])
    return value or None
