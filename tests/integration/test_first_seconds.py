"""A signal while train.py still imports: no traceback, and the exit code that it has later."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest
from runs import REPOSITORY, TRAIN, clean_environment

PATIENCE_S = 60


def catches(pid: int, number: signal.Signals) -> bool:
    with open(f"/proc/{pid}/status", encoding="ascii") as status:  # noqa: PTH123 - no file of ours
        (caught,) = [line.split()[1] for line in status if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "rank", "code", "said"),
    [
        ("SIGINT", "0", 130, "medsft: interrupted\n"),
        ("SIGTERM", "0", 75, "medsft: SIGTERM: stopped before the training began\n"),
        ("SIGUSR1", "0", 75, "medsft: SIGUSR1: stopped before the training began\n"),
        ("SIGUSR2", "1", 75, ""),
    ],
)
def test_a_signal_during_the_imports(name, rank, code, said):
    number = signal.Signals[name]
    process = subprocess.Popen(
        [sys.executable, TRAIN, "--help"],
        cwd=REPOSITORY,
        env=clean_environment() | {"RANK": rank},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not catches(process.pid, signal.SIGUSR2):  # the last that it sets
            assert time.monotonic() < deadline
        assert "libtorch" not in " ".join(entry.path for entry in psutil.Process(process.pid).memory_maps())
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (code, "", said)
