"""Loss of given answers under a model that is held whole, as `medsft eval` and `compare` need it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

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
    """For each example the sum of its targets' cross-entropies in nats, and their number.

    `batch_size` examples are packed into a row, which is one pass.
    """
    model, tokenizer = responder.model, responder.tokenizer
    encoded = [
        encode_example(example, tokenizer, max_source_length, max_target_length, responder.template)
        for example in examples
    ]
    sums = []
    for start in range(0, len(encoded), batch_size):
        chosen = encoded[start : start + batch_size]
        row = pack(chosen, tokenizer.pad_token_id).to(model.device)
        logits = model(**row.model_inputs(), use_cache=False).logits  # [N, V]
        targets = row.labels.flatten()[row.target_rows + 1]  # [N]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        numbers = [len(one.input_ids) - one.context_length for one in chosen]
        sums += [(float(some.sum()), len(some)) for some in losses.split(numbers)]
    return sums


def answer_loss(
    responder: Responder,
    examples: Sequence[Example],
    world: World,
    max_source_length: int = 256,
    max_target_length: int = 256,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AnswerLoss:
    """Mean over all supervised tokens of `examples`, each row computed by one rank; a collective.

    Rows are formed before they are shared out, and all is added up exactly (`math.fsum`), so that any number
    of ranks gives the same number. `progress` is told of this rank's rows, done and in all.
    """
    rows = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    rows = rows[world.rank :: world.size]
    mine: list[tuple[float, int]] = []
    for number, row in enumerate(rows, start=1):
        mine += loss_sums(responder, row, max_source_length, max_target_length, batch_size)
        progress(number, len(rows))
    pairs = [pair for share in gather(world, mine) for pair in share]
    num_targets = sum(targets for _, targets in pairs)
    return AnswerLoss(math.fsum(loss for loss, _ in pairs) / num_targets, num_targets)
