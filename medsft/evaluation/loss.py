"""Validation loss over all ranks: the same number on any number of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from medsft.data.dataset import EncodedDataset
from medsft.data.loader import StepBatches
from medsft.data.plan import InOrderPlan, split
from medsft.engine.distributed import World, sum_over_ranks

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@torch.no_grad()
def validation_loss(
    engine: DeepSpeedEngine,
    data: EncodedDataset,
    per_device_size: int,
    max_tokens: int,
    pad_token_id: int,
    world: World,
) -> float:
    """Mean cross-entropy over every supervised target of `data`, in nats.

    A collective. `per_device_size` examples make a micro-batch, packed, of at most `max_tokens` tokens; every
    rank runs as many passes.
    """
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    plan = InOrderPlan(len(data), per_device_size * world.size)
    share = partial(split, world_size=world.size, num_micro_batches=1, max_tokens=max_tokens)
    engine.eval()
    try:
        with StepBatches(data, plan, share, world.rank, pad_token_id) as batches:
            for _, micro_batches in batches:
                for micro_batch in micro_batches:
                    inputs = micro_batch.to(world.device).model_inputs()
                    total += engine(**inputs, num_items_in_batch=1, use_cache=False).loss
    finally:
        engine.train()
    return float(sum_over_ranks(total)) / int(data.num_targets.sum())
