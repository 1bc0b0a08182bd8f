"""A host's end: starts the host's ranks when the head says so, and ends them when the head is gone."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Set
from contextlib import ExitStack

from launcher.control.spec import Spec
from launcher.control.wire import BEAT_S, Channel, Message, WireError, introduce
from launcher.errors import LauncherError
from launcher.exit_codes import CRASHED, FINISHED
from launcher.hosts import address, ports
from launcher.ranks import local as local_ranks
from launcher.ranks.commands import rank_commands
from launcher.ranks.process import RankProcess
from launcher.signals import held_back

# How long the head is looked for, in seconds; it listens before its agents are started.
_CONNECT_S = 30.0
# Ranks without a head have so long, in seconds, between SIGTERM and SIGKILL.
_ORPHAN_GRACE_S = 8.0
_LAST_LINES = 20
# Of what ranks write themselves, in characters: a message has an end.
_LONGEST_LINE = 1_000
_LONGEST_PLACE = 200
# What ended ranks printed last may be on its way so long, in seconds, for all of them together: a child that
# lives on holds a pipe open, and meanwhile the head hears nothing.
_DRAIN_S = 1.0
_LOOK_S = 1.0
_GONE: Message = {"do": "gone"}


def run(spec: Spec, index: int) -> int:
    """The whole life of the agent of node `index`; returns its exit code.

    Raises `LauncherError` when the head cannot be reached.
    """
    with held_back() as signals, ExitStack() as stack:
        channel = _connect(spec)
        stack.callback(channel.close)
        messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(channel, messages), daemon=True, name="listen").start()
        return _Agent(spec, index, channel, signals, stack).live(messages)


def _connect(spec: Spec) -> Channel:
    deadline_s = time.monotonic() + _CONNECT_S
    tried: dict[str, str] = {}
    while time.monotonic() < deadline_s:
        for host in spec.addresses:
            try:
                channel = Channel(socket.create_connection((host, spec.port), timeout=5))
                introduce(channel, spec.token, mine="agent", theirs="head")
                return channel
            except OSError as error:
                tried[host] = str(error)
        time.sleep(0.5)
    reasons = "; ".join(f"{host}: {why}" for host, why in tried.items())
    raise LauncherError(
        f"{os.uname().nodename} cannot reach the launcher on port {spec.port} ({reasons}). Open the way from "
        "the hosts to the machine where the launcher runs, or start it on one of the hosts."
    )


def _listen(channel: Channel, messages: queue.SimpleQueue[Message]) -> None:
    while True:
        try:
            message = channel.receive()
        except WireError:
            message = _GONE
        messages.put(message)
        # Wakes the main thread, which waits for signals.
        os.kill(os.getpid(), signal.SIGCHLD)
        if message is _GONE:
            return


class _Agent:
    def __init__(
        self, spec: Spec, index: int, channel: Channel, signals: Set[signal.Signals], stack: ExitStack
    ):
        self._spec = spec
        self._index = index
        self._channel = channel
        self._signals = signals
        self._stack = stack
        self._ranks: dict[int, RankProcess] = {}
        self._ended: set[int] = set()

    def live(self, messages: queue.SimpleQueue[Message]) -> int:
        """Until the head says "leave" or is gone."""
        handle: dict[str, Callable[[Message], None]] = {
            "choose": self._choose,
            "start": self._start,
            "signal": self._signal,
            "beat": lambda _: None,
        }
        next_beat_s = time.monotonic()
        try:
            self._channel.send({"index": self._index, "address": self._channel.addresses[0]})
            while True:
                while not messages.empty():
                    message = messages.get()
                    if message["do"] == "leave":
                        return FINISHED
                    if message is _GONE:
                        raise WireError("the head is gone")
                    handle[message["do"]](message)
                self._tell_ends()
                if time.monotonic() >= next_beat_s:
                    self._tell_beat()
                    next_beat_s = time.monotonic() + BEAT_S
                received = signal.sigtimedwait(self._signals, _LOOK_S)
                if received is not None and received.si_signo != signal.SIGCHLD:
                    # Whoever asks one host asks the job: the head decides.
                    self._channel.send({"says": "asked", "number": received.si_signo})
        except WireError:
            self._end_orphans()
            return CRASHED

    def _choose(self, message: Message) -> None:
        """The address and the port under which the ranks meet on this host, the first."""
        try:
            port = ports.free_port(message["port"])
        except LauncherError as error:
            self._channel.send({"says": "failed", "why": str(error)})
            return
        self._channel.send({"says": "master", "address": address.choose(message["peers"]), "port": port})

    def _start(self, message: Message) -> None:
        meeting = (message["address"], message["port"])
        try:
            commands = rank_commands(self._spec.job, self._index, *meeting, os.environ)
            ranks = self._stack.enter_context(
                local_ranks.started(commands, self._spec.job.logs, self._signals, has_terminal=False)
            )
        except (OSError, RuntimeError, LauncherError, subprocess.SubprocessError) as error:
            self._channel.send({"says": "failed", "why": f"the ranks could not be started: {error}"})
            return
        first = sum(node.num_slots for node in self._spec.job.nodes[: self._index])
        self._ranks = dict(enumerate(ranks, start=first))
        for rank, process in self._ranks.items():
            self._channel.send({"says": "started", "rank": rank, "pid": process.pid})

    def _signal(self, message: Message) -> None:
        process = self._ranks.get(message["rank"])
        if process is not None and message["rank"] not in self._ended:
            process.send(message["number"])

    def _tell_ends(self) -> None:
        deadline_s = time.monotonic() + _DRAIN_S
        for rank, process in self._ranks.items():
            if rank in self._ended or (end := process.ended()) is None:
                continue
            self._ended.add(rank)
            lines = process.last_lines(_LAST_LINES, max(0.0, deadline_s - time.monotonic()))
            cut = [line[:_LONGEST_LINE] for line in lines]
            self._channel.send({"says": "ended", "rank": rank, "code": end.code, "last_lines": cut})

    def _tell_beat(self) -> None:
        ranks = {}
        for rank, process in self._ranks.items():
            if rank not in self._ended:
                silence = process.silence()
                if silence is not None:
                    silence = (silence.seconds, silence.still_s, silence.place[:_LONGEST_PLACE])
                ranks[rank] = (process.is_frozen(), silence)
        self._channel.send({"says": "beat", "ranks": ranks})

    def _end_orphans(self) -> None:
        """Without a head nobody else would."""
        running = [process for process in self._ranks.values() if process.ended() is None]
        for process in running:
            process.send(signal.SIGTERM)
        deadline_s = time.monotonic() + _ORPHAN_GRACE_S
        while time.monotonic() < deadline_s and any(process.ended() is None for process in running):
            signal.sigtimedwait(self._signals, 0.2)
        # What is left is killed by those who started it, when `run` is left.
