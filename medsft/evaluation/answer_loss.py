"""Loss of given answers under a model that is held whole, as `medsft eval` and `compare` need it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medsft.data.encode import encode_example
from medsft.data.pack import pack
from medsft.data.records import Example
from medsft.engine.distributed import World
from medsft.evaluation.ranks import gather
from medsft.inference.responder import Responder


@dataclass(frozen=True)
class AnswerLoss:
    """Mean cross-entropy of the supervised tokens in nats, and how many there were."""

    loss: float
    num_targets: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is too large for a number."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@torch.inference_mode()
def loss_sums(
    responder: Responder,
    examples: Sequence[Example],
    max_source_length: int,
    max_target_length: int,
    batch_size: int = 8,
) -> list[tuple[float, int]]:
    """For each packed row of `batch_size` examples the sum of cross-entropies in nats, and its targets."""
    model, tokenizer = responder.model, responder.tokenizer
    encoded = [
        encode_example(example, tokenizer, max_source_length, max_target_length, responder.template)
        for example in examples
    ]
    sums = []
    for start in range(0, len(encoded), batch_size):
        row = pack(encoded[start : start + batch_size], tokenizer.pad_token_id)
        inputs = row.to(model.device).model_inputs()
        loss = float(model(**inputs, num_items_in_batch=1, use_cache=False).loss)
        sums.append((loss, row.num_targets))
    return sums


def answer_loss(
    responder: Responder,
    examples: Sequence[Example],
    world: World,
    max_source_length: int = 256,
    max_target_length: int = 256,
    batch_size: int = 8,
) -> AnswerLoss:
    """Mean over all supervised tokens of `examples`, each row computed by one rank; a collective.

    Rows are formed before they are shared out and added up exactly (`math.fsum`), so that any number of ranks
    gives the same number.
    """
    rows = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    mine = [
        pair
        for row in rows[world.rank :: world.size]
        for pair in loss_sums(responder, row, max_source_length, max_target_length, batch_size)
    ]
    pairs = [pair for share in gather(world, mine) for pair in share]
    num_targets = sum(targets for _, targets in pairs)
    return AnswerLoss(math.fsum(loss for loss, _ in pairs) / num_targets, num_targets)
