import pytest
import torch
from transformers import get_scheduler

from medsft.engine.schedule import Schedule, warmup_steps

NAMES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


@pytest.mark.parametrize("shape", NAMES)
@pytest.mark.parametrize(("num_warmup", "num_steps"), [(0, 10), (3, 10), (10, 10), (1, 1)])
def test_values_are_those_of_transformers(shape, num_warmup, num_steps):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    reference = get_scheduler(NAMES[shape], optimizer, num_warmup, num_steps)
    ours = Schedule(shape, 3e-4, num_warmup, num_steps)
    for step in range(num_steps):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-18, rel=1e-12)
        optimizer.step()
        reference.step()


def test_the_last_update_still_moves_and_beyond_the_end_is_zero():
    schedule = Schedule("linear", 1.0, 0, 10)
    assert schedule(9) == pytest.approx(0.1)
    assert schedule(10) == 0.0
    assert schedule(11) == 0.0


@pytest.mark.parametrize(
    ("arguments", "expected"), [((1429, 0.1, None), 143), ((10, 0.0, None), 0), ((10, 0.5, 2), 2)]
)
def test_warmup_comes_from_ratio_or_number(arguments, expected):
    assert warmup_steps(*arguments) == expected
