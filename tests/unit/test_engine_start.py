"""How a rank finds its GPU, and what of a step is measured, with the parts of a GPU host put in."""

import os
from types import SimpleNamespace

import deepspeed
import deepspeed.accelerator
import pytest
import torch
import torch.distributed as dist
from torch import nn

from medsft.engine import distributed
from medsft.engine.distributed import World
from medsft.engine.step import TrainStep
from medsft.errors import UserError


@pytest.fixture
def gpu_host(monkeypatch):
    """A host whose ranks see so many GPUs; the processes meet nobody."""

    def shows(num_gpus):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        return chosen

    chosen = []
    monkeypatch.setitem(vars(deepspeed.ops), "__compatible_ops__", {})  # else probed for by the accelerator
    accelerator = SimpleNamespace(device_name=lambda: "cuda")
    monkeypatch.setattr(deepspeed.accelerator, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(distributed, "check_architecture", lambda device: None)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **_: None)
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("OMPI_COMM_WORLD_LOCAL_RANK", raising=False)
    return shows


def test_a_rank_that_sees_one_gpu_takes_it_and_tells_deepspeed_so(gpu_host, monkeypatch):
    chosen = gpu_host(1)
    world = distributed.start(1)
    assert (world.rank, world.local_rank, world.device) == (3, 0, torch.device("cuda", 0))
    assert (chosen, os.environ["LOCAL_RANK"]) == ([0], "0")
    assert "OMPI_COMM_WORLD_LOCAL_RANK" not in os.environ  # DeepSpeed would take it for a start by mpirun
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", "3")
    distributed.start(1)
    assert os.environ["LOCAL_RANK"] == os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == "0"


def test_a_rank_that_sees_all_gpus_takes_its_own(gpu_host):
    chosen = gpu_host(4)
    world = distributed.start(1)
    assert (world.local_rank, world.device, chosen) == (3, torch.device("cuda", 3), [3])
    assert os.environ["LOCAL_RANK"] == "3"
    gpu_host(2)
    with pytest.raises(UserError, match="rank 3 is number 3 on this host, which shows 2 GPUs"):
        distributed.start(1)


class Engine:
    """As much of DeepSpeed's engine as a step needs, around one layer."""

    def __init__(self):
        self.module = nn.Linear(2, 1)
        inner = torch.optim.SGD(self.module.parameters(), lr=0.1)
        scaler = SimpleNamespace(dynamic=False, cur_scale=1)
        self.optimizer = SimpleNamespace(loss_scaler=scaler, optimizer=inner, param_groups=inner.param_groups)

    def __call__(self, inputs, **_):
        return SimpleNamespace(loss=self.module(inputs).mean())

    def backward(self, loss, scale_wrt_gas):
        loss.backward()

    def step(self):
        self.optimizer.optimizer.step()

    def set_gradient_accumulation_boundary(self, is_boundary):
        pass

    def was_step_applied(self):
        return True

    def get_global_grad_norm(self):
        return 1.0


class MicroBatch:
    def to(self, device, non_blocking):
        return self

    def model_inputs(self):
        return {"inputs": torch.ones(3, 2)}


def test_own_work_is_that_of_the_measured_steps_alone(monkeypatch):
    clock = SimpleNamespace(now_s=0.0)

    def tick():
        clock.now_s += 1.0
        return clock.now_s

    monkeypatch.setattr("time.perf_counter", tick)
    engine = Engine()
    step = TrainStep(engine, World(0, 1, 0, torch.device("cpu")), lambda step: 0.1, 1)
    batches = [MicroBatch(), MicroBatch()]
    step(0, batches, 6, measure=True)
    engine.module(torch.ones(3, 2))  # a validation
    # Two forward passes and two updates, a second each by this clock.
    assert step.state().own_s == 4.0
    step(1, batches, 6, measure=False)
    engine.module(torch.ones(3, 2))
    assert step.state().own_s == 0.0
    step(2, batches, 6, measure=True)
    step(3, batches, 6, measure=False)
    step(4, batches, 6, measure=True)
    assert step.state().own_s == 4.0  # of a step, however many were measured
