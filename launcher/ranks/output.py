"""What ranks print: into a log file for each rank and on to the terminal, which no rank ever waits for."""

from __future__ import annotations

import os
import queue
import re
import select
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

# Lines that may wait for the terminal before further ones are left out.
_MOST_WAITING = 10_000
# A "line" that never ends is passed on in pieces of so many bytes.
_LONGEST_LINE = 65_536
# How long the terminal gets at the end to take what still waits, in seconds.
_LAST_WORDS_S = 5.0
_NUM_KEPT = 40
# A progress bar ends its lines with a carriage return only.
_LINE_END = re.compile(rb"[\r\n]")


class Screen:
    """Passes lines on to a file descriptor from a thread of its own.

    A terminal that stands still (Ctrl-S, a connection that hangs) must not hold up the training: when too
    many lines wait, new ones are left out, and a line says how many. A reader that is gone ends it.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(_MOST_WAITING)
        self._num_left_out = 0
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="screen")
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Takes a line, without waiting."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._num_left_out += 1

    def close(self) -> None:
        """Waits, not for ever, until everything is on the terminal."""
        self._is_closing.set()
        self._thread.join(_LAST_WORDS_S)

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                try:
                    self._write_all(self._lines.get(timeout=0.1))
                except queue.Empty:
                    if self._is_closing.is_set():
                        return
                if self._num_left_out and self._lines.empty():
                    count, self._num_left_out = self._num_left_out, 0
                    self._write_all(f"launcher: {count} lines left out here; the logs have them\n".encode())

    def _write_all(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                select.select([], [self._descriptor], [])


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
                ends = [match.end() for match in _LINE_END.finditer(rest)]
                cut = len(rest) if len(rest) >= _LONGEST_LINE else (ends[-1] if ends else 0)
                if cut:
                    self._take(rest[:cut], screen)
                    rest = rest[cut:]
        if rest:
            self._take(rest, screen)

    def _take(self, lines: bytes, screen: Screen) -> None:
        with self._lock:
            self._kept.extend(lines.decode(errors="replace").splitlines())
            self._log(lines)
        screen.write(lines)

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
