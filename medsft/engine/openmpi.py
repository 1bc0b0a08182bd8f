"""The address of rank 0 for ranks that a bare `mpirun` started: they have nothing in common but MPI.

MPI is left again as soon as all know the address: after MPI_Finalize a rank may end with any exit code, which
mpirun hands on. One that ends with MPI still open counts as a crash for mpirun, whatever its exit code.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import psutil

from medsft.errors import UserError

# Bridges of containers and virtual machines often have the same address on every host; Open MPI would take
# its neighbour for itself and wait for ever. Names as Docker, libvirt, Podman and Kubernetes give them.
_BRIDGES = ("docker", "br-", "virbr", "podman", "cni", "flannel", "cali", "veth")
_TOKEN_BYTES = 16
_EXCLUDE = "OMPI_MCA_btl_tcp_if_exclude"
_REACH_S = 3.0
_TOO_LONG_S = 60.0
_WAITING = (
    "the ranks have been waiting for each other in MPI for a minute. Where hosts have interfaces that others "
    "cannot reach (a docker bridge say), name the right one: `mpirun --mca btl_tcp_if_include IF --mca "
    "oob_tcp_if_include IF`."
)


class Communicator(Protocol):
    """What is used of `mpi4py.MPI.Comm`: collectives of Python objects."""

    def Get_rank(self) -> int: ...
    def allgather(self, value: Any) -> list[Any]: ...
    def bcast(self, value: Any, root: int = 0) -> Any: ...


def find_master(environment: Mapping[str, str], warn: Callable[[str], None]) -> tuple[str, int]:
    """An address of rank 0 that all hosts have reached, and a free port there; a collective of all ranks.

    `environment` has mpirun's variables OMPI_COMM_WORLD_*. `warn` is called with a sentence when MPI does not
    come about for a minute. Raises `UserError` when there is no MPI, when it is
    not the one of mpirun, or when no address of rank 0 can be reached from everywhere.
    """
    mpi = _load_mpi()
    size, on_this_host, place = (
        int(environment[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "LOCAL_SIZE", "LOCAL_RANK")
    )
    addresses = own_addresses() if on_this_host < size and place == 0 else None
    waiting = threading.Timer(_TOO_LONG_S, warn, [_WAITING])
    waiting.daemon = True
    waiting.start()
    try:
        with _without_bridges(environment):
            mpi.Init()
        try:
            if mpi.COMM_WORLD.Get_size() != size:
                raise UserError(
                    f"mpirun started {size} ranks, but MPI in this Python knows {mpi.COMM_WORLD.Get_size()}: "
                    f"mpi4py has loaded another MPI ({_library(mpi)}) than the Open MPI of mpirun. Put the "
                    "libraries of that Open MPI first in LD_LIBRARY_PATH, or name its libmpi.so in "
                    "MPI4PY_LIBMPI, or start with `python -m launcher run`."
                )
            return agree_on_master(mpi.COMM_WORLD, addresses)
        finally:
            mpi.Finalize()
    finally:
        waiting.cancel()


def _load_mpi() -> Any:
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py finds no library of MPI
        raise UserError(
            "mpirun sets no MASTER_ADDR, so the ranks find each other by mpi4py, which cannot be imported "
            f"({' '.join(str(error).split())}). `pip install mpi4py` where Open MPI's libmpi.so can be found,"
            " or give `mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=PORT`, or start with `python -m launcher "
            "run`."
        ) from error
    return MPI


@contextmanager
def _without_bridges(environment: Mapping[str, str]) -> Iterator[None]:
    """Has Open MPI leave out bridges, unless somebody has told it which interfaces to take."""
    bridges = [name for name in psutil.net_if_addrs() if name.startswith(_BRIDGES)]
    told = any(name.startswith("OMPI_MCA_btl_tcp_if_") for name in environment)
    if told or not bridges:
        yield
        return
    os.environ[_EXCLUDE] = ",".join(["lo", *bridges])
    try:
        yield
    finally:
        del os.environ[_EXCLUDE]


def _library(mpi: Any) -> str:
    return mpi.Get_library_version().strip("\0 \n").splitlines()[0]


def agree_on_master(ranks: Communicator, addresses: Sequence[str] | None) -> tuple[str, int]:
    """Address and port of rank 0, the same on every rank: loopback when all are on one host.

    `addresses`: this host's, the best first; None on all ranks of a host but one, and on all where there is
    one host. Rank 0 listens, every host tries each of its addresses, and the first one that all have reached
    is taken: so it is no docker bridge, and the port is none that a firewall keeps shut.
    """
    is_first = ranks.Get_rank() == 0
    hosts = ranks.allgather(addresses)
    if all(theirs is None for theirs in hosts):
        return "127.0.0.1", ranks.bcast(_free_port() if is_first else None)
    listener = offer = None
    if is_first:
        others = [address for theirs in hosts[1:] for address in theirs or () if address not in hosts[0]]
        listener = Listener()
        offer = listener.port, listener.token, in_order(hosts[0], others)
    port, token, candidates = ranks.bcast(offer)
    reached = ranks.allgather(None if addresses is None else reachable(candidates, port, token))
    if listener is not None:
        listener.close()
    told = {rank: seen for rank, seen in enumerate(reached) if seen is not None}
    for address in candidates:
        if all(address in seen for seen in told.values()):
            return address, port
    blind = [str(rank) for rank, seen in told.items() if not seen]
    which = f" (none at all from the host of rank {', '.join(blind)})" if blind else ""
    raise UserError(
        f"no address of rank 0's host ({', '.join(candidates) or 'it has none but loopback'}) can be reached "
        f"from all other hosts{which}. Open the firewall between them, or give an address that they can "
        "reach: `mpirun -x MASTER_ADDR=ADDRESS -x MASTER_PORT=PORT`."
    )


class Listener:
    """Answers whoever connects with a token, from a thread, on all addresses of this host."""

    def __init__(self) -> None:
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            self._socket = socket.create_server(("", 0))
        self.port: int = self._socket.getsockname()[1]
        self.token = secrets.token_bytes(_TOKEN_BYTES)
        self._closed = threading.Event()
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._answer, name="answers other hosts", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Frees the port."""
        self._closed.set()
        self._thread.join()
        self._socket.close()

    def _answer(self) -> None:
        while not self._closed.is_set():
            with suppress(OSError):  # nobody came in that time, or somebody has gone again
                visitor, _ = self._socket.accept()
                with visitor:
                    visitor.sendall(self.token)


def reachable(addresses: Sequence[str], port: int, token: bytes) -> list[str]:
    """Those at which the listener with that token, and no other, answers; all are tried at once."""

    def answers(address: str) -> bool:
        try:
            with socket.create_connection((address, port), timeout=_REACH_S) as connection:
                return connection.recv(_TOKEN_BYTES, socket.MSG_WAITALL) == token
        except OSError:
            return False

    if not addresses:
        return []
    with ThreadPoolExecutor(len(addresses)) as threads:
        return [name for name, yes in zip(addresses, threads.map(answers, addresses), strict=True) if yes]


def own_addresses() -> list[str]:
    """This host's addresses but loopback and link-local ones: those of its name first, then all others."""
    named: Iterable[str] = []
    with suppress(OSError):
        named = [str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)]
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    of_interfaces = [
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if name in up and entry.family in (socket.AF_INET, socket.AF_INET6)
    ]
    here = set(of_interfaces)
    wanted = [address for address in (*named, *of_interfaces) if address in here]
    return [address for address in dict.fromkeys(wanted) if not address.startswith(("127.", "::1", "fe80:"))]


def in_order(own: Sequence[str], others: Iterable[str]) -> list[str]:
    """This host's addresses, first those from which the kernel would send to one of the others'."""
    sources = (source_towards(address) for address in dict.fromkeys(others))
    return list(dict.fromkeys([*(source for source in sources if source in own), *own]))


def source_towards(address: str) -> str | None:
    """The address of this host that the kernel picks to send to another; nothing is sent. None: no way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            return probe.getsockname()[0]
    except OSError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
