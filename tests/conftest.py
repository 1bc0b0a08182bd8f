"""Fixtures that more than one folder of tests uses."""

import os
import signal
from pathlib import Path

# Before torch is imported. Two threads of a toy's small products wait for each other for longer than they
# compute, many times as long when several ranks share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Under nohup or in a script's background these two are ignored, which every process that a test starts would
# inherit, and none of them could be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the released tokenizers, golden numbers and real pairs; absent on a user's machine."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"reference material {folder} is not on this machine")
    return folder
