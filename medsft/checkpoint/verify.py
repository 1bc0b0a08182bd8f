"""Whether a checkpoint is, byte for byte, what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from medsft.checkpoint.manifest import (
    STATES,
    DamagedError,
    FileEntry,
    Manifest,
    read_manifest,
    tensor_name,
)
from medsft.checkpoint.shard import open_shard

_CHUNK_BYTES = 1 << 20


def verify(folder: Path, on_bytes: Callable[[int], None] | None = None) -> Manifest:
    """Reads the whole checkpoint and returns its manifest; raises `DamagedError` at the first fault.

    Checked are the manifest's digest and content, size and SHA-256 of every file, and that each shard holds
    just the slices that the manifest says. Files that the manifest does not list are ignored. `on_bytes` is
    called with the bytes read since the last call; they add up to `Manifest.num_bytes`. `UserError` where a
    newer medsft wrote it.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        check_size(folder, name, entry)  # all sizes first: most damage is found at once
    for name, entry in manifest.files.items():
        check_file(folder, name, entry, on_bytes)
    check_slices(folder, manifest)
    return manifest


def check_file(
    folder: Path, name: str, entry: FileEntry, on_bytes: Callable[[int], None] | None = None
) -> None:
    """Reads one file and compares size and SHA-256; raises `DamagedError` with both values.

    `on_bytes` is called with the bytes read since the last call.
    """
    check_size(folder, name, entry)
    path = folder / name
    try:
        found = describe_file(path, on_bytes)
    except OSError as error:
        raise DamagedError(path, f"it cannot be read ({error.strerror})") from error
    if found.sha256 != entry.sha256:
        raise DamagedError(path, f"its SHA-256 is {found.sha256}, the manifest says {entry.sha256}")


def check_size(folder: Path, name: str, entry: FileEntry) -> None:
    """Whether a file is there with its size, without reading it; raises `DamagedError`."""
    path = folder / name
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise DamagedError(path, f"it is missing, the manifest lists it with {entry.size} bytes") from error
    except OSError as error:
        raise DamagedError(path, f"it cannot be read ({error.strerror})") from error
    if not path.is_file():
        raise DamagedError(path, "it is no file")
    if size != entry.size:
        raise DamagedError(path, f"it has {size} bytes, the manifest says {entry.size}")


def check_slices(folder: Path, manifest: Manifest) -> None:
    """Whether the headers of the shards fit the manifest; no tensor is read. Raises `DamagedError`."""
    names = dict.fromkeys(piece.file for each in manifest.parameters.values() for piece in each.slices)
    shards = {name: open_shard(folder / name) for name in names}
    unclaimed = {name: set(shard.keys()) for name, shard in shards.items()}
    for parameter, each in manifest.parameters.items():
        for piece in each.slices:
            for state in STATES:
                name = tensor_name(state, parameter)
                path = folder / piece.file
                if name not in unclaimed[piece.file]:
                    raise DamagedError(path, f"it holds no tensor {name}")
                unclaimed[piece.file].remove(name)
                tensor = shards[piece.file].get_slice(name)
                found = (tensor.get_dtype(), tensor.get_shape())
                expected = ("F32", [piece.end - piece.start])
                if found != expected:
                    raise DamagedError(path, f"its tensor {name} is {found}, the manifest says {expected}")
    for name, left in unclaimed.items():
        if left:
            raise DamagedError(folder / name, f"it holds {min(left)}, which is in no slice of the manifest")


def describe_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> FileEntry:
    """Size and SHA-256 of a file as it is; reads it once. OSError passes through."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    size = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
            if on_bytes is not None:
                on_bytes(count)
    return FileEntry(size, digest.hexdigest())
