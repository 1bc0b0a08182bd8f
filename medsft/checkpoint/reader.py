"""Any range of any parameter out of a checkpoint, whatever the number of ranks that wrote it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medsft.checkpoint.manifest import DamagedError, Manifest, Slice, read_manifest, tensor_name
from medsft.checkpoint.shard import open_shard
from medsft.checkpoint.verify import check_size


class Checkpoint:
    """A checkpoint opened for reading; a source for `medsft.engine.zero.load_slices`.

    Files are mapped when a range of theirs is first read, and must not be changed while they are (a file cut
    short would end the process with SIGBUS). What they hold is not checked here: `medsft.checkpoint.verify`.

    bytes_read: bytes asked for so far.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.bytes_read = 0
        self._shards: dict[str, safe_open] = {}

    def read_range(self, name: str, start: int, end: int, state: str = "master") -> Tensor:
        """Elements `start` … `end`-1 of a flattened parameter in one of STATES: fp32 [end - start].

        A view of the mapped file where one slice holds them all, else a copy put together from several: copy
        out of it, never write into it. Only the pages of the range are touched. Raises `DamagedError` where
        a file has changed since the checkpoint was opened or its header does not fit the manifest.
        """
        parameter = self.manifest.parameters[name]
        assert 0 <= start <= end <= parameter.num_elements, (name, start, end, parameter.num_elements)
        self.bytes_read += (end - start) * torch.float32.itemsize
        parts = []
        for piece in parameter.slices:
            low, high = max(start, piece.start), min(end, piece.end)
            if low < high:
                tensor = self._slice(piece, tensor_name(state, name))
                parts.append(tensor[low - piece.start : high - piece.start])
        return parts[0] if len(parts) == 1 else torch.cat([torch.empty(0), *parts])

    def _slice(self, piece: Slice, name: str) -> Tensor:
        """A whole slice as a view of its mapped file."""
        path = self.folder / piece.file
        if piece.file not in self._shards:
            self._shards[piece.file] = open_shard(path)
        try:
            tensor = self._shards[piece.file].get_tensor(name)
        except SafetensorError as error:
            raise DamagedError(path, f"its tensor {name} cannot be read ({error})") from error
        if tensor.dtype != torch.float32 or tensor.shape != (piece.end - piece.start,):
            raise DamagedError(
                path,
                f"its tensor {name} is {tensor.dtype} {list(tensor.shape)}, the manifest says torch.float32 "
                f"{[piece.end - piece.start]}",
            )
        return tensor


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens a checkpoint after a look at its manifest and at the sizes of all files; reads no tensor.

    Raises `DamagedError` where one of them is wrong, and `UserError` where a newer medsft wrote it.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        check_size(folder, name, entry)
    return Checkpoint(folder, manifest)
