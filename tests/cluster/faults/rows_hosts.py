"""Hosts whose rank stands still, that are cut off, or that are slow."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from campaign import NUM_STEPS, SAVE_STEPS, Campaign, resumed_step
from hosts import Hosts
from jobs import Job, last_step
from tally import Tally

_HANG_S = 8
# Its agent, the launcher and the campaign each look every second or two.
_LOOKS_S = 7
_FIRST_SAVE = SAVE_STEPS
# A step in which nothing is being saved.
_IN_BETWEEN = 2 * SAVE_STEPS + SAVE_STEPS // 2
_NUM_BUSY = 6
# What a host has of this machine's two; the rest is for the launcher and ssh.
_CORES = 0.55
_SLOW_STEPS = 3


def stop_a_rank(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 3: SIGSTOP of the rank on node2, which the launcher sees by its heartbeat alone."""
    tally.inject(f"SIGSTOP of the rank on node2 (--hang-timeout {_HANG_S})")
    run = campaign.new_run("rank stopped")
    flags = ["--max-restarts", "1", "--hang-timeout", str(_HANG_S), "--grace", "2"]
    with campaign.start(run, launcher_flags=flags) as job:
        job.wait_for_step(_IN_BETWEEN)
        (rank,) = hosts.ranks_on("node2")
        job.ranks()
        rank.suspend()
        stopped_s = time.monotonic()
        tally.detected_s.append(job.wait_for_words("no sign of life from") - stopped_s)
        named_s = tally.detected_s[-1]
        tally.check(named_s <= _HANG_S + _LOOKS_S, f"named only after {named_s:.1f} s")
        _see_it_recover(tally, job, stopped_s)
        line = next(line for line in job.text.splitlines() if "no sign of life from" in line)
        tally.says(line, [f"no sign of life from rank 1 on node2 (process {rank.pid}) for", "starting again"])
        tally.check("rank 0" not in line, f"a rank that lives is named: {line}")
    campaign.check_finished(tally, run)


def cut_a_host(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 9: node3 loses its link for good; the others go on without it."""
    tally.inject("node3's link is cut (--allow-shrink)")
    run = campaign.new_run("host cut off")
    flags = ["--max-restarts", "1", "--allow-shrink", "--grace", "2"]
    with campaign.start(run, ranks=3, launcher_flags=flags) as job:
        job.wait_for_step(_IN_BETWEEN)
        tally.equal(len(job.ranks()), 3, "ranks")
        hosts.cluster.cut("node3")
        cut_s = time.monotonic()
        tally.detected_s.append(job.wait_for_words("nothing more was heard of node3") - cut_s)
        alone_s = job.wait_until(lambda: not hosts.ranks_on("node3"), "the end of node3's rank", 30) - cut_s
        tally.remarks.append(f"the rank on the host cut off ended {alone_s:.1f} s after the cut")
        _see_it_recover(tally, job, cut_s)
        tally.says(job.text, ["rank 2 on node3 is lost", "going on without node3", "starting again"])
        tally.says(job.text, ["ranks: 3, micro-batches", "ranks: 2, micro-batches"])
    hosts.cluster.restore("node3")
    campaign.check_curve(tally, run, most=1e-4)


def slow_a_host(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 10: node3 has a narrow link, then too much to do; it is named, and nobody is taken for dead."""
    tally.inject("node3's link is narrow, when the hosts are checked")
    hosts.cluster.slow("node3", mbit_s=20)
    found = _check_collective(tally, hosts)
    hosts.cluster.quicken("node3")
    tally.equal(found["node3"]["level"], "yellow", f"node3 in {found}")
    tally.says(found["node3"]["found"], ["slow: ", "its link takes"])
    wrong = [name for name in ("node1", "node2") if "its link takes" in found[name]["found"]]
    tally.equal(wrong, [], f"hosts whose links are called slow and are not, in {found}")
    tally.remarks.append(f"the check said: {found['node3']['found']}")
    # Only so does a program that is busy on one host take nothing from the others.
    for name in hosts.cluster.names:
        hosts.cluster.limit_cores(name, _CORES)
    tally.inject(f"{_NUM_BUSY} busy programs on node3, when the hosts are checked")
    with _busy(hosts, "node3"):
        found = _check_collective(tally, hosts)
    tally.equal(found["node3"]["level"], "yellow", f"node3 in {found}")
    tally.says(found["node3"]["found"], ["slow: ", "it computes in"])
    wrong = [name for name in ("node1", "node2") if "it computes in" in found[name]["found"]]
    tally.equal(wrong, [], f"hosts that are called slow and are not busy, in {found}")
    tally.remarks.append(f"with node3 busy it said: {found['node3']['found']}")

    run = campaign.new_run("slow host")
    flags = ["--hang-timeout", str(_HANG_S)]
    with campaign.start(run, ranks=3, launcher_flags=flags) as job:
        job.wait_for_step(_FIRST_SAVE)
        reached = last_step(run)
        tally.inject(f"the same two while {_SLOW_STEPS} steps each are trained (--hang-timeout {_HANG_S})")
        hosts.cluster.slow("node3", mbit_s=20)
        begun_s = time.monotonic()
        narrow_s = job.wait_for_step(reached + _SLOW_STEPS) - begun_s
        hosts.cluster.quicken("node3")
        reached = last_step(run)
        with _busy(hosts, "node3"):
            begun_s = time.monotonic()
            busy_s = job.wait_for_step(min(reached + _SLOW_STEPS, NUM_STEPS)) - begun_s
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
        tally.check("no sign of life" not in job.text, f"a living rank was taken for dead:\n{job.text}")
    tally.steps_lost.append(resumed_step(job.text))
    narrow, busy = (f"{seconds / _SLOW_STEPS:.1f} s" for seconds in (narrow_s, busy_s))
    tally.remarks.append(f"a step took {narrow} with the narrow link, {busy} with the busy host")
    for name in hosts.cluster.names:
        hosts.cluster.free_cores(name)
    campaign.check_curve(tally, run, most=1e-4)


def _see_it_recover(tally: Tally, job: Job, since_s: float) -> None:
    reached = last_step(job.run)
    tally.recovered_s.append(job.wait_for_step(min(reached + 1, NUM_STEPS)) - since_s)
    tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
    tally.steps_lost.append(reached - resumed_step(job.text))
    tally.check(tally.steps_lost[-1] <= SAVE_STEPS, f"{tally.steps_lost[-1]} steps were lost")


def _check_collective(tally: Tally, hosts: Hosts) -> dict[str, dict[str, str]]:
    """What `launcher check` finds on three hosts in the collective test, by host; the run could start."""
    begun_s = time.monotonic()
    done = hosts.cluster.run_on(
        "node1",
        [sys.executable, "-m", "launcher", "check", "--hostfile", hosts.hostfile(3), "--json"],
        environment={"OMP_NUM_THREADS": "1"},
        limit_s=150,
    )
    tally.detected_s.append(time.monotonic() - begun_s)
    tally.equal(done.returncode, 0, f"exit code of the check\n{done.stdout}{done.stderr}\n")
    return {name: host["findings"]["collective"] for name, host in json.loads(done.stdout)["hosts"].items()}


@contextmanager
def _busy(hosts: Hosts, host: str) -> Iterator[None]:
    """Programs that use as much as they can get of the host's cores."""
    words = [sys.executable, "-c", "while True: pass"]
    programs = [hosts.cluster.start_on(host, words) for _ in range(_NUM_BUSY)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
        for program in programs:
            program.wait()
