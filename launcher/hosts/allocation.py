"""What Slurm has given this job, and which of its tasks this process is: SLURM_* as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import LauncherError
from launcher.hosts import nodelist

FIRST_PORT, NUM_PORTS = 20_000, 10_000
"""Ports 20000 to 29999: below those which Linux takes for outgoing connections (32768 on)."""
# Steps follow each other in one job, and the port of an ended one may not be free at once; a prime, so that
# neighbouring jobs and steps do not fall on the same port.
_PORTS_BETWEEN_STEPS = 101
# Slurm numbers steps of its own (batch, extern, interactive) from here on; none of them has ranks.
_FIRST_SPECIAL_STEP = 0xFFFF_FF00
_TASKS = re.compile(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?")


@dataclass(frozen=True)
class Allocation:
    """The nodes of a Slurm job, in Slurm's order.

    gpus_per_node: None where Slurm gave none. restart_count: how often the job has been requeued.
    """

    job_id: str
    hosts: tuple[str, ...]
    gpus_per_node: int | None
    restart_count: int


@dataclass(frozen=True)
class TaskPlace:
    """Where a task of a step stands. Indices count from 0; tasks_on_node: tasks of the step on its node."""

    task_index: int
    num_tasks: int
    node_index: int
    local_index: int
    tasks_on_node: int


def read_allocation(environment: Mapping[str, str]) -> Allocation:
    """The allocation that a batch script, or salloc's shell, runs in.

    Raises `LauncherError` outside of one, and for values that cannot be read or do not fit together.
    """
    job_id = _job_id(environment)
    name, listed = _first(environment, "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    if listed is None:
        raise LauncherError(
            f"SLURM_JOB_ID={job_id} is set and SLURM_JOB_NODELIST is not, so the hosts of the job are not "
            "known. Start the launcher in the batch script (sbatch) or in salloc's shell."
        )
    hosts = nodelist.expand(listed)
    count_name, count = _first(environment, "SLURM_JOB_NUM_NODES", "SLURM_NNODES")
    if count is not None and _number(count_name, count, least=1) != len(hosts):
        raise LauncherError(
            f"{name}={listed!r} names {len(hosts)} hosts, but {count_name}={count}. They must agree: leave "
            "both as Slurm has set them; to use fewer hosts give --num-nodes."
        )
    return Allocation(
        job_id=job_id,
        hosts=hosts,
        gpus_per_node=_gpus_per_node(environment),
        restart_count=_number("SLURM_RESTART_COUNT", environment.get("SLURM_RESTART_COUNT", "0")),
    )


def read_task(environment: Mapping[str, str]) -> TaskPlace:
    """The place of this process among the tasks of the step that srun has started it in.

    Raises `LauncherError` outside a step, and for values that do not fit together.
    """
    job_id = _job_id(environment)
    if "SLURM_PROCID" not in environment:
        raise LauncherError(
            f"SLURM_PROCID is not set: this process is in the Slurm job {job_id}, but srun has not started "
            "it. Write srun before it, like: srun --ntasks-per-node=8 python -m launcher node "
            "medsft/train.py ..."
        )
    size_name, size = _first(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS")
    if size is None:
        raise LauncherError("SLURM_NTASKS is not set, so the world size is not known. Start with srun.")
    tasks_name, notation = _first(environment, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    if notation is None:
        raise LauncherError("SLURM_STEP_TASKS_PER_NODE is not set: it is srun that sets it. Start with srun.")
    num_tasks = _number(size_name, size, least=1)
    task_index = _of(environment, "SLURM_PROCID")
    node_index = _of(environment, "SLURM_NODEID")
    local_index = _of(environment, "SLURM_LOCALID")
    per_node = tasks_per_node(notation, tasks_name)
    if sum(per_node) != num_tasks:
        raise LauncherError(
            f"{tasks_name}={notation!r} makes {sum(per_node)} tasks, but {size_name}={size}. They must "
            "agree; start the step with srun and leave both as they are."
        )
    if task_index >= num_tasks:
        raise LauncherError(f"SLURM_PROCID={task_index} must be below the number of tasks, {num_tasks}.")
    if node_index >= len(per_node):
        raise LauncherError(
            f"SLURM_NODEID={node_index} must be below the number of nodes in {tasks_name}={notation!r}, "
            f"{len(per_node)}."
        )
    if local_index >= per_node[node_index]:
        raise LauncherError(
            f"SLURM_LOCALID={local_index} must be below the number of tasks on this node, "
            f"{per_node[node_index]} of {tasks_name}={notation!r}."
        )
    return TaskPlace(task_index, num_tasks, node_index, local_index, per_node[node_index])


def tasks_per_node(notation: str, name: str = "SLURM_TASKS_PER_NODE") -> tuple[int, ...]:
    """ "2(x3),1" -> (2, 2, 2, 1). Raises `LauncherError`, with `name` in it, for what is no such list."""
    counts: list[int] = []
    for part in notation.split(","):
        match = _TASKS.fullmatch(part)
        if match is None or int(match.group(1)) < 1:
            raise LauncherError(
                f"{name}={notation!r} cannot be read: {part!r} must be a number of tasks, like 8, or 8(x4) "
                "for the same on four nodes."
            )
        times = int(match.group(2) or 1)
        if not 1 <= times <= nodelist.MOST_HOSTS - len(counts):
            raise LauncherError(f"{name}={notation!r} must count 1 to {nodelist.MOST_HOSTS:,} nodes.")
        counts += [int(match.group(1))] * times
    return tuple(counts)


def task_environment(
    environment: Mapping[str, str], hosts: Sequence[str], world_size: int | None = None
) -> dict[str, str]:
    """What torch.distributed and DeepSpeed read, for a task that is itself a rank.

    `hosts`: of the step, in Slurm's order (`step_hosts`). Every task comes to the same MASTER_ADDR and
    MASTER_PORT by itself; values for them in the environment count. Raises `LauncherError` as `read_task`;
    when the step has not `world_size` tasks; when the nodes have not the same number of tasks, which
    DeepSpeed takes for granted; and when ranks do not follow each other on a node.
    """
    place = read_task(environment)
    if world_size is not None and place.num_tasks != world_size:
        raise LauncherError(
            f"this step has {place.num_tasks} tasks, but {world_size} ranks are expected (--world-size "
            f"{world_size}). Start it with srun --ntasks={world_size}, or mend --world-size."
        )
    name, notation = _first(environment, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE")
    per_node = tasks_per_node(notation or "", name)
    if len(set(per_node)) > 1:
        raise LauncherError(
            f"{name}={notation!r}: the nodes have different numbers of tasks, and all must have the same. "
            "Give srun --ntasks-per-node, and --nodes so that they multiply to --ntasks."
        )
    if len(hosts) != len(per_node):
        raise LauncherError(
            f"the step's node list names {len(hosts)} hosts ({_some(hosts)}), but {name}={notation!r} counts "
            f"{len(per_node)} nodes. Start the step with srun and leave both as they are."
        )
    if place.task_index != place.node_index * place.tasks_on_node + place.local_index:
        raise LauncherError(
            f"SLURM_PROCID={place.task_index} is task {place.local_index} of node {place.node_index}, so "
            "ranks do not follow each other on a node, as they must. Give srun --distribution=block."
        )
    return {
        "RANK": str(place.task_index),
        "LOCAL_RANK": str(place.local_index),
        "WORLD_SIZE": str(place.num_tasks),
        "LOCAL_WORLD_SIZE": str(place.tasks_on_node),
        # DeepSpeed's CPU accelerator reads its number of devices from this one.
        "LOCAL_SIZE": str(place.tasks_on_node),
        "NODE_RANK": str(place.node_index),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or hosts[0],
        "MASTER_PORT": environment.get("MASTER_PORT") or str(step_port(environment)),
    }


def step_hosts(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The hosts of the step that this task belongs to. Raises `LauncherError` when srun has named none."""
    listed = environment.get("SLURM_STEP_NODELIST")
    if listed is None:
        raise LauncherError("SLURM_STEP_NODELIST is not set: srun has not started this process. Use srun.")
    return nodelist.expand(listed)


def step_port(environment: Mapping[str, str]) -> int:
    """A port from 20000 to 29999 that follows from the numbers of job and step alone.

    So all tasks know it without talking; that it is free nobody has looked. Raises `LauncherError` when
    the numbers are missing, or when this is no step that srun has started.
    """
    job_id, step_id = int(_job_id(environment)), _of(environment, "SLURM_STEP_ID")
    if step_id >= _FIRST_SPECIAL_STEP:
        raise LauncherError(f"SLURM_STEP_ID={step_id} is no step that srun has started. Use srun.")
    return FIRST_PORT + (job_id + _PORTS_BETWEEN_STEPS * step_id) % NUM_PORTS


def _gpus_per_node(environment: Mapping[str, str]) -> int | None:
    on_this_node = environment.get("SLURM_GPUS_ON_NODE")
    if on_this_node is not None:
        return _number("SLURM_GPUS_ON_NODE", on_this_node) or None
    listed = environment.get("SLURM_JOB_GPUS")
    if listed:
        # Numbers and ranges: 0,1,4-7.
        return len(nodelist.expand_here(f"[{listed}]"))
    asked = environment.get("SLURM_GPUS_PER_NODE")
    if asked:
        # "8" or "a100:8".
        return _number("SLURM_GPUS_PER_NODE", asked.rpartition(":")[2]) or None
    return None


def _job_id(environment: Mapping[str, str]) -> str:
    job_id = environment.get("SLURM_JOB_ID")
    if job_id is None:
        raise LauncherError(
            "SLURM_JOB_ID is not set: this is no Slurm job. Start it with sbatch or salloc, or take another "
            "transport."
        )
    _number("SLURM_JOB_ID", job_id, least=1)
    return job_id


def _of(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None:
        raise LauncherError(f"{name} is not set: srun sets it in every task. Start with srun.")
    return _number(name, value)


def _first(environment: Mapping[str, str], *names: str) -> tuple[str, str | None]:
    """The first of these variables that is set, with its value; else the first name and None."""
    for name in names:
        if name in environment:
            return name, environment[name]
    return names[0], None


def _number(name: str, value: str, least: int = 0) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value) or int(value) < least:
        raise LauncherError(
            f"{name}={value!r} must be a whole number, {least} or more. Leave it as Slurm has set it."
        )
    return int(value)


def _some(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:3]) + (", ..." if len(hosts) > 3 else "")
