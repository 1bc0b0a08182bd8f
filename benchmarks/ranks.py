"""Runs a rank's script on several ranks of this machine and takes what they printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def on_ranks(script: Path, num_ranks: int, *arguments: object, **environment: str) -> list[dict[str, Any]]:
    """The JSON objects that the ranks printed, a line each, in order. Raises `CalledProcessError`.

    A rank has one thread unless the environment says otherwise.
    """
    command = [sys.executable, "-m", "launcher", "run", "--num-gpus", str(num_ranks), str(script)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        env={"OMP_NUM_THREADS": "1", **os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
