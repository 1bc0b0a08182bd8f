"""What tests of the launcher's head and its agents share."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from launcher.job import Job, Node

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "ab" * 32
PATIENCE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


def a_job(*slots: int, **changes) -> Job:
    values = {
        "nodes": tuple(Node(host, number) for host, number in zip("abcdefgh", slots, strict=False)),
        "python": sys.executable,
        "script": Path("none.py"),
        "arguments": (),
        "environment": (),
        "master_address": "",
        "master_port": 0,
    }
    return Job(**values | changes)
