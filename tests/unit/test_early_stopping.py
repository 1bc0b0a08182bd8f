"""When a validation loss counts as progress, and what a resumed run knows of the ones before."""

import json
import math

import pytest

from medsft.config import parse
from medsft.errors import UserError
from medsft.training.early_stopping import EarlyStopping

REQUIRED = ["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o"]


def ends_after(losses, **settings):
    """Number of validations until the end, the counter carried through JSON after each; None: no end."""
    early = EarlyStopping(**settings)
    for number, loss in enumerate(losses, start=1):
        early.see(number, loss)
        counters = json.loads(json.dumps(early.counters(), allow_nan=False))
        early = EarlyStopping(**settings)
        early.restore(counters)
        if early.is_due:
            return number
    return None


@pytest.mark.parametrize(
    ("losses", "settings", "end"),
    [
        ([3, 2, 2.1, 1.9, 2.0, 2.0, 1.0], {"patience": 2}, 6),
        ([3, 2, 2.1, 1.9, 2.0, 1.8], {"patience": 2}, None),
        ([3, 3, 3, 3], {}, None),
        # Lower each time, but by too little; the best one moves on all the same.
        ([3, 2.95, 2.9, 2.85], {"patience": 2, "threshold": 0.06}, 3),
        ([math.nan, math.nan, 1], {"patience": 2}, 2),
        ([math.nan, 2, math.inf, 1], {"patience": 2}, None),
    ],
)
def test_the_end_comes_after_so_many_without_progress(losses, settings, end):
    assert ends_after(losses, **settings) == end


def test_the_best_loss_is_remembered_with_its_step():
    early = EarlyStopping()
    for step, loss in ((10, 2.0), (20, 1.5), (30, math.nan), (40, 1.7)):
        early.see(step, loss)
    assert (early.best_loss, early.best_step) == (1.5, 20)
    old = EarlyStopping(patience=1)
    old.restore({"skipped_steps": 0})  # of a checkpoint that knows nothing of it
    assert (old.best_loss, old.is_due) == (None, False)


def test_settings_without_sense_are_refused():
    flags = ["--early_stopping_patience", "0", "--early_stopping_threshold", "-1"]
    with pytest.raises(UserError, match="patience 0 must be 1 or more") as caught:
        parse([*REQUIRED, *flags])
    assert "--early_stopping_patience 0 needs --validation_file" in str(caught.value)
    assert "--early_stopping_threshold -1.0 must be 0 or more" in str(caught.value)
    with pytest.raises(UserError, match=r"threshold 0\.1 needs --early_stopping_patience"):
        parse([*REQUIRED, "--early_stopping_threshold", "0.1"])
