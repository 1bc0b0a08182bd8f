"""Trainings that a launcher runs while somebody disturbs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import psutil
from runs import REPOSITORY, TRAIN, clean_environment, command, ranks_of

from medsft.checkpoint.layout import steps_in
from medsft.run_folder import RunFolder

PATIENCE_S = 240.0
"""What takes longer than this hangs."""

_POLL_S = 0.01


class Place(Protocol):
    """Where a launcher runs and has its ranks.

    inside: words before the launcher's command.
    """

    inside: Sequence[str]

    def flags(self, ranks: int) -> Sequence[str]:
        """Flags of the launcher that bring so many ranks there."""

    def ranks(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """The training processes of this launcher, by rank; those that there are."""

    def ended(self, code: int) -> None:
        """Called as soon as a launcher has ended with this exit code."""


class Here:
    """This machine, as a `Place`."""

    inside: Sequence[str] = ()

    def flags(self, ranks: int) -> Sequence[str]:
        """None: the number of ranks is all that the launcher has to know."""
        return ()

    def ranks(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Those below the launcher."""
        return ranks_of(process)

    def ended(self, code: int) -> None:
        """Nobody wants to know."""


HERE = Here()


class Job:
    """One start of a launcher, until its ranks have ended.

    run: the output folder as this process sees it. started_s: by time.monotonic, like all times here.
    """

    def __init__(self, process: subprocess.Popen[bytes], run: Path, log: Path, place: Place = HERE) -> None:
        self.process = process
        self.run = run
        self.started_s = time.monotonic()
        self._log = log
        self._place = place
        self._seen: dict[int, psutil.Process] = {}

    @property
    def text(self) -> str:
        """What launcher and ranks have printed so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ranks(self) -> list[psutil.Process]:
        """The training processes, by rank; those that there are."""
        found = self._place.ranks(self.process)
        self._seen.update((process.pid, process) for process in found)
        return found

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> float:
        """Returns when it holds; AssertionError when it does not come, or the job ends before."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            is_over = self.process.poll() is not None
            if holds():
                return time.monotonic()
            assert not is_over, f"the job ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline_s, (
                f"{what} did not come within {timeout_s:.0f} s:\n{self.text}"
            )
            time.sleep(_POLL_S)

    def wait_for_words(self, words: str, times: int = 1) -> float:
        """Returns when the log has them so many times."""
        return self.wait_until(lambda: self.text.count(words) >= times, f"the words {words!r}")

    def wait_for_step(self, step: int, timeout_s: float = PATIENCE_S) -> float:
        """Returns when the training has done so many steps."""
        return self.wait_until(lambda: last_step(self.run) >= step, f"step {step}", timeout_s)

    def wait_for_checkpoint(self, step: int) -> float:
        """Returns when a checkpoint of this step or a later one is committed."""
        return self.wait_until(
            lambda: max(committed(self.run), default=0) >= step, f"the checkpoint of step {step}"
        )

    def wait_for_death(self, process: psutil.Process) -> float:
        """Returns when this rank has ended, by whatever hand."""
        return self.wait_until(lambda: not is_alive(process), f"the end of process {process.pid}")

    def end(self, timeout_s: float = PATIENCE_S) -> int:
        """Waits for the launcher's exit code. None of the ranks that were seen may outlive it for long."""
        code = self.process.wait(timeout=timeout_s)
        self._place.ended(code)
        deadline_s = time.monotonic() + 30
        while left := [process.pid for process in self._seen.values() if is_alive(process)]:
            assert time.monotonic() < deadline_s, f"ranks outlive their launcher for 30 s: {left}"
            time.sleep(_POLL_S)
        return code

    def kill(self) -> None:
        """Ends everything that this job has started and that still runs."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                self._seen[process.pid] = process
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for process in self._seen.values():
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def starting(
    arguments: Sequence[str],
    run: Path,
    log: Path,
    ranks: int,
    launcher: str,
    launcher_flags: Sequence[str],
    inside: Sequence[str],
    environment: dict[str, str],
    place: Place = HERE,
) -> Iterator[Job]:
    """Starts medsft/train.py; nothing outlives the block. `inside`: words before the launcher's command."""
    words = command(arguments, ranks, launcher, TRAIN)
    position = words.index(str(TRAIN))
    words[position:position] = [*place.flags(ranks), *launcher_flags]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*place.inside, *inside, *words],
            cwd=REPOSITORY,
            env=clean_environment() | environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
    job = Job(process, run, log, place)
    try:
        yield job
    finally:
        job.kill()


def _heed_interrupts() -> None:
    """A shell has what it starts in the background ignore SIGINT, and so would the launcher, on purpose."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def frozen(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """The processes stand still during the block."""
    with suppress(psutil.NoSuchProcess):
        for process in processes:
            process.suspend()
        for process in processes:
            while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
                time.sleep(0.001)
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def kill(process: psutil.Process) -> float:
    """SIGKILL; returns the time."""
    os.kill(process.pid, signal.SIGKILL)
    return time.monotonic()


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that nobody has reaped yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def metrics(run: Path) -> list[dict]:
    """Whole train lines of metrics.jsonl, in the order of the file."""
    path = RunFolder(run).metrics
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # the last one may be on its way
            records.append(json.loads(line))
    return [record for record in records if record["kind"] == "train"]


def last_step(run: Path) -> int:
    """The last step that metrics.jsonl tells of; 0 for none."""
    return max((record["step"] for record in metrics(run)), default=0)


def committed(run: Path) -> list[int]:
    """Steps of the committed checkpoints of a run, ascending."""
    return steps_in(RunFolder(run).checkpoints)
