"""Where a job runs: its hosts, and the transport that reaches them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import LauncherError
from launcher.hosts import slots
from launcher.hosts.allocation import read_allocation
from launcher.hosts.hostfile import read_hostfile
from launcher.hosts.selection import select
from launcher.job import Node
from launcher.transport import TRANSPORTS
from launcher.transport.base import Transport


@dataclass(frozen=True)
class Place:
    """The job's nodes in order, the first of which is the master, and how to reach them."""

    transport: Transport
    nodes: tuple[Node, ...]


def choose(options: argparse.Namespace, environment: Mapping[str, str]) -> Place:
    """The place that the flags and the environment mean; "auto" is told in `options.py`.

    Raises `LauncherError` for flags that contradict each other or the hosts.
    """
    name = options.transport
    if name == "auto":
        in_slurm = "SLURM_JOB_ID" in environment and options.hostfile is None
        name = "slurm" if in_slurm else "local" if options.hostfile is None else "pdsh"
    transport = TRANSPORTS[name]
    if name == "local":
        if options.hostfile is not None:
            raise LauncherError(
                "--transport local runs on this machine alone; leave --hostfile out, or take pdsh or openmpi."
            )
        nodes = (Node("localhost", slots.count_slots(options.num_gpus, environment, slots.list_nvidia_gpus)),)
        return Place(transport, select(nodes, options.include, options.exclude, options.num_nodes))
    if name == "slurm":
        if options.hostfile is not None:
            raise LauncherError(
                "--transport slurm takes the hosts of its allocation; leave --hostfile out, or take pdsh."
            )
        nodes = _allocated(options.num_gpus, environment)
        return Place(transport, select(nodes, options.include, options.exclude, options.num_nodes))
    if options.hostfile is None:
        raise LauncherError(f"--transport {name} needs --hostfile FILE, which names the hosts.")
    nodes = read_hostfile(options.hostfile)
    return Place(
        transport, select(nodes, options.include, options.exclude, options.num_nodes, options.num_gpus)
    )


def _allocated(num_gpus: int | None, environment: Mapping[str, str]) -> tuple[Node, ...]:
    """The nodes of this Slurm job, with as many slots as asked for or as it was given GPUs."""
    allocation = read_allocation(environment)
    num_slots = num_gpus if num_gpus is not None else allocation.gpus_per_node
    if num_slots is None:
        raise LauncherError(
            "this allocation has no GPUs, so the number of ranks on each node is not known. Ask for GPUs "
            "(--gres=gpu:8), or give --num-gpus N for ranks on the CPU."
        )
    if num_slots < 1:
        raise LauncherError(f"--num-gpus {num_slots} starts no rank at all. Give 1 or more.")
    return tuple(Node(host, num_slots) for host in allocation.hosts)
