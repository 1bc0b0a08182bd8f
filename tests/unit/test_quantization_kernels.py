"""Every kernel against plain torch in fp32, on each device there is; and the choice among them."""

from pathlib import Path

import pytest
import torch

from medsft.chatglm.quantization import QuantizedLinear, dequantize_rows, kernels, quantize_rows
from medsft.chatglm.quantization.kernels import KERNELS, KernelLinear, Trial, choose, try_out, use_fastest
from medsft.chatglm.weights import load_model

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CPU = torch.device("cpu")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PAIRS = [(kernel, device) for kernel in KERNELS for device in DEVICES if device in kernel.device_types]


def make_layer(bits, num_columns=256, num_rows=64, dtype=torch.bfloat16, device="cpu"):
    random = torch.Generator().manual_seed(0)
    layer = QuantizedLinear(num_columns, num_rows, bits)
    weight = torch.randn(num_rows, num_columns, generator=random)
    integers, scale = quantize_rows(weight * torch.logspace(-1, 1, num_rows)[:, None], bits)
    layer.load_state_dict(
        {"weight": integers, "weight_scale": scale, "bias": torch.randn(num_rows, generator=random)}
    )
    layer.bias.data = layer.bias.data.to(dtype)
    return layer.to(device)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (70,)], ids=str)
@pytest.mark.parametrize(("kernel", "device"), PAIRS, ids=lambda item: getattr(item, "name", item))
def test_products_are_those_of_the_restored_weights(kernel, device, shape):
    layer = make_layer(kernel.bits[0], device=device)
    states = torch.randn(*shape, 256, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    weights = dequantize_rows(layer.weight, layer.weight_scale, layer.bits, torch.float32)
    exact = states.float() @ weights.T + layer.bias.float()
    found = KernelLinear(layer, kernel)(states)
    assert (found.dtype, found.shape) == (torch.bfloat16, exact.shape)
    assert float((found.float() - exact).norm() / exact.norm()) < 0.005
    assert float((layer(states).float() - exact).norm() / exact.norm()) < 0.005


@pytest.mark.parametrize("bits", [8, 4])
def test_every_way_is_tried_and_told(bits):
    plain, *others = try_out(bits, 64, 256, torch.bfloat16, CPU)
    assert (plain.name, plain.kernel) == ("plain torch", None)
    assert 0 < plain.seconds < float("inf") and plain.error < 0.005
    assert [trial.kernel.bits for trial in others] == [(bits,)]
    assert not others[0].fault and others[0].error < 0.005
    assert [trial.name for trial in try_out(bits, 64, 256, torch.float32, CPU)] == ["plain torch"]
    assert try_out(bits, 64, 256, torch.bfloat16, CPU)[0] is plain  # not measured again


def test_a_shape_that_a_kernel_cannot_take_is_a_fault_and_stays_plain():
    _, trial = try_out(4, 64, 36, torch.bfloat16, CPU)
    assert "36 columns" in trial.fault
    model = torch.nn.Sequential(make_layer(4, num_columns=36), make_layer(4))
    kernels.use_kernel(model, trial.kernel)
    assert [type(layer) for layer in model] == [QuantizedLinear, KernelLinear]


def test_rounding_the_states_too_is_several_times_less_exact():
    """As cpm_kernels' product of int8 and int8 does it, in torch: why it is no candidate."""
    layer = make_layer(8, num_columns=1024, dtype=torch.float16)
    layer.bias.data.zero_()
    states = torch.randn(8, 1024, generator=torch.Generator().manual_seed(1))
    weights = dequantize_rows(layer.weight, layer.weight_scale, 8, torch.float32)
    exact = states @ weights.T
    steps = states.abs().amax(dim=1, keepdim=True) / 127

    def error(product):
        return float((product.float() - exact).norm() / exact.norm())

    rounded = error(((states / steps).round() * steps) @ weights.T)
    plain = error(layer(states.half()))
    assert rounded > 5 * plain
    cpm = Trial("int8 by int8", KERNELS[0], 0.0, rounded)
    assert choose([Trial("plain torch", None, 1.0, plain), cpm]).name == "plain torch"


@pytest.mark.parametrize(
    ("seconds", "error", "is_taken"),
    [(0.1, 0.002, True), (0.1, 0.02, False), (0.9, 0.001, False), (2.0, 0.001, False)],
    ids=["fast and right", "fast and wrong", "hardly faster", "slower"],
)
def test_the_fastest_right_one_is_taken(seconds, error, is_taken):
    plain, other = Trial("plain torch", None, 1.0, 0.002), Trial("other", KERNELS[0], seconds, error)
    broken = Trial("broken", KERNELS[1], fault="no such operation")
    assert choose([plain, other, broken]) is (other if is_taken else plain)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_computes_with_what_was_chosen(bits, monkeypatch):
    prompt = torch.tensor([[7, 8, 9, 10, 11]])
    positions = torch.arange(5).expand(1, 2, 5)
    model = load_model(TINY, "bf16", quantize=bits)
    assert "too small to choose" in use_fastest(model)
    with torch.inference_mode():
        before = model(prompt, position_ids=positions).logits
    monkeypatch.setattr(kernels, "_FEWEST_WEIGHTS", 1)
    monkeypatch.setattr(kernels, "_WORTH_IT", 0.0)
    told = use_fastest(model)
    assert f"int{bits} in bfloat16 on cpu: torch's int{bits} product" in told
    assert sum(isinstance(module, KernelLinear) for module in model.modules()) == 4 * 28
    with torch.inference_mode():
        after = model(prompt, position_ids=positions).logits
    assert float((after - before).norm() / before.norm()) < 0.05
    assert use_fastest(load_model(TINY, "fp32")) == ""
    assert "nothing else for this type" in use_fastest(load_model(TINY, "fp32", quantize=bits))
