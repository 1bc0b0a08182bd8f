"""GPUs that torch cannot use are an error, not a run on the CPU."""

import pytest
import torch

from medsft import gpus
from medsft.engine import distributed
from medsft.errors import UserError
from medsft.inference.device import choose_device

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.fixture
def devices(tmp_path, monkeypatch):
    """Device files as a host with one GPU has them, of which torch finds none."""
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def fail(error):
    raise error


def test_gpus_that_torch_does_not_find(devices, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(
        torch.cuda, "init", lambda: fail(RuntimeError("The driver is too old\n(version 12020)."))
    )
    with pytest.raises(UserError) as caught:
        gpus.check_gpus("--device cpu helps.", devices)
    said = str(caught.value)
    assert said.startswith(f"this host has NVIDIA GPUs (nvidia0) that torch {torch.__version__} cannot use: ")
    assert "The driver is too old (version 12020). Builds for CUDA 13 need driver 580" in said
    assert said.endswith("--device cpu helps.")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="built without CUDA; the README's first step"):
        gpus.check_gpus("", devices)


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_gpus_that_are_hidden(devices, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus.check_gpus("", devices)


def test_gpus_that_were_not_given(devices):
    (devices / "nvidia0").unlink()
    (devices / "nvidia0").mkdir()  # as little to be opened for writing as what a job's cgroup keeps away
    gpus.check_gpus("", devices)


@pytest.mark.parametrize("visible", ["0,1", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"])
def test_gpus_that_are_named(devices, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match="nvidia0"):
        gpus.check_gpus("", devices)


@pytest.mark.parametrize(
    ("capability", "built", "has_code"),
    [
        ((7, 0), CUDA_13, False),  # V100
        ((7, 0), CUDA_12_6, True),
        ((7, 5), CUDA_13, True),
        ((8, 9), CUDA_13, True),  # Ada runs what is built for sm_86
        ((9, 0), [*CUDA_12_6[:-1], "sm_90a"], True),
        ((12, 0), CUDA_12_6, False),  # Blackwell
        ((12, 0), [*CUDA_12_6, "compute_90"], True),
        ((8, 0), ["sm_86"], False),
    ],
)
def test_code_for_a_gpu(monkeypatch, capability, built, has_code):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    device = torch.device("cuda", 1)
    if has_code:
        gpus.check_architecture(device)
    else:
        with pytest.raises(
            UserError, match=r"cuda:1 \(Tesla V100.*capability \d+\.\d, for which torch .*sm_"
        ):
            gpus.check_architecture(device)


def test_neither_training_nor_answering_goes_to_the_cpu_unseen(devices, monkeypatch):
    monkeypatch.setattr(gpus.check_gpus, "__defaults__", (devices,))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with pytest.raises(UserError, match="DS_ACCELERATOR=cpu trains on the CPU"):
        distributed.start(1)
    with pytest.raises(UserError, match="--device cpu computes on the CPU"):
        choose_device("auto")
    with pytest.raises(UserError, match=r"nvidia0.*--device cpu computes on the CPU"):
        choose_device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
