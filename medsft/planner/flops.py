"""Floating-point operations of a training step: the one place where they are counted.

A product of a row with an m x n matrix takes 2mn operations (a multiplication and an addition for each
element). The backward pass does it twice more, for the gradients of input and matrix, so a parameter costs 6
a token (Kaplan et al., arXiv 2001.08361, section 2.1). Biases and LayerNorms are counted alike: 0.03 % of
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medsft.planner.shape import Shape

_FORWARD = 2
_FORWARD_AND_BACKWARD = 6


@dataclass(frozen=True)
class Flops:
    """Operations of one pass over some tokens, forward and backward.

    Attributes:
        body: blocks and final LayerNorm, for every slot that is computed.
        head: the product with the head, for the rows that predict a supervised token.
        attention: scores and weighted values, for the pairs of query and key that may see each other.
        recomputed: the forward pass of the blocks done again (gradient checkpointing); not necessary work.
    """

    body: float
    head: float
    attention: float
    recomputed: float = 0.0

    @property
    def necessary(self) -> float:
        """What the model's arithmetic asks for, by which MFU is counted."""
        return self.body + self.head + self.attention

    @property
    def total(self) -> float:
        """What is computed."""
        return self.necessary + self.recomputed


def step_flops(
    shape: Shape, num_slots: float, num_targets: float, num_pairs: float, checkpointing: bool = False
) -> Flops:
    """Operations for `num_slots` tokens (padding included where there is any).

    body: 6 x parameters of the body x slots. head: 6 x V x E x supervised rows. attention: a pair of query
    and key takes 2E for the score and 2E for the weighted value in each layer, three times that with the
    backward pass, so 12 x layers x E x pairs. Recomputation repeats the forward third of body and attention.
    """
    body = _FORWARD_AND_BACKWARD * shape.body_parameters * num_slots
    head = _FORWARD_AND_BACKWARD * shape.matrix_parameters * num_targets
    attention = 2 * _FORWARD_AND_BACKWARD * shape.num_layers * shape.hidden_size * num_pairs
    again = (body + attention) * _FORWARD / _FORWARD_AND_BACKWARD if checkpointing else 0.0
    return Flops(body, head, attention, again)


def visible_pairs(length: int, num_targets: int) -> int:
    """Pairs of query and key that see each other in one example of a prefix language model.

    The context of c = length - num_targets tokens sees itself in both directions, c²; of the a = num_targets
    tokens from <sop> on, number i sees the context and i tokens of its own: a·c + a(a + 1)/2. Packed examples
    do not see each other, so the pairs of a row are the sum over its examples.
    """
    context = length - num_targets
    return context**2 + num_targets * context + num_targets * (num_targets + 1) // 2


def pairs_of(examples: Iterable[tuple[int, int]]) -> int:
    """Visible pairs of several examples, each (tokens, supervised tokens)."""
    return sum(visible_pairs(length, num_targets) for length, num_targets in examples)


def mfu(necessary_flops: float, seconds: float, num_devices: int, peak_flops: float) -> float:
    """Model FLOPs utilisation: necessary operations over what all devices could do in that time."""
    return necessary_flops / (seconds * num_devices * peak_flops)
