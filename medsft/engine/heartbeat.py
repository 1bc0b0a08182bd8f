"""A rank's sign of life for whoever started it: a small file whose content changes as long as the rank lives.

The launcher names the file in MEDSFT_HEARTBEAT, one for each rank, and takes the time since the content last
changed, by its own clock. The content is one line, a JSON object with the keys of `Beat`:

    {"number": 7, "progress": 3, "place": "step 12", "host": "node1", "pid": 4711}

`number` counts up with every heartbeat, every two seconds, from before the rank joins the others until it
ends. A stopped, frozen or lost process is told by a file that stands still, and the launcher ends the job for
it (`--hang-timeout`). One whose main thread hangs goes on beating, with a `progress` and a `place` that stand
still: if other ranks have gone on, the watchdog (watchdog.py) ends the job; if none has, the launcher only
says so, every five minutes, for a long phase looks the same.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "MEDSFT_HEARTBEAT"
"""Names the file; unset, none is written."""

INTERVAL_S = 2.0


@dataclass(frozen=True)
class Beat:
    """What a rank publishes.

    number: counts up with every heartbeat. progress: places its main thread has come past; `place` is the
    last of them, in words. host, pid: for people.
    """

    number: int
    progress: int
    place: str
    host: str
    pid: int


def start_heartbeat(environment: Mapping[str, str], last_place: Callable[[], tuple[int, str]]) -> None:
    """Writes the file, if one is named, from a thread of its own until the process ends.

    `last_place`: how many places the main thread has come past, and the last of them. Not done by the
    watchdog's thread, which an unreachable store may hold up: then every rank would seem dead.
    """
    if path := environment.get(VARIABLE):
        threading.Thread(target=_beat, args=[Path(path), last_place], name="heartbeat", daemon=True).start()


def _beat(path: Path, last_place: Callable[[], tuple[int, str]]) -> None:
    host, pid = socket.gethostname(), os.getpid()
    has_warned = False
    for number in count(1):
        try:
            _write(path, Beat(number, *last_place(), host, pid))
        except OSError as error:
            if not has_warned:
                logger.warning(
                    "%s=%s cannot be written (%s): the launcher does not see whether this rank lives",
                    VARIABLE,
                    path,
                    error.strerror,
                )
            has_warned = True  # tried again nevertheless
        time.sleep(INTERVAL_S)


def _write(path: Path, beat: Beat) -> None:
    """Beside the file, then in its place: so no reader sees half of it, on any file system.

    Not flushed to disk, as it means nothing after a crash.
    """
    aside = path.with_name(f"{path.name}.{beat.pid}")
    aside.write_text(json.dumps(asdict(beat)) + "\n", encoding="utf-8")
    aside.replace(path)
