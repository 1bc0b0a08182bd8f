"""Which AdamW a configuration gets, and that one pass over memory gives what several do."""

import deepspeed.ops.adam
import pytest
import torch
from torch import nn

from medsft.engine.optimizer import build_optimizer, decay_groups
from medsft.planner.advice import read_configs

SETTINGS = {"learning_rate": 1e-2, "betas": (0.9, 0.99), "epsilon": 1e-8, "weight_decay": 0.1}
CONFIGS = read_configs()


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    torch.manual_seed(1)
    for _ in range(5):
        model(torch.randn(32, 16)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [param.detach() for param in model.parameters()]


def test_states_on_the_device_are_updated_in_one_pass():
    ours, theirs = make_model(), make_model()
    optimizer = build_optimizer(ours, CONFIGS["zero3.json"], **SETTINGS)
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["fused"] for group in optimizer.param_groups)
    plain = torch.optim.AdamW(
        decay_groups(theirs, 0.1), lr=1e-2, betas=(0.9, 0.99), eps=1e-8, fused=False, foreach=False
    )
    for one, other in zip(train(ours, optimizer), train(theirs, plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "offload" in name or "nvme" in name])
def test_offloaded_states_are_updated_on_the_host(name, monkeypatch):
    """By DeepSpeed's CPU Adam, which is compiled at its first use: here only that it is asked for rightly."""
    asked = {}
    monkeypatch.setattr(
        deepspeed.ops.adam, "DeepSpeedCPUAdam", lambda groups, **more: asked.update(more) or "CPU Adam"
    )
    assert build_optimizer(make_model(), CONFIGS[name], **SETTINGS) == "CPU Adam"
    assert asked == {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "adamw_mode": True}


def test_biases_do_not_decay():
    matrices, flat = decay_groups(make_model(), 0.1)
    assert [param.dim() for param in matrices["params"]] == [2, 2] and matrices["weight_decay"] == 0.1
    assert [param.dim() for param in flat["params"]] == [1, 1] and flat["weight_decay"] == 0.0
