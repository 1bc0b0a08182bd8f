"""A real all-reduce over all ranks before a run: that it works, how fast it is, which host is slow.

Started on every slot like a training. NCCL on GPUs, gloo without. The bandwidths are those of nccl-tests
(doc/PERFORMANCE.md there): algbw = bytes / time, busbw = algbw × 2(n - 1)/n for n ranks, the latter being
comparable to the links' own speed whatever n is.

It imports torch alone: the package medsft brings transformers, which takes longer than the whole test.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run by path, this folder is sys.path[0] and would shadow other packages.
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]

import argparse
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

FORMAT = 1
_MIB = 2**20
# Bytes of fp32 to sum up: latency first, then bandwidth.
_CPU_SIZES = (64 * 1024, _MIB, 4 * _MIB)
_GPU_SIZES = (_MIB, 16 * _MIB, 128 * _MIB)
# What two hosts send each other, there and back, in bytes.
_LINK_BYTES = _MIB
_NUM_WARM_UPS = 2
_NUM_TIMES = 5
# All links are timed one after the other; with more hosts than this, once each.
_MANY_HOSTS = 32
# Side of the square matrices multiplied for the time of computing.
_CPU_SIDE, _GPU_SIDE = 384, 4096
# And how often each time. A busy core is shared in slices of milliseconds: less work than several of them
# would be done within one, and see nothing of the other programs.
_CPU_PRODUCTS, _GPU_PRODUCTS = 64, 1
_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and writes the result; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON, written by rank 0")
    parser.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="for the ranks to meet, and each sum"
    )
    options = parser.parse_args(arguments)
    # Standard output is the table's, or its JSON's, and NCCL_DEBUG prints there.
    os.dup2(2, 1)
    try:
        result = measure(options.timeout)
        if result is not None:
            _write(options.output, result)
    except (OSError, ValueError, RuntimeError) as error:
        # A later rank's failure is most often the end of another's connection; all of them are of use.
        rank, where = os.environ.get("RANK", "?"), socket.gethostname()
        sys.stderr.write(f"collective test, rank {rank} on {where}: {error}\n")
        return _FAILED
    return 0


def measure(timeout_s: float) -> dict[str, Any] | None:
    """Joins the ranks named by the environment and times them: the result on rank 0, None elsewhere.

    {"format", "backend", "world_size", "correct", "sizes": [{"bytes", "median_s", "algbw_gb_s",
    "busbw_gb_s"}], "hosts": [{"node_rank", "hostname", "ranks", "compute_s", "links_s": {node: seconds}}],
    "seconds"}; GB are 10^9 bytes. links_s holds the time for a mebibyte there and back between the host's
    first rank and that of the two first hosts; compute_s is the slowest rank's time for the same products.
    Raises `RuntimeError` when the ranks do not meet, or one is lost, and `ValueError` for an environment
    without the launcher's variables, or with more ranks on a host than GPUs.
    """
    began = time.perf_counter()
    device = _device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if backend == "nccl" else None,
    )
    try:
        world_size, rank = dist.get_world_size(), dist.get_rank()
        compute_s = _time_products(device)
        correct = _sum_is_right(device)
        sizes = [
            _time_sum(num_bytes, device) for num_bytes in (_GPU_SIZES if backend == "nccl" else _CPU_SIZES)
        ]
        mine = {"hostname": socket.gethostname(), "node": os.environ.get("NODE_RANK"), "compute_s": compute_s}
        hosts = _hosts(_from_all(mine))
        links = _time_links([host["ranks"][0] for host in hosts], device)
        everyone = _from_all({"correct": correct, "sizes": sizes, "links": links})
    finally:
        dist.destroy_process_group()
    if rank != 0:
        return None
    for host in hosts:
        host["links_s"] = everyone[host["ranks"][0]]["links"]
    return {
        "format": FORMAT,
        "backend": backend,
        "world_size": world_size,
        "correct": all(each["correct"] for each in everyone),
        "sizes": [
            # A sum is done when its last rank is.
            bandwidth(size["bytes"], max(each["sizes"][index]["median_s"] for each in everyone), world_size)
            for index, size in enumerate(sizes)
        ],
        "hosts": hosts,
        "seconds": time.perf_counter() - began,
    }


def bandwidth(num_bytes: int, seconds: float, world_size: int) -> dict[str, float]:
    """Algorithm and bus bandwidth of an all-reduce, in 10^9 bytes a second; with one rank the latter is 0."""
    algorithm = num_bytes / seconds / 1e9
    bus = algorithm * 2 * (world_size - 1) / world_size
    return {"bytes": num_bytes, "median_s": seconds, "algbw_gb_s": algorithm, "busbw_gb_s": bus}


def _write(path: Path, result: dict[str, Any]) -> None:
    """Complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(result, file, ensure_ascii=False, indent=2, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _device() -> torch.device:
    """The GPU of this rank; the CPU where there is none, or DeepSpeed is told to use the CPU."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    num_gpus, local_rank = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if num_gpus == 1:
        local_rank = 0  # Slurm may show each process one GPU, which is then number 0
    if local_rank >= num_gpus:
        raise ValueError(
            f"rank {os.environ['RANK']} is number {local_rank} on this host, which shows {num_gpus} GPUs. "
            "Start at most one process for each GPU."
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _from_all(value: Any) -> list[Any]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def _hosts(everyone: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ranks by host: by NODE_RANK where a launcher sets it, else hosts count in the order of their ranks."""
    hosts: dict[str, dict[str, Any]] = {}
    for rank, each in enumerate(everyone):
        key = each["hostname"] if each["node"] is None else each["node"]
        number = len(hosts) if each["node"] is None else int(each["node"])
        host = hosts.setdefault(
            key, {"node_rank": number, "hostname": each["hostname"], "ranks": [], "compute_s": 0.0}
        )
        host["ranks"].append(rank)
        host["compute_s"] = max(host["compute_s"], each["compute_s"])
    return list(hosts.values())


def _sum_is_right(device: torch.device) -> bool:
    """Whether 1 + 2 + … + n comes out, in every element."""
    world_size = dist.get_world_size()
    values = torch.full((1024,), dist.get_rank() + 1, dtype=torch.int64, device=device)
    dist.all_reduce(values)
    return bool((values == world_size * (world_size + 1) // 2).all())


def _time_sum(num_bytes: int, device: torch.device) -> dict[str, float]:
    values = torch.zeros(num_bytes // 4, dtype=torch.float32, device=device)
    return {"bytes": num_bytes, "median_s": _timed(lambda: dist.all_reduce(values), device, _NUM_TIMES)}


def _time_products(device: torch.device) -> float:
    on_gpu = device.type == "cuda"
    side, num_products = (_GPU_SIDE, _GPU_PRODUCTS) if on_gpu else (_CPU_SIDE, _CPU_PRODUCTS)
    matrix = torch.ones(side, side, dtype=torch.float32, device=device)

    def multiply() -> None:
        for _ in range(num_products):
            matrix @ matrix

    return _timed(multiply, device, _NUM_TIMES)


def _time_links(firsts: Sequence[int], device: torch.device) -> dict[str, float]:
    """This rank's times to the first two hosts, or as one of them to all: {place in `firsts`: seconds}."""
    rank = dist.get_rank()
    values = torch.zeros(_LINK_BYTES // 4, dtype=torch.float32, device=device)
    times: dict[str, float] = {}
    num_times = _NUM_TIMES if len(firsts) <= _MANY_HOSTS else 1
    for hub in range(min(2, len(firsts))):
        for other in range(hub + 1, len(firsts)):
            if rank in (firsts[hub], firsts[other]):
                is_hub = rank == firsts[hub]
                peer = firsts[other if is_hub else hub]

                def exchange(is_hub: bool = is_hub, peer: int = peer) -> None:
                    # One way after the other, as a pair of waits on one group: no communicator for each pair.
                    for sends in (is_hub, not is_hub):
                        operation = dist.P2POp(dist.isend if sends else dist.irecv, values, peer)
                        for work in dist.batch_isend_irecv([operation]):
                            work.wait()

                times[str(other if is_hub else hub)] = _timed(exchange, device, num_times)
            # The next pair begins when this one has ended, or they would time each other.
            dist.all_reduce(torch.zeros(1, device=device))
    return times


def _timed(work: Callable[[], Any], device: torch.device, num_times: int) -> float:
    """Median seconds of `num_times`, after two that do not count."""
    times = []
    for turn in range(_NUM_WARM_UPS + num_times):
        _finish(device)
        began = time.perf_counter()
        work()
        _finish(device)
        if turn >= _NUM_WARM_UPS:
            times.append(time.perf_counter() - began)
    return median(times)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
