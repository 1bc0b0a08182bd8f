"""The file that says whether a rank lives, written by real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# Standard library only, so that it is imported without torch; beats often, and says where it is.
RANK = """
import itertools, os, sys, time
sys.path.insert(0, "medsft/engine")
import heartbeat
heartbeat.INTERVAL_S = 0.02
place = [0, "its start"]
heartbeat.start_heartbeat(os.environ, lambda: tuple(place))
for line in sys.stdin:
    place[:] = place[0] + 1, line.strip()
"""
PATIENCE_S = 60


@contextmanager
def rank(path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", RANK],
        cwd=REPOSITORY,
        env=os.environ | {"MEDSFT_HEARTBEAT": str(path)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(path: Path, holds) -> dict:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if path.exists():
            beat = json.loads(path.read_text(encoding="utf-8"))  # never half a line
            if holds(beat):
                return beat
        time.sleep(0.01)
    raise AssertionError(f"not seen in {PATIENCE_S} s")


def test_it_changes_while_the_rank_lives_and_names_its_place(tmp_path):
    path = tmp_path / "心跳 1" / "rank 0"
    path.parent.mkdir()
    with rank(path) as process:
        first = wait_for(path, lambda beat: True)
        assert {name: first[name] for name in ("progress", "place", "host", "pid")} == {
            "progress": 0,
            "place": "its start",
            "host": socket.gethostname(),
            "pid": process.pid,
        }
        process.stdin.write("step 12: 等待数据\n")
        process.stdin.flush()
        later = wait_for(path, lambda beat: beat["place"] == "step 12: 等待数据" and beat["progress"] == 1)
        assert later["number"] > first["number"]
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        frozen = path.read_text(encoding="utf-8")
        time.sleep(0.2)
        assert path.read_text(encoding="utf-8") == frozen
        process.send_signal(signal.SIGCONT)
        wait_for(path, lambda beat: beat["number"] > json.loads(frozen)["number"])
    assert frozen.count("\n") == 1 and frozen.endswith("\n")


def test_a_path_that_cannot_be_written_is_said_once_and_tried_again(tmp_path):
    path = tmp_path / "没有" / "rank 0"
    with rank(path) as process:
        warning = process.stderr.readline()
        assert f"MEDSFT_HEARTBEAT={path} cannot be written (No such file or directory)" in warning
        path.parent.mkdir()
        wait_for(path, lambda beat: beat["number"] > 3)
        assert process.communicate(timeout=PATIENCE_S)[1] == ""
        assert process.returncode == 0
