"""When a run validates, and what it knows of the validations before a resume."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from checkpoint_slices import MANIFEST_OF_NOTHING

from medsft.checkpoint.manifest import Validation
from medsft.checkpoint.retention import Keep, superseded
from medsft.checkpoint.survey import Found, comparable_losses
from medsft.data.plan import StepPlan
from medsft.engine.distributed import World
from medsft.training import validating
from medsft.training.early_stopping import EarlyStopping
from medsft.training.validating import Validating, take_up

PLAN = StepPlan(num_examples=20, fingerprint="c" * 64, global_batch_size=8, seed=0, num_steps=8)
ALONE = World(0, 1, 0, torch.device("cpu"))
DATA = SimpleNamespace(fingerprint="a" * 64)


@pytest.fixture(autouse=True)
def without_ranks(monkeypatch):
    monkeypatch.setattr(validating, "from_main", lambda world, value: value)


def run(every, losses, data=DATA, newest=None):
    """(step, loss) of a run's validations, and the newest that is kept."""
    told = []
    reporter = SimpleNamespace(validation=lambda step, loss: told.append((step, loss)))
    given = iter(losses)
    some = Validating(every, PLAN, data, lambda data: next(given), EarlyStopping(), newest, reporter, ALONE)
    for step in range(PLAN.num_steps):
        some.after_step(step, is_last=step == PLAN.num_steps - 1)
    return told, some.newest


@pytest.mark.parametrize(("every", "steps"), [(None, [3, 5, 8]), (3, [3, 6, 8]), (100, [8])])
def test_it_validates_at_epochs_or_every_so_many_steps_and_at_the_end(every, steps):
    told, newest = run(every, [3.0, 2.0, 1.0])
    assert [step for step, _ in told] == steps
    assert newest == Validation(8, told[-1][1], "a" * 64)


def test_without_data_there_is_none_and_what_was_known_stays_known():
    before = Validation(2, 1.5, "b" * 64)
    assert run(1, [], data=None, newest=before) == ([], before)


def test_a_loss_that_is_no_number_is_told_and_not_kept():
    told, newest = run(3, [3.0, 2.0, math.nan])
    assert len(told) == 3 and newest == Validation(6, 2.0, "a" * 64)


COUNTERS = {"validations_without_progress": 2, "best_validation_loss": 1.5, "best_validation_step": 60}


@pytest.mark.parametrize(
    ("before", "now", "goes_on"),
    [
        (Validation(80, 1.7, "a" * 64), "a" * 64, True),
        (Validation(80, 1.7), "a" * 64, True),  # of a checkpoint from before the fingerprint was kept
        (Validation(80, 1.7, "a" * 64), None, True),  # nothing is validated that could be compared
        (None, "a" * 64, True),
        (Validation(80, 1.7, "b" * 64), "a" * 64, False),
    ],
)
def test_other_validation_data_are_counted_anew(before, now, goes_on, caplog):
    early_stopping = EarlyStopping(patience=2)
    manifest = replace(MANIFEST_OF_NOTHING, validation=before, counters=COUNTERS)
    with caplog.at_level("INFO", logger="medsft"):
        newest = take_up(manifest, now and SimpleNamespace(fingerprint=now), early_stopping)
    said = [record.getMessage() for record in caplog.records]
    if goes_on:
        assert (newest, early_stopping.counters(), said) == (before, COUNTERS, [])
        assert early_stopping.is_due
    else:
        assert (newest, early_stopping.best_loss, early_stopping.is_due) == (None, None, False)
        assert len(said) == 1 and "others than those of step 80" in said[0] and "anew" in said[0]


def test_a_best_checkpoint_of_other_data_is_not_kept_as_the_best(tmp_path):
    def found(step, loss, data, fault=None):
        validation = None if loss is None else Validation(step, loss, data)
        manifest = replace(MANIFEST_OF_NOTHING, step=step, validation=validation)
        return Found(step, tmp_path, manifest, fault, 0, False)

    old = [found(10, 0.5, "a"), found(20, 0.4, "a"), found(30, None, None)]
    assert comparable_losses(old) == [(10, 0.5), (20, 0.4), (30, None)]
    new = [*old, found(40, 2.0, "b"), found(50, 3.0, "b")]
    assert comparable_losses(new) == [(10, None), (20, None), (30, None), (40, 2.0), (50, 3.0)]
    assert superseded(comparable_losses(new), Keep(1, None, True)) == [10, 20, 30]
    unknown = [found(10, 0.5, None), found(20, 2.0, "b")]
    assert comparable_losses(unknown) == [(10, 0.5), (20, 2.0)]
    assert comparable_losses([found(10, 0.5, "b", "damaged"), found(20, 2.0, "a")]) == [(10, None), (20, 2.0)]
