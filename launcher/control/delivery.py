"""Brings each host its `Spec` by ssh, before the transport starts the agents there.

So nothing of it stands on a command line, where every user of a host could read it, and no shell has a part
in it. The file is named after the host's own name: hosts may share a /tmp, and two names of one machine are
found out.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher import shell
from launcher.control.spec import Spec
from launcher.errors import LauncherError
from launcher.shell import Done, Shell

_LIMIT_S = 20.0
_TAKEN = 17
_AT_ONCE = 64
# No start takes so long, in seconds.
_OLD_S = 3600.0


def deliver(spec: Spec, run_on: Shell) -> None:
    """Every host of the job has its spec when this returns.

    Raises `LauncherError` naming the hosts that could not be given one, and two names of one machine.
    """
    hosts = [node.host for node in spec.job.nodes]
    indices = {host: index for index, host in enumerate(hosts)}
    text = spec.writer()

    def run_with_spec(host: str, command: Sequence[str], _: bytes, limit_s: float) -> Done:
        return run_on(host, command, text(indices[host]).encode(), limit_s)

    command = agent_command(spec, "receive")
    done = shell.on_all(run_with_spec, hosts, lambda _: command, _LIMIT_S, _AT_ONCE)
    failed = {host: result for host, result in done.items() if result.code != 0}
    if not failed:
        return
    taken = [host for host, result in failed.items() if result.code == _TAKEN]
    if taken:
        raise LauncherError(
            f"{' and '.join(taken)} is a machine that the job has under another name already; give each "
            "machine one line in the hostfile, with all its slots."
        )
    reasons = "; ".join(f"{host}: {_reason(result)}" for host, result in list(failed.items())[:5])
    raise LauncherError(
        f"{len(failed)} of {len(hosts)} hosts could not be given their part of the job ({reasons}). "
        "`python -m launcher check` says what to do."
    )


def agent_command(spec: Spec, action: str) -> list[str]:
    """The words that run `python -m launcher ACTION` for this launch on a host."""
    return shell.in_folder(spec.folder, [spec.job.python, "-m", "launcher", action, "--job", spec.launch])


def receive(launch: str) -> int:
    """On a host: keeps the spec that comes on standard input; the exit code says whether there was one."""
    spec = Spec.from_json(sys.stdin.read())
    # The way the launcher's own connection took is the best way back.
    came_from = os.environ.get("SSH_CONNECTION", "").split()[:1]
    addresses = dict.fromkeys([*came_from, *spec.addresses])
    path = _path(launch)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _check_folder(path.parent)
    path.parent.chmod(0o700)
    _remove_old(path.parent)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return _TAKEN
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(replace(spec, addresses=tuple(addresses)).to_json())
    return 0


def take(launch: str) -> Spec:
    """On a host, in its agent: the spec, which is gone from the disk then.

    Raises `LauncherError` where none was delivered.
    """
    path = _path(launch)
    try:
        _check_folder(path.parent)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise LauncherError(
            f"{os.uname().nodename} was not given its part of launch {launch} ({path} is missing): the "
            "launcher starts `node --job` itself; to start ranks by hand, leave --job out."
        ) from error
    with suppress(FileNotFoundError):
        path.unlink()
    return Spec.from_json(text)


def _check_folder(folder: Path) -> None:
    """Raises `LauncherError` when others could put a spec of theirs there: it says what is to be run."""
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise LauncherError(f"{folder} belongs to somebody else; remove it or have it removed.")


def _remove_old(folder: Path) -> None:
    """Specs whose agents never came: an environment may hold secrets, so none is to lie there for ever."""
    for path in folder.glob("*.json"):
        with suppress(FileNotFoundError):
            if time.time() - path.lstat().st_mtime > _OLD_S:
                path.unlink()


def _path(launch: str) -> Path:
    # Not tempfile's folder: that may differ between two logins.
    return Path("/tmp") / f"medsft-{os.getuid()}" / f"{launch}-{os.uname().nodename}.json"


def _reason(done: Done) -> str:
    if done.code is None:
        return f"no answer within {_LIMIT_S:.0f} s"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.code}"
