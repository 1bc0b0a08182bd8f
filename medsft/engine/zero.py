"""The model in ZeRO-3 partitions: built empty, filled slice by slice, read back parameter by parameter.

DeepSpeed cuts each flattened parameter into `world_size` slices of ceil(numel / world_size) elements, the
last one padded; `param.ds_tensor` is this rank's slice, `ds_numel` and `ds_shape` are the whole's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from medsft.engine.deepspeed_config import compute_dtype
from medsft.engine.distributed import AgreedError, World


class FlatSource(Protocol):
    """Named tensors of which any range of the flattened elements can be read (`medsft.chatglm.weights`)."""

    def read_range(self, name: str, start: int, end: int) -> torch.Tensor:
        """Elements start … end-1 of the flattened tensor, shape [end - start]."""


def build_partitioned(build: Callable[[], nn.Module], ds_config: dict[str, Any]) -> nn.Module:
    """Calls `build` with every parameter cut up as soon as its module exists.

    No rank ever holds more than one module's whole parameters. Their values are not meant to be used:
    `load_slices` follows. The configuration decides their type. Raises `AgreedError` when the ranks do not
    divide into hpZ's groups.
    """
    import deepspeed

    _check_groups(ds_config, dist.get_world_size())
    # Its argument `dtype` is ignored on processors without fp16, so the type comes from the configuration.
    with deepspeed.zero.Init(config_dict_or_path=ds_config):
        model = build()
    dtype = compute_dtype(ds_config)
    assert all(param.ds_tensor.dtype == dtype for param in model.parameters())
    return model


def _check_groups(ds_config: dict[str, Any], world_size: int) -> None:
    size = ds_config["zero_optimization"].get("zero_hpz_partition_size", 1)
    if size > 1 and world_size % size and world_size > size:
        raise AgreedError(
            f"zero_optimization.zero_hpz_partition_size is {size}, but {world_size} ranks do not divide into "
            f"groups of {size}. Set it to the number of ranks on each host, or remove it."
        )


@torch.no_grad()
def load_slices(
    model: nn.Module, source: FlatSource, world: World, progress: Callable[[int, int], None] | None = None
) -> None:
    """Fills this rank's slice of every parameter from files, casting to the parameter's type.

    Nothing is gathered or sent: each rank reads about 1/world_size of the bytes. The padding at the end of
    a slice is set to zero, which DeepSpeed leaves uninitialised. `progress` is called with the bytes done
    and those in all.

    With hpZ DeepSpeed keeps, beside its slice, a rank's share of the copy that its group holds
    (`ds_secondary_tensor`), and gathers from that. It is dropped here, as it has the values from before; so
    does DeepSpeed itself after each step of the optimiser, and makes it anew when it has gathered the slices.
    """
    num_bytes = sum(param.ds_tensor.nbytes for param in model.parameters())
    num_done = 0
    for name, param in model.named_parameters():
        local = param.ds_tensor
        start = min(world.rank * local.ds_numel, param.ds_numel)
        end = min(start + local.ds_numel, param.ds_numel)
        local[: end - start].copy_(source.read_range(name, start, end))
        local[end - start :].zero_()
        param.ds_secondary_tensor = None
        num_done += local.nbytes
        if progress is not None:
            progress(num_done, num_bytes)


@torch.no_grad()
def gathered(model: nn.Module, world: World) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Each parameter whole, one at a time: (name, tensor on the host) on rank 0, (name, None) elsewhere.

    A collective: every rank must run through all of it. Peak memory is one parameter above the partitions.
    """
    import deepspeed

    for name, param in model.named_parameters():
        with deepspeed.zero.GatheredParameters([param]):
            whole = param.detach().cpu().clone() if world.is_main else None
        yield name, whole
