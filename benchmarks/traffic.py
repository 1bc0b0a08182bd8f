"""Bytes that a rank receives in collectives, counted where torch hands them to its backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Of an operation of torch.ops.c10d: what it is called in the tables, which argument is the whole of what
# travels, and how often (W - 1) / W of it reach a rank in a ring.
_KINDS: Mapping[str, tuple[str, int, int]] = {
    "_allgather_base_": ("all-gather", 0, 1),
    "allgather_": ("all-gather", 0, 1),
    "allgather_into_tensor_coalesced_": ("all-gather", 0, 1),
    "_reduce_scatter_base_": ("reduce-scatter", 1, 1),
    "reduce_scatter_": ("reduce-scatter", 1, 1),
    "reduce_scatter_tensor_coalesced_": ("reduce-scatter", 1, 1),
    "allreduce_": ("all-reduce", 0, 2),
    "allreduce_coalesced_": ("all-reduce", 0, 2),
}


class Traffic(TorchDispatchMode):
    """Counts while it is entered: bytes `received` by kind of collective, and calls of `others`."""

    def __init__(self, world_size: int):
        super().__init__()
        self._world_size = world_size
        self.received: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Takes note of collectives and lets everything pass."""
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2]
            if name in _KINDS:
                kind, argument, rounds = _KINDS[name]
                share = rounds * (self._world_size - 1) / self._world_size
                self.received[kind] += round(share * _num_bytes(args[argument]))
            else:
                self.others[name] += 1
        call: Callable[..., Any] = func
        return call(*args, **(kwargs or {}))


def _num_bytes(tensors: Any) -> int:
    """Of a tensor, or of all in a list of lists."""
    if isinstance(tensors, torch.Tensor):
        return tensors.nbytes
    return sum(map(_num_bytes, tensors))
