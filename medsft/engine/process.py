"""One rank from its first line to its exit code."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from medsft import exit_codes
from medsft.engine.distributed import AgreedError, PeerError, World, complete_environment, start
from medsft.engine.heartbeat import start_heartbeat
from medsft.engine.hostfile import check_hostfile
from medsft.engine.step import DivergedError
from medsft.engine.stop import Stopped, StopRequest
from medsft.engine.watchdog import Watchdog, last_place
from medsft.errors import UserError

if TYPE_CHECKING:
    from medsft.config import Config

# A launcher ends all ranks as soon as one exits. The silent ones stay this long, so that the one that
# explains has been heard, however unevenly they started.
_LINGER_S = 5.0
# Collectives wait so much longer than the watchdog, which knows more, in minutes.
_WATCHDOG_LEAD_MIN = 1


def run_process(read: Callable[[], Config], body: Callable[[Config, World, StopRequest], None]) -> int:
    """Reads the settings, joins the ranks, runs `body`; returns the exit code, or ends the process with it.

    A user's error is one paragraph on one rank and exit code 2 on all. What asks the run to stop comes to
    `body` as a `StopRequest`; until `body` arms it, Ctrl-C is 130 and SIGTERM 75 at once. A rank that hangs
    is named by the watchdog, exit code 1.
    """
    speaks = _speaks(os.environ)
    try:
        config = read()
        complete_environment(os.environ)
        check_hostfile(int(os.environ["WORLD_SIZE"]))
    except UserError as error:
        return _end(f"error: {error}", exit_codes.USER_ERROR, speaks)
    stop = StopRequest(speaks)
    _set_up_logging(os.environ["RANK"])
    start_heartbeat(os.environ, last_place)
    try:
        world = start(config.run.distributed_timeout_min + _WATCHDOG_LEAD_MIN)
    except UserError as error:
        return _end(f"error: {error}", exit_codes.USER_ERROR, speaks=True)
    watchdog = Watchdog(world, config.run.distributed_timeout_min * 60)
    try:
        with watchdog:
            body(config, world, stop)
    except Stopped as stopped:
        _leave(str(stopped) if world.is_main else None, exit_codes.STOPPED, speaks=True)
    except AgreedError as error:
        _leave(f"error: {error}", exit_codes.USER_ERROR, speaks=world.is_main)
    except UserError as error:
        _leave(f"error on rank {world.rank}: {error}", exit_codes.USER_ERROR, speaks=True)
    except DivergedError as error:
        _leave(f"stopped: {error}", exit_codes.DIVERGED, speaks=world.is_main)
    except PeerError as error:
        if watchdog.has_spoken:
            _leave(None, exit_codes.CRASHED, speaks=False)
        _say(f"rank {world.rank} stops: {error}")
        _leave(None, exit_codes.CRASHED, speaks=False, lingers=True)
    except Exception:
        if watchdog.has_spoken:
            _leave(None, exit_codes.CRASHED, speaks=False)
        _leave(f"rank {world.rank} crashed:\n{traceback.format_exc()}", exit_codes.CRASHED, speaks=True)
    _leave(None, exit_codes.FINISHED, speaks=False)


def _speaks(environment: Mapping[str, str]) -> bool:
    """Whether this process explains a fault that all ranks find alike, before they are connected.

    Rank 0 does; so does a process whose rank makes no sense, as there may be no rank 0 beside it.
    """
    rank = environment.get("RANK", environment.get("OMPI_COMM_WORLD_RANK", "0"))
    size = environment.get("WORLD_SIZE", environment.get("OMPI_COMM_WORLD_SIZE", ""))
    return not (rank.isdecimal() and size.isdecimal() and 0 < int(rank) < int(size))


def _end(message: str, code: int, speaks: bool) -> int:
    if speaks:
        _say(message)
    else:
        time.sleep(_LINGER_S)
    return code


def _say(message: str) -> None:
    with suppress(OSError):  # nobody is left to read it
        print(f"medsft: {message}", file=sys.stderr, flush=True)


class _Log(logging.StreamHandler):
    """Says once that lines cannot be written (a full disk, a reader that has gone): no traceback for each."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            _say(f"the log cannot be written ({error}); the training goes on without it")


def _set_up_logging(rank: str) -> None:
    """Rank 0 tells what it does on stdout; the others only what goes wrong, with their number."""
    handler = _Log(sys.stdout if rank == "0" else sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s" if rank == "0" else f"rank {rank}: %(message)s"))
    ours = logging.getLogger("medsft")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.INFO if rank == "0" else logging.WARNING)
    ours.propagate = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


def _leave(message: str | None, code: int, speaks: bool, lingers: bool = False) -> NoReturn:
    """Ends a rank that is connected to others, its files closed.

    Without Python's tidying up: the process group's threads may turn the exit code into an abort (134), and
    destroying the group may wait for ranks that are gone.
    """
    if message is not None:
        _end(message, code, speaks)
    if lingers:
        time.sleep(_LINGER_S)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # what cannot be written changes no exit code
            stream.flush()
    os._exit(code)
