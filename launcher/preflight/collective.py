"""Judges what medsft/allreduce.py measured over all ranks: which hosts are slow, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from launcher.preflight.findings import GREEN, RED, YELLOW, Finding


@dataclass(frozen=True)
class SlowLimits:
    """From when on a host is called slow; slow is yellow, for the run works all the same."""

    factor: float = 2.0
    """So many times the median of all hosts; below it is noise of a busy host."""
    least_link_s: float = 0.005
    """And so many seconds more on its link: a small transfer's time jitters by milliseconds."""
    least_compute_s: float = 0.005
    """And so many seconds more for the same computation."""


def judge(result: Mapping[str, Any], hosts: Sequence[str], limits: SlowLimits) -> list[Finding]:
    """Findings for each host; `result` is the JSON of medsft/allreduce.py, hosts[i] has node rank i.

    A host's link is as fast as the fastest of those timed: every host exchanges with the first two, so one
    slow host leaves each other host a fast one. With two hosts there is one link and nothing to hold it
    against. A wrong sum is red on all hosts. Raises `ValueError` when the result is not of these hosts.
    """
    try:
        measured = {entry["node_rank"]: entry for entry in result["hosts"]}
        correct = result["correct"]
        links = {rank: min(entry["links_s"].values(), default=None) for rank, entry in measured.items()}
        compute = {rank: entry["compute_s"] for rank, entry in measured.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the collective test's result cannot be read: {error!r}") from error
    if sorted(measured) != list(range(len(hosts))):
        raise ValueError(
            f"the collective test's result is of nodes {sorted(measured)}, not of {len(hosts)} hosts"
        )
    if not correct:
        return [
            Finding(
                host,
                "collective",
                RED,
                "the all-reduce gave a wrong sum",
                "Memory, GPU or network damage data: find the host by halving the hostfile.",
            )
            for host in hosts
        ]
    known = [seconds for seconds in links.values() if seconds is not None]
    usual_link, usual_compute = median(known) if len(known) > 2 else None, median(compute.values())
    findings = []
    for rank, host in enumerate(hosts):
        slow, remedies = [], []
        if usual_link is not None and _slow(links[rank], usual_link, limits.factor, limits.least_link_s):
            slow.append(f"its link takes {links[rank] * 1e3:.1f} ms, others {usual_link * 1e3:.1f} ms")
            remedies.append("Look at its link (`ethtool`, `ibstat`): speed, errors, another user's traffic.")
        if len(hosts) > 1 and _slow(compute[rank], usual_compute, limits.factor, limits.least_compute_s):
            slow.append(
                f"it computes in {compute[rank] * 1e3:.1f} ms, others in {usual_compute * 1e3:.1f} ms"
            )
            remedies.append("See whether something else runs there, and how hot it is (`top`, `nvidia-smi`).")
        if slow:
            found = f"slow: {' and '.join(slow)}"
            findings.append(Finding(host, "collective", YELLOW, found, " ".join(remedies)))
        else:
            link = "" if links[rank] is None else f", link {links[rank] * 1e3:.1f} ms"
            findings.append(Finding(host, "collective", GREEN, f"compute {compute[rank] * 1e3:.1f} ms{link}"))
    return findings


def describe(result: Mapping[str, Any]) -> str:
    """One line for people: the largest all-reduce and its bandwidth."""
    largest = max(result["sizes"], key=lambda size: size["bytes"])
    return (
        f"all-reduce of {largest['bytes'] / 2**20:g} MiB over {result['world_size']} ranks "
        f"({result['backend']}): {largest['median_s'] * 1e3:.1f} ms, bus bandwidth "
        f"{largest['busbw_gb_s']:.2f} GB/s"
    )


def _slow(seconds: float, usual: float, factor: float, least_s: float) -> bool:
    return seconds > factor * usual and seconds - usual > least_s
