"""An encoded data set, read from a memory-mapped Arrow file."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsft.data.summary import Summary


class Row(NamedTuple):
    """One example.

    Attributes:
        input_ids: int32 [length], a read-only view into the file.
        context_length: index of <sop>.
    """

    input_ids: np.ndarray
    context_length: int


class EncodedDataset:
    """Rows of tokens, in the order of the files.

    Attributes:
        lengths: int64 [len], tokens of each example.
        num_targets: int64 [len], supervised tokens of each example.
        fingerprint: SHA-256 of all tokens and context lengths in order, hexadecimal. The same tokens give the
            same fingerprint, whatever the files are called and however they are laid out.
        summary: counts.
    """

    def __init__(self, arrow_file: Path, files: Sequence[Path], fingerprint: str, summary: Summary) -> None:
        from datasets import Dataset

        columns = Dataset.from_file(str(arrow_file)).data
        chunks = columns.column("input_ids").chunks
        # Views into the mapped file: nothing is read before it is asked for.
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._chunk_starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self._context_lengths = columns.column("context_length").to_numpy()
        self._file_numbers = columns.column("file").to_numpy()
        self._lines = columns.column("line").to_numpy()
        self._files = tuple(files)
        empty = np.zeros(0, dtype=np.int64)
        self.lengths = np.concatenate([empty, *(np.diff(offsets) for offsets in self._offsets)])
        self.num_targets = self.lengths - self._context_lengths
        self.fingerprint = fingerprint
        self.summary = summary

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} is outside 0 … {len(self) - 1}")
        number = int(np.searchsorted(self._chunk_starts, index, side="right")) - 1
        start, end = self._offsets[number][index - self._chunk_starts[number] :][:2]
        return Row(self._values[number][start:end], int(self._context_lengths[index]))

    def source(self, index: int) -> str:
        """Where an example comes from: "file:line"."""
        return f"{self._files[self._file_numbers[index]]}:{self._lines[index]}"
