"""Launchers with ranks on this machine that run a few lines of Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
# Longest wait for what must happen soon, in seconds; generous, the machine may be busy.
PATIENCE_S = 180
# Every rank script begins so: it can say that it is ready, and with which processes.
PRELUDE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
def ready(*pids):
    (folder / f"tmp-{rank}").write_text(json.dumps([os.getpid(), *pids]))
    (folder / f"tmp-{rank}").rename(folder / f"ready-{rank}")
def say(text):
    os.write(1, f"{text}\\n".encode())  # one write: lines of ranks must not mix
def begin():
    number = 1  # of this start of the job
    while (folder / f"start-{number}-of-{rank}").exists():
        number += 1
    (folder / f"start-{number}-of-{rank}").touch()
    ranks = range(int(os.environ["WORLD_SIZE"]))
    while not all((folder / f"start-{number}-of-{peer}").exists() for peer in ranks):
        time.sleep(0.01)  # nobody fails before everybody has counted
    return number
def checkpoint(step):
    path = folder / "out put" / "checkpoints" / f"step-{step:08}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
def helper():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
def sleep():
    while True:
        time.sleep(0.1)  # Python sees a signal of the instant before a sleep only after it
"""
# A rank that waits, with a process that it has started.
SLEEP = "ready(helper()); sleep()"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie whose parent has not looked at it yet is not running any more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Run:
    """A launcher with ranks that run a few lines of Python."""

    def __init__(
        self,
        folder: Path,
        body: str,
        num_ranks: int,
        *flags: str,
        ignored: tuple[int, ...] = (),
        arguments: tuple[str, ...] | None = None,
    ):
        self.folder = folder
        self.num_ranks = num_ranks
        if arguments is None:
            arguments = ("--output_dir", str(folder / "out put"))
        script = folder / "rank's 脚本.py"
        script.write_text(PRELUDE + body, encoding="utf-8")

        def dispositions() -> None:
            # Tests may themselves run in the background of a shell, with SIGINT ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            for signum in ignored:
                signal.signal(signum, signal.SIG_IGN)

        self.launcher = subprocess.Popen(
            [
                *(sys.executable, "-m", "launcher", "run"),
                *("--num-gpus", str(num_ranks), *flags, str(script), str(folder), *arguments),
            ],
            cwd=REPOSITORY,
            env=os.environ | {"DS_ACCELERATOR": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            preexec_fn=dispositions,
        )

    def pids(self) -> list[list[int]]:
        """For each rank its process and the helpers it told of, once all are ready."""
        files = [self.folder / f"ready-{rank}" for rank in range(self.num_ranks)]
        wait_until(lambda: all(file.exists() for file in files), "all ranks to be ready")
        return [json.loads(file.read_text()) for file in files]

    def starts(self) -> list[int]:
        """How often each rank was started, where ranks count it by `begin()`."""
        return [len(list(self.folder.glob(f"start-*-of-{rank}"))) for rank in range(self.num_ranks)]

    def wait_for_line(self, text: str) -> str:
        """Reads the launcher's stderr up to the line that holds `text`."""
        for line in self.launcher.stderr:
            if text in line:
                return line
        raise AssertionError(f"the launcher ended without saying {text!r}")

    def result(self) -> tuple[int, str, str]:
        out, err = self.launcher.communicate(timeout=PATIENCE_S)
        return self.launcher.returncode, out, err


@contextmanager
def starting(folder: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs, each in a folder of its own; those that still run at the block's end are killed."""
    runs: list[Run] = []

    def start_one(body: str, num_ranks: int, *flags: str, **options) -> Run:
        own = folder / f"blank and 中文 {len(runs)}"
        own.mkdir()
        runs.append(Run(own, body, num_ranks, *flags, **options))
        return runs[-1]

    try:
        yield start_one
    finally:
        for run in runs:
            run.launcher.kill()
            run.launcher.communicate()


def assert_all_gone(pids: list[list[int]]) -> None:
    for rank, processes in enumerate(pids):
        for pid in processes:
            wait_until(lambda pid=pid: not is_running(pid), f"process {pid} of rank {rank} to be gone")
