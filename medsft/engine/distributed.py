"""The processes of a run: who they are, and how they fail together."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from medsft.engine import openmpi
from medsft.errors import UserError
from medsft.gpus import check_architecture, check_gpus

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What torchrun, DeepSpeed's launcher and ours set for every rank.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# mpirun's names for the first three.
_OPENMPI_NAMES = {
    "RANK": "OMPI_COMM_WORLD_RANK",
    "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK",
    "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE",
}


class PeerError(RuntimeError):
    """Another rank failed for a reason that is not the user's; its own output has the traceback."""


class AgreedError(UserError):
    """A `UserError` that every rank has been told of and raises; one of them is to print it."""


@dataclass(frozen=True)
class World:
    """This process among all of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """Group for words between hosts beside the tensors: gloo, so that no GPU is waited for."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks to the user."""
        return self.rank == 0


def complete_environment(environment: MutableMapping[str, str]) -> None:
    """Fills in what a launcher would have set, so that a plain `python train.py` is a world of one.

    Under mpirun the ranks come from OpenMPI's own variables, and where it was not told the address of rank 0,
    they find one by MPI: a collective then. Raises `UserError` when only some of a launcher's variables are
    there, when they make no sense, or when MPI does not bring the ranks together.
    """
    if "RANK" not in environment and _OPENMPI_NAMES["RANK"] in environment:
        environment.update({name: environment[other] for name, other in _OPENMPI_NAMES.items()})
        if "MASTER_ADDR" not in environment and "MASTER_PORT" not in environment:
            address, port = openmpi.find_master(environment, logger.warning)
            environment.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    present = [name for name in ("RANK", "WORLD_SIZE") if name in environment]
    if not present:
        environment.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        environment["MASTER_PORT"] = str(_free_port())
    missing = [name for name in _RANK_VARIABLES if not environment.get(name)]
    if missing:
        raise UserError(
            f"the environment has {', '.join(present)} but not {', '.join(missing)}: a launcher sets all of "
            f"{', '.join(_RANK_VARIABLES)}. Start with `python -m launcher run`, deepspeed or torchrun, or "
            "unset them for a single process."
        )
    _whole_number(environment, "WORLD_SIZE", at_least=1)
    for name in ("RANK", "LOCAL_RANK"):
        _whole_number(environment, name, at_least=0, below=int(environment["WORLD_SIZE"]))


def _whole_number(environment: Mapping[str, str], name: str, at_least: int, below: int | None = None) -> None:
    value = environment[name]
    fits = value.isdecimal() and int(value) >= at_least and (below is None or int(value) < below)
    if not fits:
        allowed = (
            f"{at_least} or more" if below is None else f"{at_least} to {below - 1} (WORLD_SIZE {below})"
        )
        raise UserError(
            f"{name}={value!r} in the environment must be a whole number, {allowed}. Start with "
            "`python -m launcher run`, deepspeed or torchrun, or unset it for a single process."
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(timeout_min: int) -> World:
    """Joins the process group named by the environment (NCCL on GPUs, gloo without).

    Raises `UserError` for GPUs that torch cannot use, and for more processes than GPUs.
    """
    if not torch.accelerator.is_available():
        if os.environ.get("DS_ACCELERATOR") != "cpu":
            check_gpus("DS_ACCELERATOR=cpu trains on the CPU.")
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no GPU
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 deprecates, with a warning at every call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    # DeepSpeed would compile a shared-memory op at every first start on CPU (20 s; a stale lock of that
    # build waits for ever). Only inference uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    if get_accelerator().device_name() == "cuda":
        if torch.cuda.device_count() == 1:
            # Slurm may show each process one GPU, which is then number 0. DeepSpeed reads these itself, and
            # wants the two to agree.
            local_rank = 0
            os.environ["LOCAL_RANK"] = "0"
            if "OMPI_COMM_WORLD_LOCAL_RANK" in os.environ:
                os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] = "0"
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"rank {os.environ['RANK']} is number {local_rank} on this host, which shows "
                f"{torch.cuda.device_count()} GPUs. Start at most one process for each GPU."
            )
        device = torch.device("cuda", local_rank)
        check_architecture(device)
        torch.cuda.set_device(local_rank)
    else:
        device = torch.device("cpu")
    timeout = timedelta(minutes=timeout_min)
    deepspeed.init_distributed(timeout=timeout, verbose=False)
    control = dist.new_group(backend="gloo", timeout=timeout)
    return World(dist.get_rank(), dist.get_world_size(), local_rank, device, control)


@contextmanager
def together(world: World) -> Iterator[None]:
    """Runs the block on every rank and makes a failure of any rank a failure of all, at once.

    A `UserError` on any rank becomes an `AgreedError` on all, with the words of the lowest such rank. Any
    other exception is raised where it happened and as `PeerError` elsewhere. Without this, the others would
    wait in their next collective until its timeout. The block itself must hold no collective: a rank that
    fails before it would leave the others waiting there.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    mine = None if failure is None else (isinstance(failure, UserError), str(failure) or repr(failure))
    failed = [(rank, report) for rank, report in enumerate(from_all(world, mine)) if report is not None]
    if not failed:
        return
    if failure is not None and not isinstance(failure, UserError):
        raise failure
    crashed = [(rank, text) for rank, (of_user, text) in failed if not of_user]
    if crashed:
        raise PeerError(f"rank {crashed[0][0]} failed: {crashed[0][1]}") from failure
    raise AgreedError(failed[0][1][1]) from failure


def agree(world: World, facts: Mapping[str, Any]) -> None:
    """Raises `AgreedError` on every rank when a fact differs between two of them, naming rank and values.

    Ranks that hold different data or settings would train on a mixture, or wait for each other for ever.
    A collective.
    """
    everyone = from_all(world, dict(facts))
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs.get(name) != value:
                raise AgreedError(
                    f"{name} differs between hosts: rank 0 has {value}, rank {rank} has {theirs.get(name)}. "
                    "Give every host the same files, settings and packages, best on a shared file system."
                )


def largest(world: World, *values: int) -> list[int]:
    """Each value's maximum over all ranks; a collective."""
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=world.control)
    return tensor.tolist()


def from_main(world: World, value: T | None) -> T:
    """Rank 0's value on every rank; a collective."""
    box = [value]
    dist.broadcast_object_list(box, src=0, group=world.control)
    return box[0]  # type: ignore[return-value]


def from_all(world: World, value: T) -> list[T]:
    """Every rank's value, in the order of the ranks, on all of them; a collective."""
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, value, group=world.control)
    return everyone


def numbers_of_all(world: World, numbers: Sequence[float]) -> list[list[float]]:
    """Every rank's numbers, as many of each, in the order of the ranks; a collective."""
    mine = torch.tensor(numbers, dtype=torch.float64)
    everyone = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(everyone, mine, group=world.control)
    return [one.tolist() for one in everyone]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Adds up a tensor of every rank (in place, returned)."""
    dist.all_reduce(values)
    return values
