"""The hosts of a cluster as the place where a campaign's trainings run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cluster import REPOSITORY, Cluster

# No process of a job may be left anywhere so long after its end, in seconds.
_ORPHAN_LIMIT_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True)
class End:
    """code: the launcher's. gone_s: seconds until nothing of the job was left. orphans: left after 30 s."""

    code: int
    gone_s: float
    orphans: tuple[str, ...]


class Hosts:
    """One rank on each of the first hosts, by a launcher on node1; a `Place` of the campaign."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        """Hostfiles are written into `folder`."""
        self.cluster = cluster
        self._folder = folder
        self._ends: list[End] = []

    @property
    def inside(self) -> Sequence[str]:
        """The words that run a command on node1."""
        return self.cluster.words_on("node1")

    def flags(self, ranks: int) -> Sequence[str]:
        """A hostfile with so many hosts, one rank on each."""
        return ("--hostfile", str(self.hostfile(ranks)), "--num-gpus", "1")

    def hostfile(self, num_hosts: int) -> Path:
        """One of the first hosts, a slot each."""
        lines = [f"{name} slots=1\n" for name in self.cluster.names[:num_hosts]]
        return self.write_hostfile(f"{num_hosts} hosts", "".join(lines))

    def write_hostfile(self, name: str, text: str) -> Path:
        """A file with this content, to the byte."""
        path = self._folder / f"hostfile {name}"
        path.write_bytes(text.encode())
        return path

    def ranks(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """The training processes on all hosts, by rank."""
        return [found for name in self.cluster.names for found in self.ranks_on(name)]

    def ranks_on(self, host: str) -> list[psutil.Process]:
        """The training processes on one host."""
        found = self.cluster.processes_on(host, "train.py")
        # Neither launcher, pdsh nor an agent has a rank.
        return [psutil.Process(each.pid) for each in found if each.has_variable("LOCAL_RANK")]

    def ended(self, code: int) -> None:
        """Waits until nothing of the job is left on any host, for 30 s at most."""
        begun_s = time.monotonic()
        while (left := self.left()) and time.monotonic() - begun_s < _ORPHAN_LIMIT_S:
            time.sleep(_POLL_S)
        self._ends.append(End(code, time.monotonic() - begun_s, tuple(left)))

    @property
    def last_end(self) -> End:
        """The last launcher's."""
        return self._ends[-1]

    def left(self) -> list[str]:
        """Launchers, agents, ranks and what has started them, as "host: command"."""
        return [
            f"{host}: {process.command}"
            for host in self.cluster.names
            for process in self.cluster.processes_on(host)
            if "-m launcher" in process.command or "train.py" in process.command
        ]

    def row_ended(self) -> dict[str, Any]:
        """What the table tells of a row's ends; the hosts are whole again afterwards."""
        ends, self._ends = self._ends, []
        self.cluster.mend()
        return {
            "exit codes": ", ".join(dict.fromkeys(str(end.code) for end in ends)) or "–",
            "gone after (s)": f"{max(end.gone_s for end in ends):.1f}" if ends else "–",
            "orphans": sum(len(end.orphans) for end in ends),
        }

    @contextmanager
    def instead(self, host: str, path: Path, content: str) -> Iterator[None]:
        """During the block this host alone sees another content of the file."""
        other = self._folder / f"other {path.name}"
        other.write_text(content, encoding="utf-8")
        self._do(host, "mount", "--bind", other, path)
        try:
            yield
        finally:
            self._do(host, "umount", path)

    def _do(self, host: str, *words: str | Path) -> None:
        done = self.cluster.run_on(host, words, folder=REPOSITORY)
        assert done.returncode == 0, f"{words} on {host}: {done.stderr}"
