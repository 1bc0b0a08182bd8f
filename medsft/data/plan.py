"""Which examples are in which step, rank and micro-batch: pure functions, no state.

The permutations of all epochs are laid end to end into one stream, and the stream is cut into steps of
`global_batch_size` examples. What is in a step follows from the data's fingerprint, the seed and the batch
size alone, so resuming means knowing the step, and any number of GPUs walks the same path.

How a step is shared out over ranks and micro-batches follows from the lengths alone: every rank computes the
whole split, without communication, and takes its own part. Every rank gets the same number of micro-batches,
because each forward and backward pass is a collective under ZeRO. Micro-batches may be empty.
"""

import hashlib
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np

from medsft.errors import UserError

Split = tuple[tuple[tuple[int, ...], ...], ...]
"""[rank][micro-batch] -> positions within the step."""


@lru_cache(maxsize=2)
def epoch_permutation(num_examples: int, fingerprint: str, seed: int, epoch: int) -> np.ndarray:
    """Order of the examples in one epoch: int64 [num_examples], read-only.

    Comes from numpy's legacy `RandomState`, whose stream is frozen by NEP 19, so that a run can be resumed
    under another numpy version. Two are kept: a step may straddle two epochs.
    """
    digest = hashlib.sha256(f"{fingerprint}\n{seed}\n{epoch}".encode()).digest()
    words = np.frombuffer(digest, dtype="<u4").astype(np.uint32)  # the same numbers on any byte order
    order = np.random.RandomState(words).permutation(num_examples).astype(np.int64, copy=False)
    order.setflags(write=False)
    return order


def num_examples_in_run(
    num_examples: int, global_batch_size: int, num_train_epochs: float, max_steps: int | None = None
) -> int:
    """Examples a run sees, repetitions counted: whole steps under `max_steps`, else epochs × examples.

    `max_steps` wins over `num_train_epochs`; None and -1 mean that it is not set. Part of an example is
    rounded up (2.5 epochs of 7 examples are 18).
    """
    if num_examples < 1:
        raise UserError("The training data holds no example, so there is nothing to train on.")
    if global_batch_size < 1:
        raise UserError(f"The global batch size is {global_batch_size} examples; it must be at least 1.")
    if max_steps is not None and max_steps != -1:
        if max_steps < 1:
            raise UserError(f"--max_steps is {max_steps}; give at least 1, or -1 to train num_train_epochs.")
        return max_steps * global_batch_size
    if not (math.isfinite(num_train_epochs) and num_train_epochs > 0):
        raise UserError(f"--num_train_epochs is {num_train_epochs}; give a number above 0.")
    # The decimal that was typed, not its binary neighbour: 0.1 epochs of 30 examples are 3, not 4.
    return math.ceil(Fraction(repr(float(num_train_epochs))) * num_examples)


@dataclass(frozen=True)
class StepPlan:
    """The training steps 0 … num_steps-1 and the examples of each.

    Attributes:
        num_examples: examples in the data set.
        fingerprint: of the data set's content, hexadecimal.
        global_batch_size: examples in a step, over all ranks and micro-batches.
        seed: of the order.
        num_steps: steps in the run.
        num_examples_total: examples the run sees, repetitions counted. Shortens the last step so that every
            example is seen exactly as often as asked for; None: the last step is a whole one.
    """

    num_examples: int
    fingerprint: str
    global_batch_size: int
    seed: int
    num_steps: int
    num_examples_total: int | None = None

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise UserError("The data set holds no example, so there is nothing to plan.")
        if self.global_batch_size < 1:
            raise UserError(f"The global batch size is {self.global_batch_size}; it must be at least 1.")
        total = self.num_examples_total
        if total is not None and self.num_steps != -(-total // self.global_batch_size):
            raise ValueError(f"{total} examples do not make {self.num_steps} steps")

    @classmethod
    def for_run(
        cls,
        num_examples: int,
        fingerprint: str,
        global_batch_size: int,
        seed: int,
        num_train_epochs: float,
        max_steps: int | None = None,
    ) -> "StepPlan":
        """The plan of a run of `num_train_epochs` (may be a fraction), or of `max_steps` when set."""
        total = num_examples_in_run(num_examples, global_batch_size, num_train_epochs, max_steps)
        steps = -(-total // global_batch_size)
        return cls(num_examples, fingerprint, global_batch_size, seed, steps, total)

    def bounds(self, step: int) -> tuple[int, int]:
        """The half-open range of the stream that step `step` takes."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside 0 … {self.num_steps - 1}")
        start = step * self.global_batch_size
        end = start + self.global_batch_size
        return start, end if self.num_examples_total is None else min(end, self.num_examples_total)

    def examples(self, step: int) -> np.ndarray:
        """Indices into the data set of the examples of `step` (0-based): int64 [≤ global_batch_size]."""
        start, end = self.bounds(step)
        parts = []
        while start < end:
            epoch, offset = divmod(start, self.num_examples)
            order = epoch_permutation(self.num_examples, self.fingerprint, self.seed, epoch)
            parts.append(order[offset : offset + end - start])
            start += len(parts[-1])
        return np.concatenate(parts)

    def epochs_done(self, step: int) -> float:
        """Epochs completed when `step` is done, with the fraction: 1.5 means half-way through the second."""
        return self.bounds(step)[1] / self.num_examples

    def ends_epoch(self, step: int) -> bool:
        """Whether the last example of at least one epoch is in `step`."""
        start, end = self.bounds(step)
        return end // self.num_examples > start // self.num_examples


@dataclass(frozen=True)
class InOrderPlan:
    """The data set once, front to back, in steps of `global_batch_size` examples: for evaluation."""

    num_examples: int
    global_batch_size: int

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise UserError("The data set holds no example, so there is nothing to evaluate.")
        if self.global_batch_size < 1:
            raise UserError(f"The global batch size is {self.global_batch_size}; it must be at least 1.")

    @property
    def num_steps(self) -> int:
        return -(-self.num_examples // self.global_batch_size)

    def examples(self, step: int) -> np.ndarray:
        """Indices into the data set of the examples of `step` (0-based): int64 [≤ global_batch_size]."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is outside 0 … {self.num_steps - 1}")
        start = step * self.global_batch_size
        return np.arange(start, min(start + self.global_batch_size, self.num_examples))


def _descending(lengths: Sequence[int]) -> list[int]:
    """Positions from the longest example to the shortest, equal ones in their order."""
    return sorted(range(len(lengths)), key=lambda position: -lengths[position])


def _fill(lengths: Sequence[int], num_bins: int, max_tokens: int | None) -> list[list[int]] | None:
    """Longest-processing-time-first bin filling, or None where a bin would exceed `max_tokens`."""
    heap = [(0, 0, index) for index in range(num_bins)]  # tokens, examples, bin
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for position in _descending(lengths):
        tokens, examples, index = heap[0]
        tokens += lengths[position]
        if max_tokens is not None and tokens > max_tokens:
            return None  # the emptiest bin cannot take it, so none can
        bins[index].append(position)
        heapq.heapreplace(heap, (tokens, examples + 1, index))
    return bins


def _deal(bins: list[list[int]], lengths: Sequence[int], world_size: int) -> Split:
    """Deal bins to ranks so that bins of like size run at the same time and ranks get like sums.

    The ranks wait for each other in every micro-batch, so the bins of one micro-batch are neighbours in
    size. Every second round is dealt backwards, and the ranks take turns from step to step (the step's tokens
    say whose it is), so that no rank always gets the larger one.
    """
    loads = [sum(lengths[position] for position in positions) for positions in bins]
    order = sorted(range(len(bins)), key=lambda index: (-loads[index], index))
    rounds = [order[start : start + world_size] for start in range(0, len(order), world_size)]
    turn = sum(loads) % world_size
    for number, dealt in enumerate(rounds):
        if number % 2:
            dealt.reverse()
        dealt[:] = dealt[turn:] + dealt[:turn]
    return tuple(tuple(tuple(bins[dealt[rank]]) for dealt in rounds) for rank in range(world_size))


def split(
    lengths: Sequence[int], world_size: int, num_micro_batches: int, max_tokens: int | None = None
) -> Split:
    """Share a step's examples out by tokens, for packed micro-batches.

    Args:
        lengths: tokens of each example of the step.
        world_size: ranks.
        num_micro_batches: micro-batches per rank. Fewer are made when there are too few examples to give
            each one, more (alike on all ranks) when `max_tokens` would be exceeded.
        max_tokens: most tokens in a micro-batch; None: no limit.

    Returns:
        [rank][micro-batch] -> positions into `lengths`; every position occurs once.

    Raises:
        UserError: an example alone is longer than `max_tokens`. `check_capacity` finds it before training.
    """
    _check_counts(world_size, num_micro_batches=num_micro_batches)
    lengths = [int(length) for length in lengths]
    if max_tokens is not None and lengths and max(lengths) > max_tokens:
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        raise UserError(_too_long(f"Example {longest} of the step", lengths[longest], max_tokens))
    num_rounds = min(num_micro_batches, max(1, -(-len(lengths) // world_size)))
    if max_tokens is not None:
        num_rounds = max(num_rounds, -(-sum(lengths) // (max_tokens * world_size)))
    while (bins := _fill(lengths, num_rounds * world_size, max_tokens)) is None:
        num_rounds += 1
    return _deal([sorted(positions) for positions in bins], lengths, world_size)


def split_by_count(lengths: Sequence[int], world_size: int, max_examples: int) -> Split:
    """Share a step's examples out by number, for padded micro-batches of at most `max_examples`.

    Examples of like length go together, so that little is padded. Same result form as `split`.
    """
    _check_counts(world_size, max_examples=max_examples)
    lengths = [int(length) for length in lengths]
    num_rounds = max(1, -(-len(lengths) // (max_examples * world_size)))
    chunks = np.array_split(np.array(_descending(lengths), dtype=np.int64), num_rounds * world_size)
    return _deal([chunk.tolist() for chunk in chunks], lengths, world_size)


def _check_counts(world_size: int, **counts: int) -> None:
    for name, value in {"world_size": world_size, **counts}.items():
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1.")


def _too_long(what: str, length: int, max_tokens: int) -> str:
    return (
        f"{what} has {length} tokens, but a micro-batch holds at most {max_tokens}. Raise "
        "--micro_batch_tokens, lower --max_source_length or --max_target_length so that it is cut, or remove "
        "it."
    )


def check_capacity(lengths: np.ndarray, max_tokens: int, describe: Callable[[int], str]) -> None:
    """Check before training that every example of the data set fits into a micro-batch.

    Args:
        lengths: [num_examples] tokens of each example.
        max_tokens: most tokens in a micro-batch.
        describe: example index -> where it comes from, "file:line".

    Raises:
        UserError: names the longest example that does not fit, and how many there are.
    """
    lengths = np.asarray(lengths)
    num_too_long = int((lengths > max_tokens).sum())
    if num_too_long:
        longest = int(lengths.argmax())
        message = _too_long(f"The example at {describe(longest)}", int(lengths[longest]), max_tokens)
        if num_too_long > 1:
            message += f" {num_too_long} examples of {len(lengths)} are too long, this one is the longest."
        raise UserError(message)
