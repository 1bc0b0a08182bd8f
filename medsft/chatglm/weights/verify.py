"""The contents of a folder's weights: equal where tied, finite, not blank, and as their checksums say."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from medsft.chatglm.weights.files import EMBEDDING_NAME, HEAD_NAME, WeightFiles
from medsft.chatglm.weights.formats import verify_checksums
from medsft.chatglm.weights.shards import DOWNLOAD_AGAIN, TORCH_BIN
from medsft.errors import UserError

NUM_SAMPLED_ROWS = 1024
CHUNK_ELEMENTS = 1 << 22


def bytes_to_verify(files: WeightFiles) -> int:
    """Bytes that `verify_contents` reads: all tensors, and ``.bin`` files once more for their checksums."""
    num_bytes = sum(path.stat().st_size for path in files.paths if path.suffix == TORCH_BIN.suffix)
    return num_bytes + files.num_bytes


def verify_contents(files: WeightFiles, tied: bool, advance: Callable[[int], None]) -> None:
    """Reads every byte; `advance` is called with the bytes read since its last call.

    Raises UserError, naming file and tensor, for a checksum that does not fit, tied rows that differ, NaN or
    infinite values, or a matrix of zeros, as a download leaves it that reserved its space and broke off.
    """
    for path in files.paths:
        verify_checksums(path, advance)
    if tied:
        check_tie(files)
    for name in files.names:
        blank = files.shape(name).numel() > 0 and len(files.shape(name)) > 1
        for start, end in _chunks(files.shape(name).numel()):
            chunk = files.read_range(name, start, end)
            low, high = (float(value) for value in torch.aminmax(chunk))  # a NaN becomes both
            if not (math.isfinite(low) and math.isfinite(high)):
                raise UserError(
                    f"{files.place(name)} holds NaN or infinite values: the file is damaged, or the model "
                    f"had diverged when it was saved. {DOWNLOAD_AGAIN}, or take an earlier checkpoint."
                )
            blank = blank and low == high == 0
            advance(chunk.nbytes)
        if blank:
            raise UserError(
                f"{files.place(name)} holds nothing but zeros, as in a file whose download reserved its "
                f"space and broke off. {DOWNLOAD_AGAIN}; the size will be right, so compare a checksum too."
            )


def check_tie(files: WeightFiles, num_rows: int | None = None) -> None:
    """Raises UserError when embedding and head, both stored, differ in a row.

    `num_rows`: how many rows to compare, evenly spread, first and last included; None compares all.
    """
    rows, width = files.shape(EMBEDDING_NAME)
    ranges = _chunks(rows * width)
    if num_rows is not None:
        ranges = [(row * width, (row + 1) * width) for row in sampled_rows(rows, num_rows)]
    for start, end in ranges:
        first = files.read_range(EMBEDDING_NAME, start, end)
        second = files.read_range(HEAD_NAME, start, end)
        if not _equal(first, second):
            raise UserError(
                f"{files.place(EMBEDDING_NAME)} and {files.place(HEAD_NAME)} differ (first seen at row "
                f"{start // width}), but config.json ties them: one of the two would be lost. If the model "
                'was trained untied, write "tie_word_embeddings": false into config.json; otherwise shards '
                "of different models are mixed: download all of them again."
            )


def sampled_rows(num_rows: int, num_samples: int) -> list[int]:
    """At most `num_samples` row numbers below `num_rows`, ascending, evenly spread, both ends included."""
    count = min(num_rows, num_samples)
    return [place * (num_rows - 1) // max(count - 1, 1) for place in range(count)]


def _equal(first: Tensor, second: Tensor) -> bool:
    """Equal values, NaN equal to NaN, whatever the two types."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[first.itemsize]
    if first.dtype == second.dtype and torch.equal(first.view(bits), second.view(bits)):
        return True  # five times as fast as comparing half-precision numbers
    return torch.allclose(first.float(), second.float(), rtol=0.0, atol=0.0, equal_nan=True)


def _chunks(num_elements: int) -> list[tuple[int, int]]:
    starts = range(0, num_elements, CHUNK_ELEMENTS)
    return [(start, min(start + CHUNK_ELEMENTS, num_elements)) for start in starts]
