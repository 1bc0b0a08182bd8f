"""A job on several hosts: one agent on each, started by a program made for that, and heard over TCP."""

from __future__ import annotations

import os
import secrets
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.command import Command
from launcher.control import delivery
from launcher.control.head import Head
from launcher.control.spec import Spec
from launcher.errors import LauncherError
from launcher.hosts import address
from launcher.job import Job
from launcher.ranks.commands import rank_commands
from launcher.ranks.keeper import Keeper
from launcher.ranks.process import RankProcess
from launcher.ranks.rank import Rank
from launcher.shell import Shell

# How long agents may take to leave when they are told to, in seconds.
_LEAVE_S = 10.0
# Routes are asked for towards so many hosts: the others are in the same networks.
_NUM_ASKED = 8


@dataclass(frozen=True)
class RemoteTransport:
    """name: for --transport. command: starts `python -m launcher node` once on each node of a spec's job.
    shell: runs other commands there. delivers: whether specs are brought by `shell`, or stand in the
    environment of `command`.
    """

    name: str
    command: Callable[[Spec], Command]
    shell: Shell
    delivers: bool

    def commands(self, job: Job) -> tuple[Command, ...]:
        """What brings each host its spec, by standard input, what starts the agents, and what these start."""
        spec = make_spec(job, token="", port=0)
        receive = tuple(delivery.agent_command(spec, "receive"))
        receivers = job.nodes if self.delivers else ()
        shown = [Command(f"first on {node.host}, by ssh", receive, ()) for node in receivers]
        shown.append(self.command(spec))
        master = job.nodes[0].host
        address, port = job.master_address or f"(chosen on {master})", job.master_port or "(a free one)"
        for index, node in enumerate(job.nodes):
            for command in rank_commands(job, index, address, port, host={}):
                shown.append(replace(command, name=f"{command.name} on {node.host}"))
        return tuple(shown)

    @contextmanager
    def started(
        self, job: Job, signals: Set[signal.Signals], start_limit_s: float, say: Callable[[str], None]
    ) -> Iterator[Sequence[Rank]]:
        """The job's ranks on their hosts, about to start; a silent host is lost."""
        launcher = os.getpid()
        token = secrets.token_hex(32)
        with ExitStack() as afterwards:
            head = Head(
                job,
                token,
                start_limit_s,
                heard=lambda: os.kill(launcher, signal.SIGCHLD),
                asked=lambda number: os.kill(launcher, number),
                say=say,
            )
            afterwards.callback(head.close)
            spec = make_spec(job, token, head.port)
            if self.delivers:
                delivery.deliver(spec, self.shell)
            keeper = afterwards.enter_context(Keeper())
            starter = _start(self.command(spec), signals)
            afterwards.callback(starter.reap)
            afterwards.callback(starter.kill_group)
            keeper.watch(starter.pid)
            afterwards.callback(_wait_for, starter)
            afterwards.enter_context(head.serving(starter))
            yield head.ranks()


def _start(command: Command, signals: Set[signal.Signals]) -> RankProcess:
    try:
        return RankProcess(command, signals)
    except OSError as error:
        raise LauncherError(
            f"{command.arguments[0]!r} cannot be started on this machine: {error.strerror}. Install it or "
            "put its folder on PATH, or take another --transport."
        ) from error


def make_spec(job: Job, token: str, port: int) -> Spec:
    """What the agents of a job are told whose head listens on `port`."""
    hosts = [node.host for node in job.nodes[:_NUM_ASKED]]
    return Spec(
        launch=uuid.uuid4().hex[:12],
        token=token,
        addresses=(*address.own(hosts), "127.0.0.1"),
        port=port,
        index=None,
        folder=str(Path.cwd()),
        job=job,
    )


def _wait_for(starter: RankProcess) -> None:
    """Agents were told to leave, and with the last of them goes the program that started them."""
    deadline_s = time.monotonic() + _LEAVE_S
    while starter.ended() is None and time.monotonic() < deadline_s:
        time.sleep(0.05)
