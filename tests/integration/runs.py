"""Starts real training processes and reads what they leave behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def launch(
    arguments: Sequence[str],
    ranks: int = 1,
    launcher: str = "launcher",
    script: Path = REPOSITORY / "medsft" / "train.py",
    timeout_s: float = 240,
) -> subprocess.CompletedProcess[str]:
    """Runs a script as users run `medsft/train.py` and waits for it."""
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
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    }
    # Two threads in two processes would fight for two cores, and one thread sums in one order.
    environment.update(OMP_NUM_THREADS="1", PATH=f"{Path(sys.executable).parent}:{environment['PATH']}")
    return subprocess.run(
        [*commands[launcher], *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_metrics(run: Path, kind: str = "train") -> list[dict]:
    """Lines of metrics.jsonl of one kind."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]
