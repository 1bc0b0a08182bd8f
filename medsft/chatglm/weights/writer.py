"""Weights written shard by shard: at most one shard in memory, no final name before all is there."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from medsft.chatglm.weights.shards import KINDS, weight_files_in
from medsft.errors import UserError
from medsft.files import sync, write_json

DEFAULT_SHARD_BYTES = 2 * 10**9
SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class WrittenWeights:
    """What a ShardWriter left in its folder.

    files: names of the weight files in order. num_bytes: bytes of all tensors. num_parameters: elements of
    all tensors. weight_map: tensor name -> file name.
    """

    files: tuple[str, ...]
    num_bytes: int
    num_parameters: int
    weight_map: dict[str, str] = field(repr=False)


class ShardWriter:
    """Takes tensors one by one and writes them as numbered shards with an index, in the order they come.

    ``add`` keeps a reference, not a copy: a tensor must not be changed until its shard is written, which
    happens at the latest in ``finish``. How many shards there will be is known only then, so they carry
    temporary names until ``finish`` has all of them on the disk. Leaving the ``with`` block through an
    exception removes them.

    Raises UserError when `folder` already holds weights: mixed shards of two models would load silently.
    """

    def __init__(
        self,
        folder: str | Path,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
        weights_format: str = "safetensors",
    ) -> None:
        if max_shard_bytes <= 0:
            raise UserError(f"The shard size is {max_shard_bytes} bytes; give a positive number.")
        if weights_format not in KINDS:
            raise UserError(f"The weights format is {weights_format!r}; it may be {' or '.join(KINDS)}.")
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        present = weight_files_in(self.folder)
        if present:
            raise UserError(
                f"{self.folder} already holds weights ({', '.join(present[:4])}); give a folder without any, "
                "or remove them, so that files of two models cannot mix."
            )
        self._max_shard_bytes = max_shard_bytes
        self._kind = KINDS[weights_format]
        self._shard: dict[str, Tensor] = {}
        self._shard_bytes = 0
        self._written: list[tuple[Path, tuple[str, ...]]] = []
        self._names: set[str] = set()
        self._num_bytes = 0
        self._num_parameters = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()

    def add(self, name: str, tensor: Tensor) -> None:
        """Adds one tensor of any device; writes the shard that it no longer fits into.

        A tensor larger than a shard gets a shard of its own.
        """
        assert name not in self._names, f"{name} was added before"
        tensor = tensor.detach().to("cpu").contiguous()
        if self._shard and self._shard_bytes + tensor.nbytes > self._max_shard_bytes:
            self._write_shard()
        if tensor.nbytes != tensor.untyped_storage().nbytes():
            tensor = tensor.clone()  # of a view, torch.save writes all of its storage and safetensors nothing
        self._names.add(name)
        self._shard[name] = tensor
        self._shard_bytes += tensor.nbytes
        self._num_bytes += tensor.nbytes
        self._num_parameters += tensor.numel()

    def finish(self) -> WrittenWeights:
        """Writes what is left, gives the shards their names and writes the index last, all synced to disk.

        One shard becomes ``model.safetensors`` (``pytorch_model.bin``) without an index.
        """
        if self._shard or not self._written:
            self._write_shard()
        count = len(self._written)
        weight_map: dict[str, str] = {}
        files = []
        for number, (temporary, names) in enumerate(self._written, start=1):
            final = self._kind.single
            if count > 1:
                final = f"{self._kind.shard_stem}-{number:05d}-of-{count:05d}{self._kind.suffix}"
            temporary.replace(self.folder / final)
            files.append(final)
            weight_map.update(dict.fromkeys(names, final))
        self._written = []
        if count > 1:
            metadata = {"total_parameters": self._num_parameters, "total_size": self._num_bytes}
            write_json(self.folder / self._kind.index, {"metadata": metadata, "weight_map": weight_map})
        sync(self.folder)
        return WrittenWeights(tuple(files), self._num_bytes, self._num_parameters, weight_map)

    def abort(self) -> None:
        """Removes the shards written so far."""
        for temporary, _ in self._written:
            temporary.unlink(missing_ok=True)
        self._written = []
        self._shard = {}

    def _write_shard(self) -> None:
        temporary = self.folder / f".shard-{len(self._written) + 1:05d}.partial"
        self._written.append((temporary, tuple(self._shard)))
        temporary.touch()
        # As the umask wants it: save_file makes files that only their owner may read.
        mode = temporary.stat().st_mode
        if self._kind is KINDS["safetensors"]:
            save_file(self._shard, temporary, metadata={"format": "pt"})
        else:
            torch.save(self._shard, temporary)
        temporary.chmod(mode)
        sync(temporary)
        self._shard = {}
        self._shard_bytes = 0


def parse_size(text: str | int) -> int:
    """Bytes of "2GB", "500 MB", "1.5GiB" or a plain number of bytes; raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = SIZE_UNITS.get((match[2] or "B").upper()) if match else None
    if unit is None or float(match[1]) * unit < 1:
        raise UserError(f"The size {text!r} is not understood; write it as 2GB, 500MB or 1.5GiB.")
    return int(float(match[1]) * unit)
