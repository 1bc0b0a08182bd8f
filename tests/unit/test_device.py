"""Where a model that answers is held."""

import pytest
import torch

from medsft.errors import UserError
from medsft.inference import device
from medsft.inference.device import choose_device


@pytest.mark.parametrize(
    ("num_gpus", "name", "local_rank", "found"),
    [
        (0, "auto", 3, "cpu"),
        (2, "auto", 0, "cuda:0"),
        (2, "auto", 1, "cuda:1"),
        (2, "auto", 3, "cuda:1"),  # in turn
        (2, "cuda:1", 0, "cuda:1"),
        (2, "cpu", 1, "cpu"),
    ],
)
def test_each_rank_has_its_own(num_gpus, name, local_rank, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(device, "check_gpus", lambda advice: None)
    monkeypatch.setattr(device, "check_architecture", lambda device: None)
    assert str(choose_device(name, local_rank)) == found


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "mps", "meta", ""])
def test_a_device_that_is_not_there(name):
    with pytest.raises(UserError, match=f"--device {name} is not"):
        choose_device(name)
