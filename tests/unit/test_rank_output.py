"""What a rank prints where nobody can take it up: a full disk, a reader that has gone."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from medsft import exit_codes
from medsft.engine import process


@pytest.fixture
def full_disk(monkeypatch):
    """stdout of rank 0, whose log goes there."""
    log = logging.getLogger("medsft")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(log, name, getattr(log, name))
    stdout = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(log, "handlers", [])
    process._set_up_logging("0")
    yield log
    with suppress(OSError):
        stdout.close()


def test_a_log_that_cannot_be_written_is_told_once(full_disk, capfd):
    for number in range(3):
        full_disk.info("step %d", number)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("medsft: the log cannot be written") and "No space left" in line


def test_a_lost_output_changes_no_exit_code(full_disk, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, full_disk.handlers[0].stream)
    full_disk.info("a line that waits for the last flush")
    process._leave("stopped", exit_codes.STOPPED, speaks=True)
    assert codes == [exit_codes.STOPPED]
