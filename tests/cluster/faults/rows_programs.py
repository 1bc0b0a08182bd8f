"""Programs of the launcher that are killed: itself, what it starts hosts' agents by, and these."""

from __future__ import annotations

import time

from campaign import Campaign
from hosts import Hosts
from jobs import last_step
from processes import Process
from tally import Tally

from launcher.exit_codes import CHECKPOINTED, FINISHED

# What is killed -> (its host, how its command line begins or "" for the launcher, the transport).
_VICTIMS = {
    "the launcher": ("node1", "", "pdsh"),
    "pdsh": ("node1", "pdsh ", "pdsh"),
    "pdsh's ssh client for node2": ("node1", "ssh ", "pdsh"),
    "the agent on node2": ("node2", "python", "pdsh"),
    "mpirun": ("node1", "mpirun ", "openmpi"),
}


def kill_a_program(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 2: kill -9, without restarts; one run that goes on at every start."""
    run = campaign.new_run("programs killed")
    for name, (host, begin, transport) in _VICTIMS.items():
        tally.inject(f"kill -9 of {name}")
        reached = last_step(run)
        with campaign.start(run, launcher_flags=["--transport", transport, "--grace", "2"]) as job:
            job.wait_for_step(reached + 2)
            tally.equal(len(job.ranks()), 2, "ranks")
            if begin:
                _find(hosts, host, begin).kill()
            else:
                job.process.kill()
            killed_s = time.monotonic()
            code = job.end()
            seconds = time.monotonic() - killed_s
            told = f"exit code\n{job.text}\n"
            tally.check(code not in (FINISHED, CHECKPOINTED), f"{told} is {code}")
            if begin:
                tally.says(job.text, ["launcher: rank", "is lost after"])
            tally.equal(hosts.last_end.orphans, (), f"left 30 s after {name} was killed")
            tally.detected_s.append(seconds)
            campaign.check_checkpoints(tally, run)
    campaign.finish(tally, run, last_step(run))


def _find(hosts: Hosts, host: str, begin: str) -> "_Victim":
    found = [
        process
        for process in hosts.cluster.processes_on(host)
        if process.command.rpartition("/")[2].startswith(begin) or _program(process).startswith(begin)
    ]
    return found
