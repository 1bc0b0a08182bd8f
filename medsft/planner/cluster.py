"""The machines of a run, and how much of their peak is counted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from medsft.errors import UserError
from medsft.planner.hardware import GIB, LINKS, NETWORKS, Gpu, Link, find_link, find_network

LARGEST_WORLD = 65_536


@dataclass(frozen=True)
class Cluster:
    """GPUs in hosts.

    Attributes:
        gpu: None: ranks compute on the CPU, whose speed is not known here.
        gpus_per_node, nodes: ranks on a host, and hosts.
        gpu_memory_bytes: of one GPU.
        host_memory_bytes: of one host; None: not known, then it is not held against the need.
        link: between the GPUs of a host.
        network: between hosts, all adapters of a host together.
        pcie: between a GPU and its host.
        host_bandwidth: bytes a second of a host's memory, for CPU Adam.
        nvme_read, nvme_write: bytes a second of a host's drives.
    """

    gpu: Gpu | None
    gpus_per_node: int
    nodes: int
    gpu_memory_bytes: float
    host_memory_bytes: float | None
    link: Link
    network: Link = NETWORKS["100g"]
    pcie: Link = LINKS["pcie4"]
    host_bandwidth: float = 200e9
    nvme_read: float = 6e9
    nvme_write: float = 3e9

    def __post_init__(self) -> None:
        faults = [
            f"--{name} {value} must be 1 or more"
            for name, value in (("gpus_per_node", self.gpus_per_node), ("nodes", self.nodes))
            if value < 1
        ]
        if not faults and self.world_size > LARGEST_WORLD:
            faults.append(f"{self.world_size:,} GPUs in all are more than the {LARGEST_WORLD:,} planned for")
        for name, value in (("gpu", self.gpu_memory_bytes), ("host", self.host_memory_bytes)):
            if value is not None and not (0 < value < float("inf")) and (name == "host" or self.gpu):
                faults.append(f"--{name}_memory_gib {value / 2**30:g} must be above 0")
        if faults:
            raise UserError("wrong cluster: " + "; ".join(faults) + ".")

    @classmethod
    def of(
        cls,
        gpu: Gpu | None,
        gpus_per_node: int,
        nodes: int,
        host_memory_gib: float | None,
        interconnect: str | None,
        network: str,
    ) -> Self:
        """Machines with links by name; `interconnect` None: as is usual for the GPU. Raises `UserError`."""
        return cls(
            gpu=gpu,
            gpus_per_node=gpus_per_node,
            nodes=nodes,
            gpu_memory_bytes=gpu.memory_bytes if gpu else 0.0,
            host_memory_bytes=None if host_memory_gib is None else host_memory_gib * GIB,
            link=find_link(interconnect or (gpu.link if gpu else "pcie4")),
            network=find_network(network),
            pcie=LINKS[gpu.pcie if gpu else "pcie4"],
        )

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.gpus_per_node * self.nodes


@dataclass(frozen=True)
class Efficiency:
    """Share of each peak that is counted on.

    Attributes:
        compute: of the arithmetic peak. Half is what well-kept training of 7B models reaches: 46 to 64 %
            (MPT-7B, llm-foundry), 33 to 39 % (Llama-3.1-8B, torchtitan).
        memory: of a GPU's bandwidth, in elementwise kernels.
        link, network, pcie: of the bandwidth of links, in large collectives or copies.
    """

    compute: float = 0.5
    memory: float = 0.8
    link: float = 0.75
    network: float = 0.8
    pcie: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.compute <= 1:
            raise UserError(f"--efficiency {self.compute} must be above 0 and at most 1.")
