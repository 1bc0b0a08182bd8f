"""Steps, and their split over ranks and micro-batches."""

import numpy as np
import pytest

from medsft.data.plan import (
    InOrderPlan,
    StepPlan,
    check_capacity,
    epoch_permutation,
    num_examples_in_run,
    split,
    split_by_count,
)
from medsft.errors import UserError


def lengths_of(num_examples: int, seed: int = 0) -> list[int]:
    """Lengths like those of the medical pairs: most near 60 tokens, a few long."""
    return np.random.default_rng(seed).lognormal(4.1, 0.4, num_examples).astype(int).tolist()


def test_order_is_frozen():
    # A change here changes the course of every run that is resumed.
    assert epoch_permutation(10, "abc", 42, 0).tolist() == [7, 8, 9, 5, 6, 1, 3, 2, 4, 0]
    assert epoch_permutation(10, "abc", 42, 1).tolist() == [2, 4, 5, 0, 7, 8, 3, 1, 9, 6]
    assert epoch_permutation(10, "abd", 42, 0).tolist() != [7, 8, 9, 5, 6, 1, 3, 2, 4, 0]
    assert epoch_permutation(10, "abc", 43, 0).tolist() != [7, 8, 9, 5, 6, 1, 3, 2, 4, 0]


@pytest.mark.parametrize(
    ("num_examples", "batch", "epochs", "max_steps", "examples", "steps"),
    [
        (7622, 16, 3, None, 22866, 1430),
        (7622, 16, 3, -1, 22866, 1430),
        (7622, 16, 3, 100, 1600, 100),
        (7, 2, 2.5, None, 18, 9),
        (30, 1, 0.1, None, 3, 3),
        (3, 16, 1, None, 3, 1),
        (3, 16, 10, None, 30, 2),
    ],
)
def test_counts(num_examples, batch, epochs, max_steps, examples, steps):
    assert num_examples_in_run(num_examples, batch, epochs, max_steps) == examples
    assert StepPlan.for_run(num_examples, "f", batch, 0, epochs, max_steps).num_steps == steps
    plan = StepPlan.for_run(num_examples, "f", batch, 1, epochs, max_steps)
    assert sum(len(plan.examples(step)) for step in range(plan.num_steps)) == examples


@pytest.mark.parametrize("batch", [1, 4, 7, 10, 23])
@pytest.mark.parametrize("epochs", [1, 3])
def test_every_example_is_seen_once_an_epoch(batch, epochs):
    plan = StepPlan.for_run(10, "f", batch, 1, epochs)
    stream = np.concatenate([plan.examples(step) for step in range(plan.num_steps)])
    for epoch in range(epochs):
        assert sorted(stream[10 * epoch : 10 * (epoch + 1)]) == list(range(10))


def test_a_step_depends_on_nothing_but_its_number():
    long = StepPlan.for_run(50, "f", 8, 1, 5)
    short = StepPlan.for_run(50, "f", 8, 1, 1, max_steps=9)
    steps = {step: long.examples(step).tolist() for step in reversed(range(9))}
    epoch_permutation.cache_clear()
    assert all(short.examples(step).tolist() == examples for step, examples in steps.items())
    assert StepPlan(50, "f", 8, 1, 9).examples(3).tolist() == steps[3]


def test_epochs_of_steps():
    plan = StepPlan.for_run(10, "f", 4, 1, 3)  # stream of 30, steps of 4: the last has 2
    assert plan.num_steps == 8
    assert [step for step in range(8) if plan.ends_epoch(step)] == [2, 4, 7]
    assert plan.epochs_done(7) == 3
    several = StepPlan.for_run(3, "f", 10, 1, 9)  # more than one epoch in each step
    assert [several.ends_epoch(step) for step in range(several.num_steps)] == [True, True, True]


def test_wrong_plans_are_refused():
    for size, batch, *run in [
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 0),
        (1, 1, float("nan")),
        (1, 1, 1, 0),
        (1, 1, 1, -2),
    ]:
        with pytest.raises(UserError):
            StepPlan.for_run(size, "f", batch, 0, *run)
    with pytest.raises(IndexError):
        StepPlan(10, "f", 2, 1, 5).examples(5)


def test_in_order_plan():
    plan = InOrderPlan(7, 3)
    assert [plan.examples(step).tolist() for step in range(plan.num_steps)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize("num_examples", [0, 1, 2, 16, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_micro_batches", [1, 4])
@pytest.mark.parametrize("max_tokens", [None, 400])
def test_split_is_a_partition_of_equal_shape(num_examples, world_size, num_micro_batches, max_tokens):
    lengths = lengths_of(num_examples)
    shares = split(lengths, world_size, num_micro_batches, max_tokens)
    assert len(shares) == world_size
    assert len({len(share) for share in shares}) == 1 <= len(shares[0])
    positions = [position for share in shares for positions in share for position in positions]
    assert sorted(positions) == list(range(num_examples))
    if max_tokens is None:
        assert len(shares[0]) <= num_micro_batches
    else:
        assert all(
            sum(lengths[p] for p in positions) <= max_tokens for share in shares for positions in share
        )
    assert shares == split(np.array(lengths), world_size, num_micro_batches, max_tokens)


def test_split_is_balanced():
    worst = 0.0
    for seed in range(50):
        lengths = lengths_of(16, seed)
        loads = [sum(lengths[p] for p in positions) for share in split(lengths, 2, 2) for positions in share]
        worst = max(worst, max(loads) / (sum(loads) / 4))
    assert worst < 1.15


def test_no_rank_always_gets_the_larger_share():
    lengths = [8, 7, 6, 5, 4, 3, 2, 1]
    shares = split(lengths, 2, 4)
    sums = [sum(lengths[p] for positions in share for p in positions) for share in shares]
    assert sums == [18, 18]


def test_capacity_grows_the_number_of_micro_batches_alike():
    lengths = [60] * 16
    assert len(split(lengths, 2, 1, max_tokens=480)[0]) == 1
    shares = split(lengths, 2, 1, max_tokens=200)
    assert [len(share) for share in shares] == [3, 3]


def test_an_example_beyond_capacity_is_named():
    with pytest.raises(UserError, match=r"Example 1 of the step has 300 tokens.*at most 200"):
        split([100, 300], 1, 1, max_tokens=200)
    with pytest.raises(UserError, match=r"a\.jsonl:7 has 300 tokens.*at most 200.*2 examples of 3"):
        check_capacity(np.array([250, 300, 10]), 200, lambda index: ["a.jsonl:5", "a.jsonl:7", ""][index])
    check_capacity(np.array([200]), 200, str)


@pytest.mark.parametrize("num_examples", [0, 1, 16, 33])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_split_by_count(num_examples, world_size):
    lengths = lengths_of(num_examples)
    shares = split_by_count(lengths, world_size, 4)
    assert len({len(share) for share in shares}) == 1 <= len(shares[0])
    sizes = [len(positions) for share in shares for positions in share]
    assert max(sizes) <= 4
    assert sorted(p for share in shares for positions in share for p in positions) == list(
        range(num_examples)
    )


def test_split_by_count_puts_like_lengths_together():
    lengths = [100, 1, 99, 2, 98, 3]
    assert split_by_count(lengths, 2, 3) == (((5, 3, 1),), ((0, 2, 4),))


def test_no_rank_has_the_largest_share_in_every_step():
    """With one micro-batch a step: which rank it is changes from step to step."""
    random = np.random.default_rng(0)
    largest = []
    for _ in range(400):
        lengths = random.integers(20, 200, size=16)
        shares = [sum(lengths[list(bins[0])]) for bins in split(lengths, 4, 1)]
        largest.append(int(np.argmax(shares)))
    assert min(np.bincount(largest, minlength=4)) > 60


def test_counts_below_one_are_refused():
    for call in (lambda: split([1], 0, 1), lambda: split([1], 1, 0), lambda: split_by_count([1], 1, 0)):
        with pytest.raises(UserError, match="is 0; it must be at least 1"):
            call()
