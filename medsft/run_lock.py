"""One writer per run folder: who holds it, and how the folder of a dead holder is had again.

    .lock         locked with flock while a run writes there; the kernel unlocks it however the process ends
    .lock.soft    in place of it where the file system has no such locks: a file that is there meanwhile
    .owner.json   who it is: host, process, job, since when

A soft lock that a dead process left is recovered on the host of that process. From another host nobody can
see whether it still runs, so that one is refused, with the file to remove.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from medsft.errors import UserError
from medsft.files import write_json

logger = logging.getLogger(__name__)

LOCK = ".lock"
SOFT_LOCK = ".lock.soft"
OWNER = ".owner.json"

PATIENCE_S = 10.0
"""So long a holder is waited for: a killed process keeps its locks until its memory is taken back."""

_POLL_S = 0.1

_HAS_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})

_JOBS = {"SLURM_JOB_ID": "Slurm job", "PBS_JOBID": "PBS job", "LSB_JOBID": "LSF job"}
"""Environment variable -> what its value is the number of."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a run folder.

    pid_namespace: inode of the namespace that pid counts in, as containers of one host may share its name;
    None where the system has none. job: scheduler and number, None outside of one. since: UTC, ISO 8601.
    has_flock: whether it holds the kernel's lock.
    """

    host: str
    pid: int
    pid_namespace: int | None
    job: str | None
    since: str
    has_flock: bool

    @classmethod
    def of_this_process(cls, has_flock: bool, environment: Mapping[str, str] = os.environ) -> Owner:
        jobs = [f"{kind} {environment[name]}" for name, kind in _JOBS.items() if environment.get(name)]
        since = datetime.now(UTC).isoformat(timespec="seconds")
        host, pid_namespace = _here()
        return cls(host, os.getpid(), pid_namespace, jobs[0] if jobs else None, since, has_flock)

    def is_running(self) -> bool | None:
        """None where this process cannot see it: on another host, or in another container."""
        return psutil.pid_exists(self.pid) if (self.host, self.pid_namespace) == _here() else None

    def describe(self) -> str:
        job = f" ({self.job})" if self.job else ""
        return f"process {self.pid} on host {self.host}{job}, since {self.since}"


class RunLock:
    """A run folder that this process holds: until released, left as a context, or the process ends."""

    def __init__(self, path: Path, owner: Owner, held: ExitStack) -> None:
        self.path = path
        self.owner = owner
        self._held = held

    def release(self) -> None:
        """Lets the next run in. A second call does nothing."""
        self._held.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(path: Path, patience_s: float = PATIENCE_S) -> RunLock:
    """Takes the folder for this process, made if need be, or raises `UserError`. Called by rank 0 only.

    A folder that another process holds is waited for `patience_s` seconds and then refused, with the words
    which process that is. What the folder holds does not matter here.
    """
    with ExitStack() as locks, _told(path):
        path.mkdir(parents=True, exist_ok=True)
        has_flock = _take_flock(path, patience_s, locks)
        if not has_flock or (path / SOFT_LOCK).exists():
            _take_soft_lock(path, patience_s, locks)
        _take_over(path, has_flock)
        owner = Owner.of_this_process(has_flock)
        locks.callback(_forget, path, owner)
        write_json(path / OWNER, asdict(owner))
        return RunLock(path, owner, locks.pop_all())


def read_owner(path: Path) -> Owner | None:
    """Who holds a run folder, or held it last and ended without releasing it; None when that is not known."""
    try:
        return Owner(**json.loads((path / OWNER).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def check_shared(path: Path, owner: Owner, patience_s: float = PATIENCE_S) -> None:
    """Raises `UserError` on a rank that does not see the folder that `owner`, rank 0, holds.

    A network file system may show a new file late, so it is looked for over `patience_s` seconds.
    """
    deadline_s = time.monotonic() + patience_s
    while read_owner(path) != owner:
        if time.monotonic() > deadline_s:
            raise UserError(
                f"--output_dir {path} on host {socket.gethostname()} is not the folder that rank 0 has on "
                f"host {owner.host}. Checkpoints need one that all hosts share: give that, or "
                "--save_strategy no."
            )
        time.sleep(_POLL_S)


def _take_flock(path: Path, patience_s: float, locks: ExitStack) -> bool:
    """False where the file system has no such locks."""
    lock = FileLock(path / LOCK, thread_local=False, fallback_to_soft=False)
    try:
        _acquire(lock, path, patience_s)
    except Timeout as error:
        raise _in_use(path, read_owner(path)) from error
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
        logger.warning(
            "%s is on a file system without file locks (%s); the file %s keeps other runs out",
            path,
            error.strerror,
            SOFT_LOCK,
        )
        return False
    locks.callback(lock.release)
    return True


def _take_soft_lock(path: Path, patience_s: float, locks: ExitStack) -> None:
    lock = SoftFileLock(path / SOFT_LOCK, thread_local=False)
    try:
        _acquire(lock, path, patience_s)
    except Timeout as error:
        owner = read_owner(path)
        if owner is not None and owner.is_running():
            raise _in_use(path, owner) from error
        raise _out_of_sight(path, owner, path / SOFT_LOCK) from error
    locks.callback(lock.release)


def _take_over(path: Path, has_flock: bool) -> None:
    """What the owner file of an earlier run means, now that the locks are ours.

    It is left over, unless its run holds the kernel's lock and this process could not ask for that one,
    because the lock server did not answer.
    """
    owner = read_owner(path)
    if owner is None:
        return
    if owner.has_flock and not has_flock and (is_running := owner.is_running()) is not False:
        raise _in_use(path, owner) if is_running else _out_of_sight(path, owner, path / OWNER)
    logger.info("%s was held by %s, which is gone; this run takes over", path, owner.describe())


def _acquire(lock: BaseFileLock, path: Path, patience_s: float) -> None:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("%s is in use; waiting up to %.0f s for its run to end", path, patience_s)
        lock.acquire(timeout=patience_s, poll_interval=_POLL_S)


def _forget(path: Path, owner: Owner) -> None:
    """Not in a forked child, and not when somebody removed the lock by hand and another run holds it now."""
    if os.getpid() != owner.pid or read_owner(path) != owner:
        return
    try:
        (path / OWNER).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be removed (%s); the next run takes over all the same", path / OWNER, error)


def _in_use(path: Path, owner: Owner | None) -> UserError:
    by = owner.describe() if owner else "a process that has not said which"
    return UserError(
        f"--output_dir {path} is in use by another run: {by}. Wait for it, stop it, or give another folder."
    )


def _out_of_sight(path: Path, owner: Owner | None, file: Path) -> UserError:
    by = owner.describe() if owner else "a process that has not said which"
    return UserError(
        f"--output_dir {path} is held by another run: {by}. Its file system has no locks by which to see "
        f"from this host, {socket.gethostname()}, whether it still runs. Give another folder, or, once that "
        f"job is known to be gone, remove {file} and start again."
    )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--output_dir {path} cannot be written ({error.strerror or error}). Give another folder."
        ) from error


def _here() -> tuple[str, int | None]:
    """This host and its namespace of process numbers."""
    try:
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        namespace = None
    return socket.gethostname(), namespace
