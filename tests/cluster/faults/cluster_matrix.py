"""The rows of the fault matrix that need several hosts, by their numbers there; 12 to 14 are Slurm's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matrix
from campaign import Campaign
from hosts import Hosts
from rows_hosts import cut_a_host, slow_a_host, stop_a_rank
from rows_programs import kill_a_program
from rows_ranks import kill_and_restart
from rows_refused import differ, refuse_connections, take_the_port, write_bad_hostfiles
from rows_stops import ask_to_stop
from tally import Tally


@dataclass(frozen=True)
class Row:
    """injected: what, in short. promise: what must come of it. run: (campaign, tally, hosts)."""

    number: int
    injected: str
    promise: str
    run: Callable[[Campaign, Tally, Hosts], None]

    def bound(self, hosts: Hosts) -> matrix.Row:
        """The row as the campaign runs it."""
        return matrix.Row(
            self.number,
            self.injected,
            self.promise,
            lambda campaign, tally, _: self.run(campaign, tally, hosts),
        )


MATRIX = (
    Row(
        1,
        "kill -9 of a rank: rank 0, the last, on another host",
        "an automatic restart, at most one save interval lost, same final weights",
        lambda campaign, tally, _: kill_and_restart(campaign, tally),
    ),
    Row(
        2,
        "kill -9 of the launcher, pdsh, a host's agent, mpirun, an ssh client",
        "never a false success, no orphan after 30 s, same final weights",
        kill_a_program,
    ),
    Row(
        3,
        "SIGSTOP of a rank on another host",
        "named within the timeout and 7 s, restarted, same final weights",
        stop_a_rank,
    ),
    Row(
        9,
        "a host of three cut off",
        "all ranks end, also those on it; goes on with the other hosts, losses within 1e-4",
        cut_a_host,
    ),
    Row(
        10,
        "a host's link of 20 Mbit/s; six busy programs on it",
        "the slow host named by the check, no false kill, losses within 1e-4",
        slow_a_host,
    ),
    Row(
        11,
        "TERM, USR1, INT, twice, in a save, to the launcher or a rank on another host",
        "exit code 75 with a checkpoint, no step lost, same final weights",
        lambda campaign, tally, _: ask_to_stop(campaign, tally, quick=True),
    ),
    Row(
        15,
        "the master port asked for taken on the master",
        "another one, said within 10 s, same final weights",
        take_the_port,
    ),
    Row(
        16,
        "bad hostfiles: twice the same host, typos, zero and no slots, an unknown host, empty; one with CRLF",
        "refused before anything is started, the line quoted; CRLF does no harm",
        write_bad_hostfiles,
    ),
    Row(
        17,
        "sshd down on a host; key refused on a host",
        "named within 15 s, nothing started",
        refuse_connections,
    ),
    Row(
        21,
        "another version of a package, code, settings, commit or data on one host",
        "refused before anything is started, both values shown",
        differ,
    ),
)
