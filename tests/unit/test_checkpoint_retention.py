import random

import pytest

from medsft.checkpoint.retention import Keep, superseded


def unmeasured(*steps):
    return [(step, None) for step in steps]


def test_the_newest_stay_whatever_the_order_given():
    assert superseded(unmeasured(30, 10, 100, 20), Keep(2, None, False)) == [10, 20]
    assert superseded(unmeasured(30, 10, 100, 20), Keep(1, None, True)) == [10, 20, 30]
    assert superseded(unmeasured(30), Keep(1, None, False)) == []
    assert superseded([], Keep(1, None, True)) == []


def test_order_is_by_number_not_by_name():
    assert superseded(unmeasured(99_999_999, 100_000_000), Keep(1, None, False)) == [99_999_999]


def test_every_so_many_steps_one_stays():
    assert superseded(unmeasured(50, 100, 150, 200, 250), Keep(1, 100, False)) == [50, 150]


def test_the_best_stays():
    checkpoints = [(10, 2.0), (20, 1.0), (30, 1.5), (40, None), (50, 3.0)]
    assert superseded(checkpoints, Keep(1, None, True)) == [10, 30, 40]
    assert superseded(checkpoints, Keep(1, None, False)) == [10, 20, 30, 40]


def test_of_equally_good_ones_the_newest_stays():
    assert superseded([(10, 1.0), (20, 1.0), (30, 1.0), (40, None)], Keep(1, None, True)) == [10, 20]


@pytest.mark.parametrize("loss", [float("nan"), float("-inf"), float("inf")])
def test_a_loss_that_is_no_number_is_never_the_best(loss):
    assert superseded([(10, loss), (20, 1.0), (30, None)], Keep(1, None, True)) == [10]
    assert superseded([(10, loss), (20, loss), (30, None)], Keep(1, None, True)) == [10, 20]


@pytest.mark.parametrize("fields", [(0, None, True), (-1, None, True), (1, 0, True), (1, -5, False)])
def test_rules_that_would_keep_nothing_are_refused(fields):
    with pytest.raises(ValueError, match=r"at least"):
        Keep(*fields)


def test_deleting_after_every_save_leaves_what_the_rules_say():
    """Over a long run, as saves and deletions alternate: nothing is given up that a rule wants later."""
    chance = random.Random(7)
    keep = Keep(3, 500, True)
    there: list[tuple[int, float | None]] = []
    losses = {}
    for step in range(100, 10_000, 100):
        losses[step] = chance.uniform(1, 2) if step % 200 == 0 else None
        there.append((step, losses[step]))
        gone = superseded(there, keep)
        assert step not in gone
        there = [(each, loss) for each, loss in there if each not in gone]
    best = min((step for step in losses if losses[step] is not None), key=losses.__getitem__)
    assert {step for step, _ in there} == {*range(500, 10_000, 500), 9700, 9800, 9900, best}
