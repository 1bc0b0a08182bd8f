"""What ranks print: into a log file for each rank and on to the terminal, which no rank ever waits for."""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

# What may wait for the terminal, in bytes, before further lines are left out.
_MOST_WAITING = 4 << 20
# A "line" that never ends is passed on in pieces of so many bytes.
_LONGEST_LINE = 65_536
# How long the terminal gets at the end to take what still waits, in seconds.
_LAST_WORDS_S = 5.0
_NUM_KEPT = 40
# Of a line that is kept for the end, in characters.
_LONGEST_KEPT = 1_000
# A progress bar ends its lines with a carriage return only.
_LINE_END = re.compile(rb"[\r\n]")


class Screen:
    """Passes lines on to a file descriptor from a thread of its own.

    A terminal that stands still (Ctrl-S, a connection that hangs) must not hold up the training: when too
    much waits, new lines are left out, and a line says how many. A reader that is gone ends it.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._num_bytes = 0
        self._num_left_out = 0
        self._is_closing = False
        self._is_gone = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="screen")
        # Signals are for those who wait for them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def write(self, lines: bytes) -> None:
        """Takes whole lines, without waiting."""
        with self._news:
            if self._is_gone:
                return
            if self._num_bytes + len(lines) > _MOST_WAITING:
                self._num_left_out += len(_LINE_END.findall(lines))
                return
            self._waiting.append(lines)
            self._num_bytes += len(lines)
            self._news.notify()

    def close(self) -> None:
        """Waits, not for ever, until everything is on the terminal."""
        with self._news:
            self._is_closing = True
            self._news.notify()
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        try:
            while (lines := self._next()) is not None:
                self._write_all(lines)
                with self._news:
                    self._num_bytes -= len(lines)
        except OSError:
            with self._news:
                self._is_gone = True
                self._waiting.clear()

    def _next(self) -> bytes | None:
        """What is to be written next; None when everything is and the end has come."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._num_left_out or self._is_closing)
            if self._waiting:
                return self._waiting.popleft()
            if not self._num_left_out:
                return None
            count, self._num_left_out = self._num_left_out, 0
            note = f"launcher: {count} lines left out here; the logs have them\n".encode()
            self._num_bytes += len(note)
            return note

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                waiting = select.poll()
                waiting.register(self._descriptor, select.POLLOUT)
                waiting.poll()


class RankOutput:
    """Both output streams of one rank, from its start to its end."""

    def __init__(self, log: Path | None, screens: tuple[Screen, Screen]):
        """`screens` take what comes on standard output and standard error; with no `log` only they do."""
        self._path = log
        self._screens = screens
        self._kept: deque[str] = deque(maxlen=_NUM_KEPT)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._file: BinaryIO | None = None
        if log is not None:
            self._file = log.open("ab", buffering=0)
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            self._log(f"--- started {now} on {os.uname().nodename}\n".encode())

    def attach(self, out: int, err: int) -> None:
        """Reads the two pipes, in threads, until the rank and its children have closed them."""
        for descriptor, screen in zip((out, err), self._screens, strict=True):
            arguments = (descriptor, screen)
            thread = threading.Thread(target=self._pump, args=arguments, daemon=True, name="output")
            thread.start()
            self._threads.append(thread)

    def last_lines(self, most: int) -> Sequence[str]:
        """What the rank printed last, on either stream."""
        with self._lock:
            return list(self._kept)[-most:]

    def drain(self, limit_s: float) -> None:
        """Waits until all that was printed has been read; a child that lives on may keep a pipe open."""
        deadline_s = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def close(self) -> None:
        """No more goes into the log."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _pump(self, descriptor: int, screen: Screen) -> None:
        rest = b""
        with open(descriptor, "rb", buffering=0) as pipe:
            while chunk := pipe.read(_LONGEST_LINE):
                rest += chunk
                # Whole lines only: others write to the same terminal.
                cut = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1
                if cut == 0 and len(rest) >= _LONGEST_LINE:
                    cut = len(rest)
                if cut:
                    self._take(rest[:cut], screen)
                    rest = rest[cut:]
        if rest:
            self._take(rest + b"\n", screen)

    def _take(self, lines: bytes, screen: Screen) -> None:
        with self._lock:
            told = lines.decode(errors="replace").splitlines()
            self._kept.extend(line[:_LONGEST_KEPT] for line in told[-_NUM_KEPT:])
            self._log(lines)
        # A piece of an endless line must not have another rank's line for an end.
        screen.write(lines if lines.endswith((b"\n", b"\r")) else lines + b"\n")

    def _log(self, lines: bytes) -> None:
        if self._file is None:
            return
        try:
            self._file.write(lines)
        except OSError as error:
            # A full disk is no reason to end a training.
            self._file.close()
            self._file = None
            self._screens[1].write(f"launcher: {self._path} ends here: {error}\n".encode())
