"""Starts real training processes and reads what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from launcher.hosts import ports

REPOSITORY = Path(__file__).resolve().parents[2]


TRAIN = REPOSITORY / "medsft" / "train.py"


def launch(
    arguments: Sequence[str],
    ranks: int = 1,
    launcher: str = "launcher",
    script: Path = TRAIN,
    timeout_s: float = 240,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a script as users run `medsft/train.py` and waits for it."""
    return subprocess.run(
        command(arguments, ranks, launcher, script),
        cwd=REPOSITORY,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def running(
    arguments: Sequence[str],
    output: Path,
    ranks: int = 1,
    launcher: str = "launcher",
    script: Path = TRAIN,
    **environment: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a training and gives its process; it prints to `output`. Nothing outlives the block."""
    with output.open("ab") as file:
        process = subprocess.Popen(
            command(arguments, ranks, launcher, script),
            cwd=REPOSITORY,
            env=clean_environment() | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()  # its keeper ends the ranks
        process.wait()


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The training processes below a launcher, by rank."""
    with_rank = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            rank = child.environ().get("RANK")
            if rank is not None and "train.py" in " ".join(child.cmdline()):
                with_rank[int(rank)] = child
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [with_rank[rank] for rank in sorted(with_rank)]


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes], timeout_s: float = 240) -> None:
    """Returns when metrics.jsonl has the step; fails when the process ends before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(record["step"] >= step for record in read_metrics(run)):
            return
        assert process.poll() is None, "the run ended before it came to the step"
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {timeout_s} s")


def command(arguments: Sequence[str], ranks: int, launcher: str, script: Path) -> list[str]:
    """What a user types for a launcher."""
    commands = {
        "python": [sys.executable, str(script)],
        "launcher": [sys.executable, "-m", "launcher", "run", "--num-gpus", str(ranks), str(script)],
        "torchrun": [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(ranks), str(script),
        ],
        "deepspeed": [
            str(Path(sys.executable).with_name("deepspeed")),
            "--num_accelerators", str(ranks), "--master_port", str(free_port()), str(script),
        ],
    }  # fmt: skip
    return [*commands[launcher], *arguments]


def clean_environment() -> dict[str, str]:
    """This one, without the variables of a rank."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    # Two threads in two processes would fight for two cores, and one thread sums in one order.
    environment.update(OMP_NUM_THREADS="1", PATH=f"{Path(sys.executable).parent}:{environment['PATH']}")
    return environment


def free_port() -> int:
    """A port nobody listens on now, and none that an outgoing connection takes before it is used."""
    return ports.free_port(None)


def read_metrics(run: Path, kind: str = "train") -> list[dict]:
    """Lines of metrics.jsonl of one kind; none where it is not there yet."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
