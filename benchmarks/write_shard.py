"""Ways to write a rank's file of a checkpoint: what hashing costs, and what was tried to hide it.

    python benchmarks/write_shard.py                               # 1.2 GB: 0.1 billion parameters, one rank
    python benchmarks/write_shard.py --gb 9 --folder /the/disk/to/measure

All ways write the same bytes from memory and end with them on the disk, taking turns in a changing order.
The last column is for a process whose main thread runs Python without a pause, which takes the interpreter's
lock from the writer after every chunk for up to 5 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine
import torch

from medsft.checkpoint.shard import write_shard

MIB = 1 << 20
NUM_TENSORS = 36
EARLY_BYTES = 32 * MIB

Tensors = Mapping[str, torch.Tensor]


def chunks(tensors: Tensors, num_bytes: int) -> Iterator[memoryview]:
    """The tensors' memory in pieces of at most `num_bytes`."""
    for tensor in tensors.values():
        content = memoryview(tensor.numpy()).cast("B")
        for start in range(0, len(content), num_bytes):
            yield content[start : start + num_bytes]


def digest(tensors: Tensors, chunk: int) -> str:
    """SHA-256 of the tensors' memory."""
    sha256 = hashlib.sha256()
    for content in chunks(tensors, chunk):
        sha256.update(content)
    return sha256.hexdigest()


def write(
    path: Path,
    tensors: Tensors,
    chunk: int = MIB,
    hashing: bool = True,
    beside: bool = False,
    early: bool = False,
    reserve: bool = False,
) -> None:
    """Writes a file, on the disk when it returns.

    hashing: chunk by chunk, before each is written. beside: in a second thread instead. early: the system is
    asked to begin with the disk every EARLY_BYTES instead of at the end. reserve: the file's room first.
    """
    sha256 = hashlib.sha256()
    num_written = num_begun = 0
    with ThreadPoolExecutor(1) as pool, path.open("xb") as file:
        whole = pool.submit(digest, tensors, chunk) if beside else None
        if reserve:
            os.posix_fallocate(file.fileno(), 0, sum(tensor.nbytes for tensor in tensors.values()))
        for content in chunks(tensors, chunk):
            if hashing and not beside:
                sha256.update(content)
            file.write(content)
            num_written += len(content)
            if early and num_written - num_begun >= EARLY_BYTES:
                # Linux begins to write back what is dirty in this range, and does not wait for it.
                os.posix_fadvise(file.fileno(), num_begun, num_written - num_begun, os.POSIX_FADV_DONTNEED)
                num_begun = num_written
        file.flush()
        os.fsync(file.fileno())
        if whole is not None:
            whole.result()


WAYS: dict[str, Callable[[Path, Tensors], object]] = {
    "write_shard of medsft": write_shard,
    "without SHA-256": lambda path, tensors: write(path, tensors, hashing=False),
    "SHA-256 alone, nothing written": lambda _, tensors: digest(tensors, MIB),
    "chunks of 256 KiB": lambda path, tensors: write(path, tensors, MIB // 4),
    "chunks of 2 MiB": lambda path, tensors: write(path, tensors, 2 * MIB),
    "chunks of 8 MiB": lambda path, tensors: write(path, tensors, 8 * MIB),
    "room reserved first": lambda path, tensors: write(path, tensors, reserve=True),
    "disk begun early": lambda path, tensors: write(path, tensors, early=True),
    "SHA-256 in a second thread": lambda path, tensors: write(path, tensors, beside=True),
    "both": lambda path, tensors: write(path, tensors, beside=True, early=True),
    "both, chunks of 2 MiB": lambda path, tensors: write(path, tensors, 2 * MIB, beside=True, early=True),
}


def measure(way: Callable[[Path, Tensors], object], tensors: Tensors, path: Path) -> tuple[float, float]:
    """Seconds, and seconds of processor time."""
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    way(path, tensors)
    found = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    path.unlink(missing_ok=True)
    return found


def measure_beside_python(way: Callable[[Path, Tensors], object], tensors: Tensors, path: Path) -> float:
    """Seconds in a second thread while this one counts."""
    seconds: list[float] = []
    writer = threading.Thread(target=lambda: seconds.append(measure(way, tensors, path)[0]))
    writer.start()
    count = 0
    while not seconds and writer.is_alive():
        count += 1
    writer.join()
    return seconds[0]


def main() -> None:
    """Measures all ways and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=machine.above_zero, default=1.2, help="size of the file")
    parser.add_argument("--repetitions", type=machine.at_least(1), default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: for temporary files")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="where the table goes")
    options = parser.parse_args()
    num_elements = int(options.gb * 1e9 / 4 / NUM_TENSORS)
    tensors = {f"tensor {number}": torch.rand(num_elements) for number in range(NUM_TENSORS)}
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    names = list(WAYS)
    alone: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    beside: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="medsft-benchmark-") as scratch:
        path = Path(scratch) / "shard"
        for number in range(options.repetitions):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                seconds, cpu_seconds = measure(WAYS[name], tensors, path)
                alone[name].append(seconds)
                cpu[name].append(cpu_seconds)
                beside[name].append(measure_beside_python(WAYS[name], tensors, path))
            print(f"round {number + 1} of {options.repetitions}", file=sys.stderr, flush=True)
    first = alone[names[0]]
    rows = [
        {
            "way": name,
            "s (median)": round(statistics.median(alone[name]), 3),
            "min": round(min(alone[name]), 3),
            "max": round(max(alone[name]), 3),
            "GB/s": round(num_bytes / 1e9 / statistics.median(alone[name]), 2),
            "times the first": round(
                statistics.median(mine / its for mine, its in zip(alone[name], first, strict=True)), 2
            ),
            "processor s": round(statistics.median(cpu[name]), 2),
            "s beside Python": round(statistics.median(beside[name]), 2),
        }
        for name in names
    ]
    settings = {"GB": round(num_bytes / 1e9, 2), "rounds": options.repetitions}
    result = machine.write_result("write_shard", settings, rows, options.results)
    print(result.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
