"""Which files of a model folder hold its weights.

Safetensors go before ``.bin``; within a kind, one file goes before numbered shards. An index file, where
there is one, decides which shards belong together.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.errors import UserError

LFS_POINTER_START = b"version https://git-lfs.github.com/spec/v1"
DOWNLOAD_AGAIN = "Download this file again and compare its size with the one on the download page"


@dataclass(frozen=True)
class FileKind:
    """How the files of one container format are named."""

    suffix: str
    single: str
    index: str
    shard_stem: str


SAFETENSORS = FileKind(".safetensors", "model.safetensors", "model.safetensors.index.json", "model")
TORCH_BIN = FileKind(".bin", "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model")
KINDS = {"safetensors": SAFETENSORS, "bin": TORCH_BIN}


@dataclass(frozen=True)
class ShardList:
    """The weight files of a folder.

    files: paths in the order of their names.
    weight_map: tensor name -> file name as the index states it; None where no index is.
    """

    files: tuple[Path, ...]
    weight_map: Mapping[str, str] | None


def find_shards(folder: Path) -> ShardList:
    """The files that hold the weights of `folder`; all of them exist.

    Raises UserError when the folder is missing, holds no weights, lacks a shard, holds the weights twice,
    or its index cannot be read.
    """
    check_folder(folder)
    for kind in KINDS.values():
        single, index = folder / kind.single, folder / kind.index
        if index.is_file():
            found = _from_index(index)
            if single.is_file() and single not in found.files:
                raise UserError(
                    f"{folder} holds the weights twice: {kind.single} and the shards of {kind.index}. "
                    "Nothing says which of them the config belongs to; move the outdated one out of the "
                    "folder."
                )
            return found
        if single.is_file():
            return ShardList((single,), None)
        numbered = _numbered_shards(folder, kind)
        if numbered:
            return ShardList(numbered, None)
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise UserError(
        f"{folder} holds no weights: expected {SAFETENSORS.single} or {SAFETENSORS.index} with its shards, "
        f"or {TORCH_BIN.single} or {TORCH_BIN.index} with its shards; the folder holds {present}. Download "
        "the weight files of the release into this folder, or name the folder that holds them."
    )


def weight_files_in(folder: Path) -> tuple[str, ...]:
    """Names of all files in `folder` that a loader could take for weights, index files included."""
    names = []
    for kind in KINDS.values():
        numbered = re.compile(_numbered_pattern(kind))
        fixed = (kind.single, kind.index)
        names += [
            path.name for path in folder.iterdir() if path.name in fixed or numbered.fullmatch(path.name)
        ]
    return tuple(sorted(names))


def check_folder(folder: Path) -> None:
    """Raises UserError unless `folder` is a folder."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; name the model folder that holds it: {folder.parent}.")
    if not folder.is_dir():
        raise UserError(
            f"The model folder {folder} does not exist (looked in {folder.absolute()}). Give the path of a "
            "folder with config.json and the weights; names on a model hub are not downloaded, so download "
            "the model first."
        )


def check_not_pointer(path: Path, start: bytes) -> None:
    """Raises UserError when `start`, the first bytes of `path`, are those of a git-lfs pointer."""
    if start.startswith(LFS_POINTER_START):
        stated = re.search(rb"^size (\d+)", start, re.MULTILINE)
        size = f" of a file of {int(stated[1]) / 2**20:.1f} MiB" if stated else ""
        raise UserError(
            f"{path} is a git-lfs pointer{size}, not the file itself: the repository was cloned without "
            f"git-lfs. Run 'git lfs install' and then 'git lfs pull' in {path.parent}, or download the file "
            "by hand."
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises UserError when it is missing, a git-lfs pointer or no JSON object."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing. Download it from the release that the other files of {path.parent} come "
            "from."
        ) from None
    check_not_pointer(path, content[:512])
    try:
        value = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). {DOWNLOAD_AGAIN}, or mend it by hand."
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__} where an object {{...}} was expected.")
    return value


def _from_index(index: Path) -> ShardList:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{index} has no "weight_map" with tensor and file names. {DOWNLOAD_AGAIN}.')
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{index} points to {name!r}; the shards have to lie in the index's own folder.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise _missing_shards(index.parent, missing, len(names), f"that {index.name} lists")
    return ShardList(tuple(index.parent / name for name in names), weight_map)


def _numbered_pattern(kind: FileKind) -> str:
    return rf"{kind.shard_stem}-(\d+)-of-(\d+){re.escape(kind.suffix)}"


def _numbered_shards(folder: Path, kind: FileKind) -> tuple[Path, ...]:
    """Shards `stem-0000k-of-0000n`, complete, without an index; empty when there are none."""
    pattern = re.compile(_numbered_pattern(kind))
    found = {path: match for path in sorted(folder.iterdir()) if (match := pattern.fullmatch(path.name))}
    totals = sorted({int(match[2]) for match in found.values()})
    if not totals:
        return ()
    if len(totals) > 1:
        raise UserError(
            f"{folder} holds shards of several sets ({', '.join(f'-of-{total:05d}' for total in totals)}) "
            f"and no {kind.index} that says which to take; move the outdated ones out of the folder."
        )
    numbers = {int(match[1]) for match in found.values()}
    width = len(next(iter(found.values()))[2])
    missing = [
        f"{kind.shard_stem}-{number:0{width}d}-of-{totals[0]:0{width}d}{kind.suffix}"
        for number in range(1, totals[0] + 1)
        if number not in numbers
    ]
    if missing:
        raise _missing_shards(folder, missing, totals[0], "that the other shards' names promise")
    return tuple(found)


def _missing_shards(folder: Path, missing: list[str], total: int, origin: str) -> UserError:
    return UserError(
        f"{len(missing)} of the {total} weight shards {origin} are missing in {folder}: "
        f"{', '.join(missing)}. Download the missing files into this folder (with git: 'git lfs pull')."
    )
