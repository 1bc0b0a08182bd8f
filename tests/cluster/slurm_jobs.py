"""Jobs of the test cluster's Slurm: submit, ask, wait."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import REPOSITORY, Cluster, ClusterError


def submit(
    cluster: Cluster,
    *command: str | Path,
    environment: Mapping[str, str] | None = None,
    folder: Path = REPOSITORY,
    host: str = "node1",
) -> int:
    """Runs `sbatch COMMAND…` on a host and returns the job's number. Raises `ClusterError` when refused."""
    done = cluster.run_on(host, ["sbatch", "--parsable", *command], environment=environment, folder=folder)
    if done.returncode != 0:
        raise ClusterError(f"sbatch {' '.join(map(str, command))}: {done.stderr.strip()}")
    return int(done.stdout)


def job(cluster: Cluster, number: int) -> dict[str, str]:
    """What `scontrol show job` knows: JobState, Reason, Restarts, ExitCode, StdOut, NodeList and more."""
    done = cluster.run_on("ctl", ["scontrol", "--oneliner", "show", "job", str(number)])
    if done.returncode != 0:
        raise ClusterError(f"job {number}: {done.stderr.strip()}")
    return dict(re.findall(r"([\w:/]+)=(.*?)(?=\s+[\w:/]+=|\s*$)", done.stdout))


def wait_for_state(cluster: Cluster, number: int, states: Sequence[str], limit_s: float) -> dict[str, str]:
    """Waits until the job is in one of the states, and returns what is known of it then.

    Raises `ClusterError` with the job's state and the last lines of its log when the time limit is reached.
    """
    end_s = time.monotonic() + limit_s
    while (known := job(cluster, number))["JobState"] not in states:
        if time.monotonic() > end_s:
            log = Path(known.get("StdOut", ""))
            lines = log.read_text(errors="replace").splitlines()[-20:] if log.is_file() else []
            raise ClusterError(
                f"job {number} is {known['JobState']} ({known['Reason']}), not {' or '.join(states)}, "
                f"after {limit_s:.0f} s\n" + "\n".join(lines)
            )
        time.sleep(0.1)
    return known
