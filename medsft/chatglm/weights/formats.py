"""One weight file -> its tensors, memory-mapped; damage is found before any tensor is used.

Reading a header touches a few pages however large the file is. Tensors are views of a private mapping of the
file: their pages are the page cache's, shared by all processes, as long as nobody writes into them.
"""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from medsft.chatglm.weights.shards import DOWNLOAD_AGAIN, SAFETENSORS, check_not_pointer
from medsft.errors import UserError

ZIP_START = b"PK\x03\x04"
MAX_HEADER_BYTES = 100_000_000  # the safetensors library refuses longer headers
CHECKSUM_CHUNK_BYTES = 4 << 20


def map_tensors(path: Path) -> dict[str, Tensor]:
    """Tensor name -> memory-mapped tensor on the CPU, in the file's order.

    Raises UserError, naming the file, when it is a git-lfs pointer, truncated, damaged, of a format that
    cannot be mapped, or holds anything but named tensors.
    """
    with path.open("rb") as file:
        start = file.read(512)
    check_not_pointer(path, start)
    if not start:
        raise UserError(f"{path} is empty, a download that did not finish. {DOWNLOAD_AGAIN}.")
    return _map_safetensors(path) if path.suffix == SAFETENSORS.suffix else _map_torch_zip(path)


def verify_checksums(path: Path, progress: Callable[[int], None]) -> None:
    """Reads a whole ``.bin`` file and compares its CRC-32 sums; safetensors files have none to compare.

    `progress` is called with the number of bytes read since the last call. Raises UserError naming the file
    and the damaged record.
    """
    if path.suffix == SAFETENSORS.suffix:
        return
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            try:
                _read_checked(archive, record, progress)
            except zipfile.BadZipFile as error:
                raise UserError(f"{path} is damaged: {_first_line(error)}. {DOWNLOAD_AGAIN}.") from error


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    _check_safetensors_size(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: its header is not valid ({error}). {DOWNLOAD_AGAIN}.") from error


def _check_safetensors_size(path: Path) -> None:
    """Layout: header size as 8 bytes little-endian, JSON header, tensor bytes up to the end of the file.

    https://huggingface.co/docs/safetensors/index#format
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if header_bytes > MAX_HEADER_BYTES:
            raise UserError(
                f"{path} is not a safetensors file, or its first bytes are damaged: they announce a header "
                f"of {header_bytes} bytes. {DOWNLOAD_AGAIN}."
            )
        if len(prefix) < 8 or num_bytes < 8 + header_bytes:
            raise UserError(
                f"{path} is truncated: its {num_bytes} bytes end inside the header of {8 + header_bytes} "
                f"bytes. {DOWNLOAD_AGAIN}."
            )
        header = file.read(header_bytes)
    try:
        entries = json.loads(header.decode("utf-8"))
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        expected_bytes = 8 + header_bytes + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{path} is damaged: its header cannot be read ({error}). {DOWNLOAD_AGAIN}."
        ) from error
    if num_bytes != expected_bytes:
        fault = "truncated" if num_bytes < expected_bytes else "damaged"
        raise UserError(
            f"{path} is {fault}: it has {num_bytes} bytes, its header speaks of {expected_bytes}. "
            f"{DOWNLOAD_AGAIN}."
        )


def _map_torch_zip(path: Path) -> dict[str, Tensor]:
    _check_torch_zip(path)
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, and unpickling other Python objects could run any code, so it "
            f"is refused ({str(error).splitlines()[0]}). Save only the tensors: "
            "torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is damaged: {_first_line(error)}. {DOWNLOAD_AGAIN}.") from error
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path} holds a {type(content).__name__} where a dict of named tensors was expected."
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(
            f"{path} is not a plain dict of named tensors: {', '.join(others[:4])} hold something else, so "
            "it may be a training checkpoint. Give the folder of an exported model, or save its state_dict "
            "alone."
        )
    return content


def _check_torch_zip(path: Path) -> None:
    """What torch.save writes is a zip archive of uncompressed records; its directory ends the file."""
    with path.open("rb") as file:
        start = file.read(4)
    if start != ZIP_START:
        if start[:1] == b"\x80":
            raise UserError(
                f"{path} is in the format of PyTorch before 1.6, which cannot be mapped into memory. Convert "
                "it "
                f'once, where memory suffices: python -c "import torch; p = {str(path)!r}; '
                "torch.save(torch.load(p, map_location='cpu', weights_only=True), p)\"."
            )
        raise UserError(f"{path} is not a PyTorch weight file: it begins with {start!r}. {DOWNLOAD_AGAIN}.")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise UserError(f"{path} holds compressed records; torch.save writes none. {DOWNLOAD_AGAIN}.")
            if min((record.header_offset for record in records), default=1) != 0:
                raise UserError(
                    f"{path} is truncated: bytes are missing before its directory. {DOWNLOAD_AGAIN}."
                )
            for record in records:
                archive.open(record).close()  # compares the record's own header with the directory
                if record.filename.endswith("/data.pkl"):
                    _read_checked(archive, record, lambda _: None)
    except (zipfile.BadZipFile, EOFError, struct.error, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is truncated or damaged: {_first_line(error)} ({path.stat().st_size} bytes here). "
            f"{DOWNLOAD_AGAIN}."
        ) from error


def _read_checked(archive: zipfile.ZipFile, record: zipfile.ZipInfo, progress: Callable[[int], None]) -> None:
    """Reads the record to its end, where zipfile raises BadZipFile if the CRC-32 does not fit.

    torch stores 0 where it was told to compute none (torch.serialization.set_crc32_options).
    """
    if record.CRC == 0:
        return
    with archive.open(record) as file:
        while chunk := file.read(CHECKSUM_CHUNK_BYTES):
            progress(len(chunk))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
