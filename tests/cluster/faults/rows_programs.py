"""Programs of the launcher that are killed: itself, what it starts hosts' agents by, and these."""

from __future__ import annotations

import signal
import time

from campaign import Campaign, resumed_step
from hosts import Hosts
from jobs import last_step
from processes import Process
from tally import Tally

from launcher.exit_codes import CHECKPOINTED, FINISHED

# What is killed -> its host, its program ("" for the launcher), a word of its command line, the transport.
_VICTIMS = {
    "the launcher": ("node1", "", "", "pdsh"),
    "pdsh": ("node1", "pdsh", "", "pdsh"),
    "the agent on node2": ("node2", "python", "-m launcher node", "pdsh"),
    "mpirun": ("node1", "mpirun", "", "openmpi"),
}


def kill_a_program(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 2: kill -9, without restarts; one run that goes on at every start."""
    run = campaign.new_run("programs killed")
    for name, (host, program, word, transport) in _VICTIMS.items():
        tally.inject(f"kill -9 of {name}")
        reached = last_step(run)
        with campaign.start(run, launcher_flags=["--transport", transport, "--grace", "2"]) as job:
            recovered_s = job.wait_for_step(reached + 2) - job.started_s
            tally.equal(len(job.ranks()), 2, "ranks")
            if program:
                _find(hosts, host, program, word).send(signal.SIGKILL)
            else:
                job.process.kill()
            killed_s = time.monotonic()
            code = job.process.wait(60)
            tally.detected_s.append(time.monotonic() - killed_s)
            tally.equal(job.end(), code, "exit code, asked for again")
            if program:
                tally.says(job.text, ["launcher: rank", "is lost after"])
            tally.check(code not in (FINISHED, CHECKPOINTED), f"exit code {code}:\n{job.text}")
            tally.equal(hosts.last_end.orphans, (), f"left 30 s after {name} was killed")
        if reached:
            tally.recovered_s.append(recovered_s)
            tally.steps_lost.append(reached - resumed_step(job.text))
        campaign.check_checkpoints(tally, run)

    # An agent has a connection of its own to the launcher: what started it may go.
    tally.inject("kill -9 of pdsh's ssh client for node2, which does no harm")
    reached = last_step(run)
    with campaign.start(run) as job:
        tally.recovered_s.append(job.wait_for_step(reached + 2) - job.started_s)
        tally.equal(len(job.ranks()), 2, "ranks")
        _find(hosts, "node1", "ssh", "node2").send(signal.SIGKILL)
        tally.equal(job.end(), FINISHED, f"exit code\n{job.text}\n")
        tally.says(job.text, ["ssh killed by signal 9"])
    tally.steps_lost.append(reached - resumed_step(job.text))
    tally.equal(hosts.last_end.orphans, (), "left 30 s after the end")
    campaign.check_finished(tally, run)


def _find(hosts: Hosts, host: str, program: str, word: str) -> Process:
    """The process of this program on a host."""
    found = [
        process
        for process in hosts.cluster.processes_on(host, word)
        if process.command.split()[0].rpartition("/")[2] == program
    ]
    assert len(found) == 1, f"{program} on {host}: {[each.command for each in found]}"
    return found[0]
