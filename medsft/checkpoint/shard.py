"""One rank's file: flat fp32 tensors in the safetensors format, hashed while they are written.

The format (https://huggingface.co/docs/safetensors/index#format): length of the header as 8 bytes
little-endian, header in JSON, the tensors' bytes one after the other. The safetensors library itself cannot
hash what it writes, and reading it all back to do so would cost as much again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from medsft.checkpoint.manifest import DamagedError, FileEntry

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_BYTES = 1 << 20
"""Hashed and then written while still in the processor's cache."""


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], on_bytes: Callable[[int], None] | None = None
) -> FileEntry:
    """Writes a new file with flat, contiguous fp32 tensors of the host; on the disk when it returns.

    The tensors are not copied and must not change meanwhile. Size and SHA-256 are of what was written, not
    of what a disk made of it. `on_bytes` is called with the number of bytes after the header and after each
    chunk, at most CHUNK_BYTES; they add up to the size. OSError passes through, FileExistsError included.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("xb") as file:
        for chunk in _chunks(tensors):
            digest.update(chunk)
            file.write(chunk)
            size += len(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, digest.hexdigest())


def open_shard(path: Path) -> safe_open:
    """The tensors of a shard by name, mapped: only the header is read.

    Raises `DamagedError` where the header is wrong or does not fit the size of the file.
    """
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise DamagedError(path, "it is missing") from error
    except OSError as error:
        raise DamagedError(path, f"it cannot be read ({error})") from error
    except SafetensorError as error:
        raise DamagedError(path, f"it is no valid safetensors file ({error})") from error


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield _header(tensors)
    for tensor in tensors.values():
        content = memoryview(tensor.detach().numpy()).cast("B")
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES]


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    """Padded with blanks so that the tensors begin at a multiple of 8 bytes."""
    import torch  # seconds, which those who only look into checkpoints do not spend

    entries = {}
    end = 0
    for name, tensor in tensors.items():
        is_flat = tensor.dtype == torch.float32 and tensor.dim() == 1 and tensor.is_contiguous()
        assert is_flat and tensor.device.type == "cpu", (
            f"{name}: {tensor.dtype} {tensor.shape} {tensor.device}"
        )
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
