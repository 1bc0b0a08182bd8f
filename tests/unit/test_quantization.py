"""int8 and int4 weights: the released numbers, layers that compute with them, folders that hold them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModel

from medsft.chatglm.base import open_base_model
from medsft.chatglm.quantization import (
    QUANTIZED_NAMES,
    QuantizedLinear,
    dequantize_rows,
    pack_int4,
    quantize_rows,
    unpack_int4,
)
from medsft.chatglm.weights import check_release, convert, load_model, open_weights
from medsft.errors import UserError

TINY = Path(__file__).parents[1] / "golden" / "tiny"
RECIPE = json.loads((TINY / "reference.json").read_text(encoding="utf-8"))["adamw20"]
LAYER = "transformer.layers.0.mlp.dense_h_to_4h.weight"


def test_int4_packing_is_exact_for_every_pair():
    values = torch.arange(-8, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(values, values)  # [256, 2]
    packed = pack_int4(pairs)
    assert packed.shape == (256, 1)
    assert packed.unique().numel() == 256
    assert torch.equal(unpack_int4(packed), pairs)


def test_the_even_column_is_in_the_high_nibble():
    assert pack_int4(torch.tensor([[1, 2], [-1, 7]], dtype=torch.int8)).tolist() == [[0x12], [0xF7 - 256]]


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_are_quantised_as_the_release_does_it(bits):
    torch.manual_seed(0)
    weight = (torch.randn(64, 32) * torch.logspace(-1, 1, 64)[:, None]).half()
    integers, scale = quantize_rows(weight, bits)
    assert (integers.dtype, scale.dtype) == (torch.int8, torch.float16)
    assert integers.shape == (64, 32 * bits // 8)
    largest = 2 ** (bits - 1) - 1
    # The formula of the released QuantizedLinear.
    torch.testing.assert_close(
        scale, (weight.abs().max(dim=-1).values / largest).half(), rtol=2e-3, atol=1e-7
    )
    unpacked = unpack_int4(integers) if bits == 4 else integers
    assert torch.equal(unpacked.abs().amax(dim=1), torch.full((64,), largest, dtype=torch.int8))
    restored = dequantize_rows(integers, scale, bits, torch.float32)
    assert ((restored - weight.float()).abs() <= 0.501 * scale.float()[:, None]).all()
    again, scale_again = quantize_rows(restored, bits)
    assert torch.equal(again, integers)
    assert torch.equal(scale_again, scale)


def test_rows_that_scales_cannot_express():
    tiny, zero = torch.full((1, 4), 1e-9), torch.zeros(1, 4)
    integers, scale = quantize_rows(torch.cat((tiny, zero)), 8)
    assert not integers.any() and not scale.any()
    for bad in (math.nan, math.inf, 1e8):
        with pytest.raises(UserError, match="cannot be quantised"):
            quantize_rows(torch.tensor([[1.0, bad]]), 8)
    with pytest.raises(UserError, match="3 columns"):
        quantize_rows(torch.ones(2, 3), 4)
    with pytest.raises(UserError, match="5 bits; it may be 8 or 4"):
        quantize_rows(torch.ones(2, 4), 5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_layer_computes_with_the_restored_weights(bits, dtype, monkeypatch):
    monkeypatch.setattr("medsft.chatglm.quantization.linear._BLOCK_ELEMENTS", 7 * 16)  # blocks of 7 rows
    torch.manual_seed(0)
    layer = QuantizedLinear(16, 24, bits)
    integers, scale = quantize_rows(torch.randn(24, 16), bits)
    layer.load_state_dict({"weight": integers, "weight_scale": scale, "bias": torch.randn(24)})
    layer.bias.data = layer.bias.data.to(dtype)
    states = torch.randn(2, 3, 16, dtype=dtype)
    weights = dequantize_rows(integers, scale, bits, torch.float32)
    expected = F.linear(states.float(), weights, layer.bias.float())
    assert layer(states).dtype == dtype
    rounding = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(layer(states).float(), expected, **rounding)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Bits -> the tiny model converted, in the containers of the releases."""
    root = tmp_path_factory.mktemp("量 化")
    for bits in (8, 4):
        convert(TINY, root / f"int{bits}", quantize=bits, weights_format="bin", dtype="float16")
    return {bits: root / f"int{bits}" for bits in (8, 4)}


@pytest.mark.parametrize("bits", [8, 4])
def test_a_converted_folder_is_in_the_released_format(folders, bits):
    files, original = open_weights(folders[bits]), open_weights(TINY)
    assert json.loads((folders[bits] / "config.json").read_text())["quantization_bit"] == bits
    quantised = {name for name in files.names if QUANTIZED_NAMES.fullmatch(name)}
    assert len(quantised) == 28 * 4
    for name in files.names:
        kind = torch.int8 if name in quantised else torch.float16
        assert files.dtype(name) == kind, name
    assert {name for name in files.names if name.endswith("_scale")} == {
        f"{name}_scale" for name in quantised
    }
    integers, scale = quantize_rows(original.read(LAYER), bits)
    assert torch.equal(files.read(LAYER), integers)
    assert torch.equal(files.read(f"{LAYER}_scale"), scale)
    check_release(folders[bits], read_everything=True)


def mean_loss(model):
    """Nats a supervised token over the recipe's sequences, which the tiny model fits to some degree."""
    total, num_targets = 0.0, 0
    for batch in RECIPE["batches"]:
        for example in batch:
            labels = torch.tensor([example["labels"]])
            with torch.no_grad():
                loss = model(torch.tensor([example["input_ids"]]), labels=labels, num_items_in_batch=1.0).loss
            total, num_targets = total + float(loss), num_targets + int((labels != -100).sum())
    return total / num_targets


def linear_bytes(model):
    return sum(p.nbytes for name, p in model.named_parameters() if QUANTIZED_NAMES.fullmatch(name))


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.002), (4, 0.05)])
def test_quantised_on_load_and_from_a_folder_agree(folders, bits, tolerance):
    original = load_model(TINY, "fp32")
    on_load = load_model(TINY, "fp32", quantize=bits)
    from_folder = load_model(folders[bits], "fp32")
    ours, theirs = dict(on_load.named_parameters()), dict(from_folder.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert linear_bytes(original) == linear_bytes(on_load) * 32 // bits
    assert on_load.config.quantization_bit == bits
    change = mean_loss(from_folder) / mean_loss(original) - 1
    assert 0 < abs(change) < tolerance


@pytest.mark.parametrize("bits", [8, 4])
def test_transformers_opens_and_writes_it_too(folders, bits, tmp_path):
    model = AutoModel.from_pretrained(folders[bits])
    assert isinstance(model.get_submodule(LAYER.removesuffix(".weight")), QuantizedLinear)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    files = open_weights(folders[bits])
    assert all(torch.equal(saved[name], files.read(name)) for name in saved)
    assert saved.keys() >= {name for name in files.names if "layers" in name and "rotary" not in name}


def test_what_needs_the_weights_themselves_refuses(folders, tmp_path):
    for refused, use in (
        (lambda: open_base_model(folders[8]), "full-parameter training"),
        (lambda: convert(folders[8], tmp_path / "new"), "medsft convert"),
        (lambda: load_model(folders[8], quantize=4), "quantising to 4 bits"),
    ):
        with pytest.raises(UserError, match=f"quantization_bit 8.*{use}.*fp16 release"):
            refused()
    with pytest.raises(UserError, match="cannot be quantised to 3 bits"):
        load_model(TINY, quantize=3)
    assert load_model(folders[8], quantize=8).config.quantization_bit == 8
