"""When a run that has checkpointed goes back into Slurm's queue, and what Slurm gives a job."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.hosts.allocation import (
    Allocation,
    TaskPlace,
    read_allocation,
    read_task,
    step_hosts,
    step_port,
    task_environment,
    tasks_per_node,
)
from launcher.supervision.requeue import JobRecord, decide, parse_record

REPOSITORY = Path(__file__).resolve().parents[2]
RUNNING = JobRecord("RUNNING", can_requeue=True, num_restarts=0, is_batch=True, is_preempted=False)
# As Slurm 22.05.8 prints it, of a job whose name and arguments look like fields.
SHOWN = (
    "JobId=6 JobName=医 JobState=FAILED Requeue=0 UserId=root(0) GroupId=root(0) MCS_label=N/A "
    "Priority=4294901754 Nice=0 Account=(null) QOS=(null) JobState=RUNNING Reason=None Dependency=(null) "
    "Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:33 TimeLimit=UNLIMITED "
    "TimeMin=N/A SubmitTime=2026-11-23T22:17:38 EligibleTime=2026-11-23T22:19:39 "
    "PreemptEligibleTime=2026-11-23T22:19:39 PreemptTime=None SuspendTime=None "
    "Command=/data/b.sh PreemptTime=2026-11-23T22:19:39 WorkDir=/data Power=\n"
)
PREEMPTED = SHOWN.replace("PreemptTime=None", "PreemptTime=2026-11-23T22:20:35", 1)


@pytest.mark.parametrize(
    ("asked_by", "changed", "restart_count", "max_requeues", "expected", "said"),
    [
        (signal.SIGUSR1, {}, 0, 20, True, "SIGUSR1 came"),
        (signal.SIGUSR1, {}, 19, 20, True, "requeue 20 of at most 20"),
        (signal.SIGUSR1, {}, 20, 20, False, "requeued 20 times already"),
        (signal.SIGUSR1, {}, 0, 0, False, "not asked for"),
        (signal.SIGUSR1, {"can_requeue": False}, 0, 20, False, "without --requeue"),
        (signal.SIGUSR1, {"is_batch": False}, 0, 20, False, "no batch job"),
        # In the grace of a preemption the steps get the signal, not the launcher.
        (None, {"is_preempted": True}, 0, 20, True, "preempted"),
        (signal.SIGTERM, {"is_preempted": True}, 0, 20, True, "preempted"),
        (None, {"is_preempted": True}, 20, 20, False, "requeued 20 times already"),
        # At its end Slurm has done it.
        (signal.SIGTERM, {"state": "COMPLETING", "num_restarts": 1}, 0, 20, False, "Slurm has requeued"),
        # scancel, also while the run was about to checkpoint for the time limit or a preemption.
        (signal.SIGTERM, {"state": "COMPLETING"}, 0, 20, False, "JobState=COMPLETING"),
        (signal.SIGUSR1, {"state": "COMPLETING"}, 0, 20, False, "JobState=COMPLETING"),
        (signal.SIGUSR1, {"state": "CANCELLED"}, 0, 20, False, "JobState=CANCELLED"),
        (None, {"state": "COMPLETING", "is_preempted": True}, 0, 20, False, "JobState=COMPLETING"),
        # A person: scancel --signal, kill, Ctrl-C, the file STOP.
        (signal.SIGTERM, {}, 0, 20, False, "SIGTERM asked"),
        (signal.SIGINT, {}, 0, 20, False, "SIGINT asked"),
        (None, {}, 0, 20, False, "neither the time limit nor preemption"),
    ],
)
def test_decisions(asked_by, changed, restart_count, max_requeues, expected, said):
    record = replace(RUNNING, **{"num_restarts": restart_count} | changed)
    decision = decide(asked_by, record, restart_count, max_requeues)
    assert (decision.requeue, said in decision.why) == (expected, True), decision


def test_a_job_too_short_to_get_anywhere_is_not_requeued_for_ever():
    decision = decide(signal.SIGUSR1, RUNNING, 0, 20, has_progressed=False)
    assert (decision.requeue, "more --time" in decision.why) == (False, True)
    preempted = replace(RUNNING, is_preempted=True)
    assert decide(signal.SIGTERM, preempted, 0, 20, has_progressed=False).requeue


def test_what_scontrol_shows_is_read_without_being_fooled_by_names():
    assert parse_record(SHOWN) == replace(RUNNING, num_restarts=2)
    assert parse_record(PREEMPTED).is_preempted
    # Gone from what a job shows that Slurm has requeued already.
    assert not parse_record(SHOWN.replace("PreemptTime=None ", "", 1)).is_preempted


def test_what_is_no_job_record_is_refused():
    with pytest.raises(LauncherError, match="prints no Restarts="):
        parse_record(SHOWN.replace("Restarts=2", ""))


# Ends like the launcher, then looks whether SIGTERM, which Slurm sends to a requeued job, is outlived, and
# what a terminal or the time limit may send once more.
PROGRAM = """
import json, os, signal, sys
from launcher.supervision.requeue import after_run
code, limit = map(json.loads, sys.argv[1:])
done = after_run(code, signal.SIGUSR1, os.environ, limit, True, lambda line: print(line))
for signum in ("TERM", "INT", "HUP", "USR1", "USR2") if done else ():
    os.kill(os.getpid(), signal.Signals["SIG" + signum])
print(done)
"""


@pytest.mark.parametrize(
    ("code", "limit", "shown", "refusal", "environment", "expected", "asked"),
    [
        (75, 20, SHOWN, "", {}, "job 6 is requeued: SIGUSR1 came", ["show job -o 6", "requeue 6"]),
        (75, 20, SHOWN, "down", {}, "the job was not requeued: `scontrol show job -o 6` failed: down", []),
        (4, 20, SHOWN, "down", {}, "whether Slurm preempted the job is not known: `scontrol show job", []),
        (75, 2, SHOWN, "", {}, "job 6 is not requeued", ["show job -o 6"]),
        (75, 0, SHOWN, "", {}, "", []),
        (75, 20, SHOWN, "", {"SLURM_JOB_ID": None}, "", []),
        # Ranks ended by the SIGTERM of a preemption, an agent by it, a start that was not possible for it.
        (143, 20, PREEMPTED, "", {}, "job 6 is requeued: the job is", ["show job -o 6", "requeue 6"]),
        (1, 20, PREEMPTED, "", {}, "job 6 is requeued: the job is", ["show job -o 6", "requeue 6"]),
        (None, 20, PREEMPTED, "", {}, "job 6 is requeued: the job is", ["show job -o 6", "requeue 6"]),
        (143, 2, PREEMPTED, "", {}, "job 6 is not requeued", ["show job -o 6"]),
        # Those ends without a preemption are a person's, or the run's own fault.
        (143, 20, SHOWN, "", {}, "", ["show job -o 6"]),
        (4, 20, SHOWN, "", {}, "", ["show job -o 6"]),
        (None, 20, SHOWN, "", {}, "", ["show job -o 6"]),
        # Started again it would end alike.
        (0, 20, PREEMPTED, "", {}, "", []),
        (2, 20, PREEMPTED, "", {}, "", []),
        (3, 20, PREEMPTED, "", {}, "", []),
    ],
)
def test_after_a_run(tmp_path, code, limit, shown, refusal, environment, expected, asked):
    folder = tmp_path / "程序 1"
    folder.mkdir()
    (folder / "shown").write_text(shown, encoding="utf-8")
    program = folder / "scontrol"
    refuse = f"echo {refusal} >&2; exit 1" if refusal else 'echo "$*" >>asked; exec /bin/cat shown'
    program.write_text(f'#!/bin/sh\ncd "${{0%/*}}" || exit 9\n{refuse}\n', encoding="utf-8")
    program.chmod(0o755)
    settings = {"PATH": str(folder), "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1"}
    settings |= {"SLURM_JOB_ID": "6", "SLURM_RESTART_COUNT": "2"} | environment
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(code), json.dumps(limit)],
        env={name: value for name, value in settings.items() if value is not None},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *lines, requeued = done.stdout.splitlines()
    assert expected in " ".join(lines) and bool(lines) == bool(expected)
    assert requeued == str("requeue 6" in asked)
    seen = (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []
    assert seen == asked


JOB = {"SLURM_JOB_ID": "1234", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
STEP = JOB | {
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    # Those of the job: the step's own count.
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "11",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "3",
}


@pytest.mark.parametrize(
    ("more", "gpus", "restarts"),
    [
        ({}, None, 0),
        ({"SLURM_GPUS_ON_NODE": "8", "SLURM_RESTART_COUNT": "3"}, 8, 3),
        ({"SLURM_GPUS_ON_NODE": "0"}, None, 0),
        ({"SLURM_JOB_GPUS": "0,1,4-7"}, 6, 0),
        ({"SLURM_GPUS_PER_NODE": "a100:8"}, 8, 0),
    ],
)
def test_an_allocation(more, gpus, restarts):
    assert read_allocation(JOB | more) == Allocation("1234", ("node1", "node2"), gpus, restarts)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"SLURM_JOB_ID": None}, "SLURM_JOB_ID is not set"),
        ({"SLURM_JOB_NODELIST": None}, "SLURM_JOB_NODELIST is not, so the hosts"),
        ({"SLURM_JOB_NODELIST": "node["}, "'node['"),
        ({"SLURM_JOB_NUM_NODES": "3"}, "'node[1-2]' names 2 hosts, but SLURM_JOB_NUM_NODES=3"),
        ({"SLURM_GPUS_ON_NODE": "many"}, "SLURM_GPUS_ON_NODE='many'"),
        ({"SLURM_RESTART_COUNT": "-1"}, "SLURM_RESTART_COUNT='-1'"),
    ],
)
def test_an_allocation_that_does_not_fit_is_refused(more, said):
    environment = {name: value for name, value in (JOB | more).items() if value is not None}
    with pytest.raises(LauncherError) as caught:
        read_allocation(environment)
    assert said in str(caught.value)


def test_a_task_becomes_a_rank():
    assert read_task(STEP) == TaskPlace(11, 16, 1, 3, 8)
    assert task_environment(STEP, step_hosts(STEP), world_size=16) == {
        "RANK": "11",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "16",
        "LOCAL_WORLD_SIZE": "8",
        "LOCAL_SIZE": "8",
        "NODE_RANK": "1",
        "MASTER_ADDR": "node1",
        "MASTER_PORT": "21537",
    }
    chosen = task_environment(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4242"}, ("node1", "node2"))
    assert (chosen["MASTER_ADDR"], chosen["MASTER_PORT"]) == ("10.0.0.1", "4242")


def test_ports_stay_in_their_range_and_differ_between_steps():
    ports = [step_port({"SLURM_JOB_ID": "99999999", "SLURM_STEP_ID": str(step)}) for step in range(500)]
    assert len(set(ports)) == 500
    assert min(ports) >= 20_000 and max(ports) <= 29_999


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"SLURM_PROCID": None}, "srun has not started it"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "makes 16 tasks, but SLURM_STEP_NUM_TASKS=8"),
        (
            {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            "SLURM_PROCID=11 must be below",
        ),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID=2 must be below"),
        ({"SLURM_LOCALID": "8"}, "SLURM_LOCALID=8 must be below"),
        ({"SLURM_STEP_TASKS_PER_NODE": "7,9"}, "different numbers of tasks"),
        ({"SLURM_STEP_NODELIST": "node1"}, "names 1 hosts (node1)"),
        ({"SLURM_PROCID": "10"}, "--distribution=block"),
        ({"SLURM_STEP_ID": str(0xFFFF_FFFB)}, "no step that srun has started"),
        ({"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST is not set"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(more, said):
    environment = {name: value for name, value in (STEP | more).items() if value is not None}
    with pytest.raises(LauncherError) as caught:
        task_environment(environment, step_hosts(environment))
    assert said in str(caught.value)


def test_an_unexpected_world_size_is_refused():
    with pytest.raises(LauncherError, match="has 16 tasks, but 32 ranks are expected"):
        task_environment(STEP, ("node1", "node2"), world_size=32)


def test_tasks_per_node():
    assert tasks_per_node("2(x3),1") == (2, 2, 2, 1)
    for bad in ("", "2(x3", "2,,1", "0", "2(x0)", "2(x99999999)", "-1"):
        with pytest.raises(LauncherError, match="SLURM_TASKS_PER_NODE="):
            tasks_per_node(bad)
