"""Ranks of an evaluation: each holds the whole model and takes its share of the questions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

from medsft.engine.distributed import World, complete_environment, from_all
from medsft.errors import UserError
from medsft.inference.device import choose_devices

T = TypeVar("T")

_TIMEOUT = timedelta(hours=12)  # a rank waits for the slowest one's answers


@contextmanager
def evaluation_world(device: str) -> Iterator[World]:
    """This process among those that torchrun or the launcher started; alone without them.

    `device` as in `choose_devices`. Words go over gloo.
    """
    environment = dict(os.environ)
    complete_environment(environment)
    if int(environment["WORLD_SIZE"]) == 1:
        yield World(0, 1, 0, choose_devices(device)[0])
        return
    os.environ.update(environment)
    local_rank = int(os.environ["LOCAL_RANK"])
    place, *more = choose_devices(device, local_rank)
    if more:
        raise UserError(
            f"--device {device} gives one model to several GPUs, but each of the {environment['WORLD_SIZE']} "
            "ranks holds a model of its own. Start a single process, or leave --device out."
        )
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, place)
    finally:
        dist.destroy_process_group()


def gather(world: World, value: T) -> list[T]:
    """Every rank's value, in the order of the ranks; a collective."""
    return [value] if world.size == 1 else from_all(world, value)
