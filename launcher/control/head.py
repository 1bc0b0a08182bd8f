"""The launcher's end: hears what the agents say, and tells them what to do."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from launcher.control.wire import BEAT_S, Channel, Message, WireError, introduce
from launcher.errors import LauncherError
from launcher.exit_codes import CHECKPOINTED, CRASHED, describe
from launcher.hosts import ports
from launcher.hosts.address import is_loopback
from launcher.job import Job
from launcher.ranks.heartbeat import Silence
from launcher.ranks.process import RankProcess
from launcher.ranks.rank import Ended
from launcher.signals import PASSED_ON

# Connections that have not proved yet whose they are, beyond one for each host.
_MOST_STRANGERS = 64
# What else the launcher keeps open: its own files, and those of commands that run on hosts.
_OTHER_FILES = 512
# Agents are often told to end all at once, or are by their starter which gives up when a host is lost: so
# long, in seconds, a host's loss may show, and what others then say is the same request.
_ASKED_SETTLE_S = 0.5
_ASKED_ECHO_S = 5.0
# Pause before the next look at connections when one could not be taken, in seconds.
_ACCEPT_PAUSE_S = 0.1


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
    is_lost: bool = False
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
        self._starter: RankProcess | None = None
        self._starter_ended = False
        self._hosts: list[_Host] = []
        self._host_of: list[_Host] = []
        first = 0
        for node in job.nodes:
            ranks = range(first, first + node.num_slots)
            host = _Host(node.host, ranks, states={rank: _RankState() for rank in ranks})
            self._hosts.append(host)
            self._host_of += [host] * node.num_slots
            first = ranks.stop
        _allow_files(2 * len(job.nodes) + _MOST_STRANGERS + _OTHER_FILES)
        self._strangers = threading.BoundedSemaphore(len(job.nodes) + _MOST_STRANGERS)
        self._server = _listen(backlog=len(job.nodes) + _MOST_STRANGERS)
        self.port: int = self._server.getsockname()[1]
        self._since_s = 0.0
        self._has_started = False
        self._is_leaving = threading.Event()
        self._asked_s: dict[int, float] = {}

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
        self._is_leaving.set()
        with suppress(OSError):
            # Closing alone would neither wake the thread that accepts nor free the port.
            self._server.shutdown(socket.SHUT_RDWR)
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
        return self._host_of[rank].states[rank]

    def check(self) -> None:
        """Gives up hosts whose agents have not come in time, and all when the starter has ended.

        Asked for every rank, so what is known already costs next to nothing.
        """
        if self._starter_ended or self._starter is None:
            return
        ended = self._starter.ended()
        with self._lock:
            if ended is not None:
                self._starter_ended = True
                why = f"{self._starter.name} (process {self._starter.pid}): {describe(ended.code)}"
                for host in self._hosts:
                    self._lose(host, why)
            elif not self._has_started and time.monotonic() - self._since_s > self._start_limit_s:
                for host in self._hosts:
                    if host.channel is None:
                        self._lose(host, f"{host.name} did not answer within {self._start_limit_s:g} s")

    def send(self, rank: int, signum: int) -> None:
        """A signal for a rank; before the start nobody will be started any more."""
        host = self._host_of[rank]
        with self._lock:
            if not self._has_started:
                # Asked to stop for a while, ranks that have done nothing have nothing to save.
                ended = Ended(CHECKPOINTED if signum in PASSED_ON else -signum)
                for state in host.states.values():
                    state.ended = state.ended or ended
                return
        if host.channel is not None:
            with suppress(WireError):  # its thread will see that it is gone
                host.channel.send({"do": "signal", "rank": rank, "number": signum})

    # -- the threads

    def _accept(self) -> None:
        # Until `close`: agents that come after the job's end are told to leave.
        while self._server.fileno() >= 0:
            self._strangers.acquire()
            try:
                connection, _ = self._server.accept()
            except OSError:
                # One that was gone again, or no more files: the others are still to come.
                self._strangers.release()
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="agent").start()

    def _beat(self) -> None:
        while not self._is_leaving.wait(BEAT_S):
            self._tell({"do": "beat"})

    def _tell(self, message: Message) -> None:
        for host in self._hosts:
            if host.channel is not None:
                with suppress(WireError):
                    host.channel.send(message)

    def _serve(self, connection: socket.socket) -> None:
        host: _Host | None = None
        why = "its thread ended"
        with connection:
            try:
                try:
                    channel = Channel(connection)
                    introduce(channel, self._token, mine="head", theirs="agent")
                finally:
                    self._strangers.release()
                host = self._welcome(channel, channel.receive())
                while True:
                    self._hear(host, channel.receive())
            except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
                why = str(error)
            finally:
                if host is not None and not self._is_leaving.is_set():
                    self._lose(host, f"nothing more was heard of {host.name}: {why}")

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
                with suppress(WireError):  # the first host's thread will see that it is gone
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
            for rank, (is_frozen, silence) in message["ranks"].items():
                state = host.states[int(rank)]
                state.is_frozen = is_frozen
                state.silence = None if silence is None else Silence(*silence)
            return  # the supervisor looks often enough
        elif says == "ended":
            state = host.states[message["rank"]]
            state.last_lines = message["last_lines"]
            state.ended = Ended(message["code"])
        elif says == "failed":
            self._lose(host, f"{host.name}: {message['why']}")
        elif says == "asked":
            self._note_asked(message["number"])
        self._heard()

    def _note_asked(self, signum: int) -> None:
        """A host's agent was sent a signal by others; the same for all of them is one request."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._asked_s.get(signum, -_ASKED_ECHO_S) < _ASKED_ECHO_S:
                return
            self._asked_s[signum] = now_s
        timer = threading.Timer(_ASKED_SETTLE_S, self._pass_on, args=(signum,))
        timer.daemon = True
        timer.start()

    def _pass_on(self, signum: int) -> None:
        with self._lock:
            # A starter that gives up ends its other agents; nobody has asked for that.
            is_wanted = not (self._is_leaving.is_set() or any(host.is_lost for host in self._hosts))
        if is_wanted:
            self._asked(signum)

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
            if host.is_lost:
                return
            host.is_lost = True
            for state in host.states.values():
                state.ended = state.ended or Ended(CRASHED, lost=why)
        self._heard()


def _listen(backlog: int) -> socket.socket:
    """A server on a free port of all interfaces, for IPv6 too where this machine has it."""
    if socket.has_dualstack_ipv6():
        with suppress(OSError):
            return socket.create_server(("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=backlog)


def _allow_files(number: int) -> None:
    """Has this process, and what it starts, open so many files. Raises `LauncherError` when it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= number:
        return
    if hard != resource.RLIM_INFINITY and hard < number:
        raise LauncherError(
            f"a job of so many hosts keeps {number} files open, and this machine allows a process {hard} "
            "(ulimit -Hn). Have the limit raised (/etc/security/limits.conf), or take fewer hosts."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


class RemoteRank:
    """A rank on another host, as a `launcher.ranks.rank.Rank`."""

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
