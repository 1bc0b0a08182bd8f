"""The launcher's end: hears what the agents say, and tells them what to do."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from launcher.control.wire import BEAT_S, Channel, Message, WireError, introduce
from launcher.exit_codes import CRASHED, describe
from launcher.hosts import ports
from launcher.hosts.address import is_loopback
from launcher.job import Job
from launcher.ranks.heartbeat import Silence
from launcher.ranks.process import RankProcess
from launcher.ranks.rank import Ended


@dataclass
class _RankState:
    """What the head knows of a rank; written by the thread that hears its agent, read by the supervisor."""

    pid: int = 0
    ended: Ended | None = None
    is_frozen: bool = False
    silence: Silence | None = None
    last_lines: Sequence[str] = ()


@dataclass
class _Host:
    name: str
    ranks: range
    channel: Channel | None = None
    own_address: str = ""
    states: dict[int, _RankState] = field(default_factory=dict)


class Head:
    """Listens for one agent a host, has them start their ranks, and speaks for them to the supervisor.

    `start_limit_s`: a host whose agent has not come by then is lost. `heard` is called, from another thread,
    whenever there is news; `asked` with a signal that an agent was sent by others.
    """

    def __init__(
        self,
        job: Job,
        token: str,
        start_limit_s: float,
        heard: Callable[[], None],
        asked: Callable[[int], None],
        say: Callable[[str], None],
    ):
        self._job = job
        self._token = token
        self._start_limit_s = start_limit_s
        self._heard = heard
        self._asked = asked
        self._say = say
        self._lock = threading.RLock()
        self._hosts: list[_Host] = []
        first = 0
        for node in job.nodes:
            ranks = range(first, first + node.num_slots)
            self._hosts.append(_Host(node.host, ranks, states={rank: _RankState() for rank in ranks}))
            first = ranks.stop
        self._server = socket.create_server(("", 0), backlog=len(job.nodes) + 16)
        self.port: int = self._server.getsockname()[1]
        self._since_s = 0.0
        self._has_started = False
        self._is_leaving = threading.Event()

    @contextmanager
    def serving(self, starter: RankProcess) -> Iterator[None]:
        """Serves the agents; at the end every agent kills what is left on its host and leaves.

        `starter` is the program that has started the agents and lives as long as they do.
        """
        self._starter = starter
        self._since_s = time.monotonic()
        for work in (self._accept, self._beat):
            threading.Thread(target=work, daemon=True, name=f"head{work.__name__}").start()
        try:
            yield
        finally:
            self._is_leaving.set()
            self._tell({"do": "leave"})

    def close(self) -> None:
        """After the agents had time to leave by themselves."""
        self._server.close()
        for host in self._hosts:
            if host.channel is not None:
                host.channel.close()

    def ranks(self) -> list[RemoteRank]:
        """All ranks of the job, in their order."""
        return [RemoteRank(self, host.name, rank) for host in self._hosts for rank in host.ranks]

    # -- what the supervisor asks, by rank

    def state(self, rank: int) -> _RankState:
        """What is known of a rank."""
        return self._host_of(rank).states[rank]

    def check(self) -> None:
        """Gives up hosts whose agents have not come in time, and all when the starter has ended."""
        with self._lock:
            if (ended := self._starter.ended()) is not None:
                why = f"{self._starter.name} (process {self._starter.pid}): {describe(ended.code)}"
                for host in self._hosts:
                    self._lose(host, why)
            elif not self._has_started and time.monotonic() - self._since_s > self._start_limit_s:
                for host in self._hosts:
                    if host.channel is None:
                        self._lose(host, f"{host.name} did not answer within {self._start_limit_s:g} s")

    def send(self, rank: int, signum: int) -> None:
        """A signal for a rank; before the start nobody will be started any more."""
        host = self._host_of(rank)
        with self._lock:
            if not self._has_started:
                if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
                    for state in host.states.values():
                        state.ended = state.ended or Ended(-signum)
                return
        if host.channel is not None:
            with suppress(WireError):  # its thread will see that it is gone
                host.channel.send({"do": "signal", "rank": rank, "number": signum})

    def _host_of(self, rank: int) -> _Host:
        return next(host for host in self._hosts if rank in host.ranks)

    # -- the threads

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            channel = Channel(connection)
            threading.Thread(target=self._serve, args=(channel,), daemon=True, name="agent").start()

    def _beat(self) -> None:
        while not self._is_leaving.wait(BEAT_S):
            self._tell({"do": "beat"})

    def _tell(self, message: Message) -> None:
        for host in self._hosts:
            if host.channel is not None:
                with suppress(WireError):
                    host.channel.send(message)

    def _serve(self, channel: Channel) -> None:
        host: _Host | None = None
        try:
            introduce(channel, self._token, mine="head", theirs="agent")
            host = self._welcome(channel, channel.receive())
            while True:
                self._hear(host, channel.receive())
        except (WireError, KeyError, TypeError, ValueError) as error:
            channel.close()
            if host is not None and not self._is_leaving.is_set():
                self._lose(host, f"nothing more was heard of {host.name}: {error}")

    def _welcome(self, channel: Channel, hello: Message) -> _Host:
        with self._lock:
            index = hello["index"]
            if not 0 <= index < len(self._hosts) or self._hosts[index].channel is not None:
                raise WireError(f"agent number {index} was not expected")
            host = self._hosts[index]
            host.channel, host.own_address = channel, hello["address"]
            if self._is_leaving.is_set():
                channel.send({"do": "leave"})
            elif all(each.channel is not None for each in self._hosts):
                peers = [each.own_address for each in self._hosts[1:] if not is_loopback(each.own_address)]
                self._hosts[0].channel.send(
                    {"do": "choose", "peers": peers, "port": self._job.master_port or None}
                )
        return host

    def _hear(self, host: _Host, message: Message) -> None:
        says = message["says"]
        if says == "master":
            self._start(message)
        elif says == "started":
            host.states[message["rank"]].pid = message["pid"]
        elif says == "beat":
            for rank, (is_frozen, seconds, place) in message["ranks"].items():
                state = host.states[int(rank)]
                state.is_frozen = is_frozen
                state.silence = None if seconds is None else Silence(seconds, place)
        elif says == "ended":
            state = host.states[message["rank"]]
            state.last_lines = message["last_lines"]
            state.ended = Ended(message["code"])
        elif says == "failed":
            self._lose(host, f"{host.name}: {message['why']}")
        elif says == "asked":
            self._asked(message["number"])
        self._heard()

    def _start(self, master: Message) -> None:
        address = self._job.master_address or master["address"]
        with self._lock:
            if any(state.ended for host in self._hosts for state in host.states.values()):
                return
            self._has_started = True
        if self._job.master_port not in (0, master["port"]):
            self._say(ports.taken(self._job.master_port, master["port"]))
        self._tell({"do": "start", "address": address, "port": master["port"]})

    def _lose(self, host: _Host, why: str) -> None:
        with self._lock:
            for state in host.states.values():
                state.ended = state.ended or Ended(CRASHED, lost=why)
        self._heard()


class RemoteRank:
    """A rank on another host, as a `launcher.rank.Rank`."""

    def __init__(self, head: Head, host: str, rank: int):
        self.name = f"rank {rank} on {host}"
        self.host = host
        self._head = head
        self._rank = rank

    @property
    def pid(self) -> int:
        """Its process id on its host."""
        return self._head.state(self._rank).pid

    def ended(self) -> Ended | None:
        """How it ended, as its agent said; also lost with its host."""
        self._head.check()
        return self._head.state(self._rank).ended

    def is_frozen(self) -> bool:
        """As its agent said last."""
        return self._head.state(self._rank).is_frozen

    def silence(self) -> Silence | None:
        """As its agent said last."""
        return self._head.state(self._rank).silence

    def send(self, signum: int) -> None:
        """Through its agent."""
        self._head.send(self._rank, signum)

    def last_lines(self, most: int) -> Sequence[str]:
        """Sent with its end."""
        return list(self._head.state(self._rank).last_lines)[-most:]
