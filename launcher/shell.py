"""Commands on other hosts: `ssh`, `srun` or `here`, each a function of host, words, stdin and time limit.

For short commands before and beside a run (checks, deliveries); ranks and agents are started elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

from launcher.errors import LauncherError
from launcher.signals import is_asked_to_stop

SSH_ARGS = "MEDSFT_SSH_ARGS"
"""Environment variable with further words for every ssh, as a shell would split them."""
_PR_SET_PDEATHSIG = 1
# The part of the time limit in which a connection must stand, so that ssh itself can say that it did not.
_CONNECT_SHARE = 0.6
# What is read of a command's output, in bytes.
_MAX_OUTPUT = 8 * 2**20
# Inside an allocation these make srun give the step a part of the host only (they imply --exact).
_SRUN_SHARES = ("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK")
# How often a signal that is held back is looked for, in seconds.
_LOOK_S = 0.2
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Done:
    """How a command ended. `code`: exit code, -n for signal n, None when the time limit was reached.

    `stdout` and `stderr` are UTF-8 text, with replacements for what is not.
    """

    code: int | None
    stdout: str
    stderr: str


class InterruptedWork(Exception):
    """A signal to stop waits to be taken; what was being done is left."""


Shell = Callable[[str, Sequence[str], bytes, float], Done]
"""host, command (words, which arrive as they are), standard input, time limit in seconds -> Done"""


def ssh(host: str, command: Sequence[str], stdin: bytes, limit_s: float) -> Done:
    """Runs the words on a host, never asking for a password; ssh's own failures have code 255.

    What ~/.ssh/config says of the host holds, host keys included. The words of $MEDSFT_SSH_ARGS come
    before our options, and the first one counts. The remote login shell must be a POSIX one. Raises
    `LauncherError` where there is no ssh.
    """
    extra = _split(os.environ.get(SSH_ARGS, ""))
    connect_s = max(1, int(limit_s * _CONNECT_SHARE))
    options = ["-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={connect_s}"]
    return _run(["ssh", *extra, *options, "--", host, shlex.join(command)], stdin, limit_s, os.environ)


def srun(host: str, command: Sequence[str], stdin: bytes, limit_s: float) -> Done:
    """Runs the words on a host of this Slurm allocation, beside whatever runs there.

    Raises `LauncherError` where there is no srun.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _SRUN_SHARES}
    options = [
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        "--ntasks-per-node=1",
        f"--nodelist={host}",
        f"--immediate={max(1, int(limit_s * _CONNECT_SHARE))}",
        "--mem=0",
        "--cpu-bind=none",
        "--chdir=/",
        "--quiet",
    ]
    return _run(["srun", *options, "--", *command], stdin, limit_s, environment)


def here(host: str, command: Sequence[str], stdin: bytes, limit_s: float) -> Done:
    """Runs the words on this machine, whatever `host` says. Raises `LauncherError` for no such program."""
    return _run(list(command), stdin, limit_s, os.environ)


def plain_ssh_words() -> str:
    """The words of $MEDSFT_SSH_ARGS for programs that split at blanks themselves (pdsh, mpirun).

    Raises `LauncherError` for words that these would take for something else.
    """
    words = _split(os.environ.get(SSH_ARGS, ""))
    if odd := [word for word in words if not word or re.search(r"[\s%'\"\\]", word)]:
        raise LauncherError(
            f"{SSH_ARGS} has the word {odd[0]!r}, and pdsh and mpirun take no blanks, quotes, backslashes or "
            "% in it. Put what it says into ~/.ssh/config."
        )
    return " ".join(words)


def in_folder(folder: str, command: Sequence[str]) -> list[str]:
    """The words that run `command` with `folder` as its working directory."""
    return ["sh", "-c", 'cd -- "$0" && exec "$@"', folder, *command]


def on_all(
    shell: Shell,
    hosts: Sequence[str],
    command_of_host: Callable[[str], Sequence[str]],
    limit_s: float,
    at_once: int = 64,
    stdin: bytes = b"",
) -> dict[str, Done]:
    """The command of each host on it, `at_once` at a time: host -> how it ended, in the order of `hosts`.

    Raises what the shell raises, and `InterruptedWork` when a signal to stop is held back; commands not begun
    by then are left out, the others are waited for.
    """
    if not hosts:
        return {}
    executor = ThreadPoolExecutor(min(at_once, len(hosts)), thread_name_prefix="shell")
    try:
        futures = {
            host: executor.submit(shell, host, command_of_host(host), stdin, limit_s) for host in hosts
        }
        waiting = set(futures.values())
        while waiting:
            ended, waiting = wait(waiting, timeout=_LOOK_S, return_when=FIRST_EXCEPTION)
            if any(future.exception() is not None for future in ended):
                break
            if waiting and is_asked_to_stop():
                raise InterruptedWork("asked to stop")
        return {host: future.result() for host, future in futures.items()}
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError as error:
        raise LauncherError(
            f"MEDSFT_SSH_ARGS={words!r} in the environment cannot be split into words ({error}); mind its "
            "quotes."
        ) from error


def _run(words: Sequence[str], stdin: bytes, limit_s: float, environment: Mapping[str, str]) -> Done:
    """Runs a program of this machine; at the limit its process group is killed.

    Files and not pipes: a connection that ssh keeps open for later (ControlPersist) holds on to its standard
    error, and whoever read a pipe to its end would wait for it.
    """
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(
                words,
                env=environment,
                stdin=given,
                stdout=output,
                stderr=errors,
                # Out of the terminal's reach: nothing can ask there, and Ctrl-C is the launcher's to act on.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        except OSError as error:
            raise LauncherError(
                f"{words[0]!r} cannot be started on this machine: {error.strerror}. Install it, or put its "
                "folder on PATH."
            ) from error
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Done(code, *(_text(file) for file in (output, errors)))


def _die_with(parent: int) -> Callable[[], None]:
    """For the child before its program starts: killed by the kernel when the launcher is gone."""

    def in_child() -> None:
        # The launcher holds signals back while it waits for them; its children must not inherit that.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return in_child


def _text(file: tempfile._TemporaryFileWrapper) -> str:
    file.seek(0)
    return file.read(_MAX_OUTPUT).decode("utf-8", "replace")
