"""The files of /etc/slurm on the test cluster, as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# The partition that jobs go to by themselves, and one whose jobs push out those of the first.
PARTITION = "batch"
URGENT_PARTITION = "urgent"
# How long a job that is pushed out has from SIGTERM to its end, in seconds.
GRACE_S = 20
# From SIGTERM to SIGKILL at a job's time limit and at scancel, in seconds.
KILL_WAIT_S = 10


def slurm_conf(control: tuple[str, str], names: Sequence[str], folder: Path, num_gpus: int, cpus: int) -> str:
    """slurm.conf.

    Args:
        control: name and address of the host of slurmctld.
        names: the hosts that jobs run on.
        folder: where logs and states go, in one folder per host.
        num_gpus: GPUs that every host claims to have.
        cpus: CPU cores that every host claims to have, whatever the machine has.
    """
    hosts = ",".join(names)
    return f"""\
ClusterName=cluster
SlurmctldHost={control[0]}({control[1]})
SlurmUser=root
AuthType=auth/munge
# A requeued job may not start again before the credential of its last start has expired.
AuthInfo=cred_expire=10

StateSaveLocation={folder}/{control[0]}/state
SlurmctldPidFile={folder}/{control[0]}/slurmctld.own_pid
SlurmctldLogFile={folder}/{control[0]}/slurmctld.log
SlurmdSpoolDir={folder}/%n/spool
SlurmdPidFile={folder}/%n/slurmd.own_pid
SlurmdLogFile={folder}/%n/slurmd.log
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/{control[0]}/jobs.log

# No control groups: they are the machine's, and differ from one to the next.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# Hosts have what this file says, not what the machine has.
SlurmdParameters=config_overrides

# Nobody waits for the scheduler.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1,bf_yield_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
OverTimeLimit=0
KillWait={KILL_WAIT_S}
CompleteWait=0
# What a job came to can be asked for this long, in seconds.
MinJobAge=3600
# A host that was lost and answers again takes jobs again.
ReturnToService=2
SlurmdTimeout=20
UnkillableStepTimeout=30

NodeName={hosts} CPUs={cpus} RealMemory=16000 Gres=gpu:a100:{num_gpus} State=UNKNOWN
PartitionName={PARTITION} Nodes={hosts} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={GRACE_S}
PartitionName={URGENT_PARTITION} Nodes={hosts} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def gres_conf(names: Sequence[str], devices: Path, num_gpus: int) -> str:
    """gres.conf: the GPUs are the device files gpu0, gpu1 … in the folder `devices`."""
    return f"NodeName={','.join(names)} Name=gpu Type=a100 File={devices}/gpu[0-{num_gpus - 1}]\n"


def cgroup_conf() -> str:
    """cgroup.conf: the plugin that asks nothing of the machine at its start; no task is put into a group."""
    return "CgroupPlugin=cgroup/v1\n"
