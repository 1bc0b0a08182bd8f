"""Lengths of the training data: real ones, or made from quantiles."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

from medsft.data.plan import split, split_by_count
from medsft.errors import UserError
from medsft.planner.flops import pairs_of

if TYPE_CHECKING:
    from medsft.data.encode import Tokenizer

MED_CHATGLM_QUANTILES = (
    (0.0, 20), (0.05, 38), (0.25, 52), (0.5, 63), (0.75, 78), (0.9, 92), (0.99, 126), (1.0, 264),
)  # fmt: skip
"""Tokens of an example of Med-ChatGLM's published data with the v1.1 tokenizer, at these shares of it."""

MED_CHATGLM_EXAMPLES = 7622
MED_CHATGLM_SUPERVISED_SHARE = 34.6 / 66
"""Share of an example's tokens that is supervised, on average."""

_SAMPLED_STEPS = 32
_SAMPLED_EXAMPLES = 20_000
_MULTIPLE = 8  # slots of a row are rounded up to it (medsft.data.pack.LENGTH_MULTIPLE)
_DUMMY = 2  # slots of a rank without examples (medsft.data.pack.DUMMY_LENGTH)


@dataclass(frozen=True)
class Lengths:
    """Tokens of each training example, and how many of them are supervised."""

    tokens: tuple[int, ...]
    targets: tuple[int, ...]

    @classmethod
    def from_quantiles(
        cls,
        quantiles: Sequence[tuple[float, float]] = MED_CHATGLM_QUANTILES,
        num_examples: int = MED_CHATGLM_EXAMPLES,
        supervised_share: float = MED_CHATGLM_SUPERVISED_SHARE,
    ) -> Self:
        """Lengths at evenly spaced shares between the quantiles (share 0 … 1, tokens), nothing at random."""
        tokens = tuple(
            round(_interpolate((number + 0.5) / num_examples, quantiles)) for number in range(num_examples)
        )
        return cls(tokens, tuple(min(n - 1, max(2, round(n * supervised_share))) for n in tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def mean_tokens(self) -> float:
        """Tokens of an example."""
        return sum(self.tokens) / len(self)

    @property
    def mean_targets(self) -> float:
        """Supervised tokens of an example."""
        return sum(self.targets) / len(self)


def parse_quantiles(text: str) -> tuple[tuple[float, float], ...]:
    """`0:20,0.5:63,1:264`: share 0 … 1 of the examples and their tokens, both rising. Raises `UserError`."""
    problem = (
        f"--lengths {text!r} must be share:tokens pairs with commas, from share 0 to share 1, tokens rising "
        "from 3 on, like 0:20,0.5:63,0.9:92,1:264."
    )
    try:
        pairs = tuple(
            (float(share), float(tokens)) for share, tokens in (p.split(":") for p in text.split(","))
        )
    except ValueError as error:
        raise UserError(problem) from error
    shares, tokens = [share for share, _ in pairs], [count for _, count in pairs]
    rising = all(left < right for left, right in pairwise(shares))
    rising &= all(left <= right for left, right in pairwise(tokens))
    if not rising or shares[0] != 0 or shares[-1] != 1 or not (tokens[0] >= 3 and tokens[-1] < math.inf):
        raise UserError(problem)
    return pairs


def read_lengths(
    files: Sequence[Path], tokenizer: Tokenizer, max_source_length: int, max_target_length: int
) -> Lengths:
    """Lengths of the usable examples of some files, cut as the trainer cuts them. Raises `UserError`."""
    from medsft.data.cache import load_or_build  # made-up lengths do without

    with tempfile.TemporaryDirectory() as cache:
        data = load_or_build(
            files,
            tokenizer,
            cache,
            max_source_length=max_source_length,
            max_target_length=max_target_length,
            max_bad_share=1.0,
        )
        return Lengths(tuple(map(int, data.lengths)), tuple(map(int, data.num_targets)))


def _interpolate(share: float, quantiles: Sequence[tuple[float, float]]) -> float:
    for (left, low), (right, high) in pairwise(quantiles):
        if share <= right:
            return low + (high - low) * (share - left) / (right - left)
    return quantiles[-1][1]


@dataclass(frozen=True)
class StepSizes:
    """What a step of the global batch computes, on average over sampled steps, and at its largest.

    Attributes:
        num_tokens, num_targets, num_pairs: of the whole step, over all ranks; padding not counted.
        num_slots: computed by all ranks, padding included.
        busiest_slots: of the rank with the most, summed over the micro-batches: the others wait for it.
        busiest_targets: supervised rows likewise.
        num_micro_batches: passes of each rank.
        largest_slots, largest_targets: of one micro-batch, in the worst of the sampled steps.
        largest_places, mask_width: tokens that its attention computes with every example in a row of its own,
            and the length of these rows, by which the mask is wide.
        ranks_at_work: ranks that get an example.
    """

    num_tokens: float
    num_targets: float
    num_pairs: float
    num_slots: float
    busiest_slots: float
    busiest_targets: float
    num_micro_batches: float
    largest_slots: int
    largest_targets: int
    largest_places: int
    mask_width: int
    ranks_at_work: int


def step_sizes(
    lengths: Lengths,
    world_size: int,
    global_batch_size: int,
    per_device_batch_size: int,
    num_micro_batches: int,
    max_tokens: int | None,
    packing: bool,
) -> StepSizes:
    """Deals sampled steps out to the ranks by the trainer's own rule (`medsft.data.plan`).

    Raises `UserError` when an example is longer than `max_tokens`, the most tokens of a packed micro-batch.
    """
    chance = random.Random(0)
    totals = [0.0] * 7
    largest_slots = largest_targets = ranks_at_work = 0
    largest_places = (0, 0)
    num_steps = max(1, min(_SAMPLED_STEPS, _SAMPLED_EXAMPLES // global_batch_size))
    for _ in range(num_steps):
        chosen = [chance.randrange(len(lengths)) for _ in range(global_batch_size)]
        tokens = [lengths.tokens[number] for number in chosen]
        targets = [lengths.targets[number] for number in chosen]
        if packing:
            dealt = split(tokens, world_size, num_micro_batches, max_tokens)
        else:
            dealt = split_by_count(tokens, world_size, per_device_batch_size)
        slots = [[_slots([tokens[at] for at in batch], packing) for batch in rank] for rank in dealt]
        rows = [[sum(targets[at] for at in batch) for batch in rank] for rank in dealt]
        # The ranks meet in the collectives of each micro-batch, so each one takes as long as its largest.
        values = (
            sum(tokens),
            sum(targets),
            pairs_of(zip(tokens, targets, strict=True)),
            sum(map(sum, slots)),
            sum(max(column) for column in zip(*slots, strict=True)),
            sum(max(column) for column in zip(*rows, strict=True)),
            len(dealt[0]),
        )
        totals = [total + value for total, value in zip(totals, values, strict=True)]
        largest_slots = max(largest_slots, *map(max, slots))
        largest_targets = max(largest_targets, *map(max, rows))
        places = (_places([tokens[at] for at in batch], packing) for rank in dealt for batch in rank)
        largest_places = max(largest_places, *places)
        ranks_at_work = max(ranks_at_work, sum(any(rank) for rank in dealt))
    means = (total / num_steps for total in totals)
    return StepSizes(*means, largest_slots, largest_targets, *largest_places, ranks_at_work)


def _round_up(length: int) -> int:
    return -(-length // _MULTIPLE) * _MULTIPLE


def _slots(tokens: Sequence[int], packing: bool) -> int:
    if not tokens:
        return _DUMMY
    return _round_up(sum(tokens)) if packing else len(tokens) * _round_up(max(tokens))


def _places(tokens: Sequence[int], packing: bool) -> tuple[int, int]:
    """Tokens that attention computes, and the width of their mask (`medsft.chatglm.attention.over_segments`).

    Padding is a segment of its own; one dense mask is taken where it has no more pairs.
    """
    slots = _slots(tokens, packing)
    if not tokens:
        return slots, slots
    width = _round_up(max(tokens))
    row = slots if packing else width
    num_padded = (slots > sum(tokens)) if packing else sum(count < width for count in tokens)
    num_segments = len(tokens) + num_padded
    return min((slots, row), (num_segments * width, width), key=lambda made: made[0] * made[1])
