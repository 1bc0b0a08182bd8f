"""Products with int8 and int4 weights by torch's own kernels, and the choice of the fastest right one.

Legend: N rows of states, O output rows, I input columns.

torchao's weight-only int4 calls the operation that is called here on a GPU, and its weight-only int8 does
what `plain_product` does, so neither needs torchao. cpm_kernels multiplies int8 by int8: it rounds the states
to 8 bits as well, which the release does not, and what comes out is several times further off than plain
torch's (see the tests); it is no candidate. (The released code uses cpm_kernels only to start CUDA code of
its own.)
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from medsft.chatglm.quantization.linear import QuantizedLinear, plain_product
from medsft.chatglm.quantization.rows import dequantize_rows, quantize_rows, unpack_int4

_NUM_GROUP_COLUMNS = (256, 128, 64, 32)
"""Columns that may share a scale in torch's int4 products; ours share it over the whole row."""

_MOST_ROWS_INT8 = 16
"""Beyond so many rows of states, turning the weights back once is cheaper than torch's int8 product."""

_FEWEST_WEIGHTS = 1 << 20
"""Of a layer for which the ways are compared: smaller ones cost the call and not the product."""

_TIMED_ROWS = (1, 8)
"""Rows of states with which the ways are timed: one answer, and as many as the server writes side by side."""

_WORTH_IT = 1.2
"""A way must be so many times faster than plain torch, so that noise does not decide."""


@dataclass(frozen=True)
class Kernel:
    """A way to compute with the weights of a `QuantizedLinear`.

    bits, device_types: what it is for. pack: (weight, scale, dtype) as the layer holds them -> the tensors
    that `product` reads in their place; raises RuntimeError for shapes that it cannot take. product: (states
    [N, I], *packed) -> [N, O], without the bias.
    """

    name: str
    bits: tuple[int, ...]
    device_types: tuple[str, ...]
    pack: Callable[..., tuple[torch.Tensor, ...]]
    product: Callable[..., torch.Tensor]


def _int8_product(states: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if len(states) > _MOST_ROWS_INT8:
        return plain_product(states, weight, scale, 8)
    return torch._weight_int8pack_mm(states, weight, scale)


def _group_scales(scale: torch.Tensor, num_columns: int, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
    """Columns in a group, and scales and zero points [I / group, O, 2] for torch's int4 products."""
    fitting = [size for size in _NUM_GROUP_COLUMNS if num_columns % size == 0]
    if not fitting:
        raise RuntimeError(f"{num_columns} columns cannot be divided into groups of {_NUM_GROUP_COLUMNS}")
    scales = scale.to(dtype).expand(num_columns // fitting[0], -1)
    return fitting[0], torch.stack((scales, torch.zeros_like(scales)), dim=-1).contiguous()


def _pack_int4_for_cpu(
    weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    _, scales = _group_scales(scale, 2 * weight.shape[1], dtype)
    unsigned = unpack_int4(weight).int() + 8
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 1), scales


def _pack_int4_for_cuda(
    weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    _, scales = _group_scales(scale, 2 * weight.shape[1], dtype)
    # Both hold the even column in the high nibble; a flipped sign bit adds 8.
    return torch._convert_weight_to_int4pack(weight.view(torch.uint8) ^ 0x88, 8), scales


def _int4_product(operation: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def product(states: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return operation(states, weight, states.shape[1] // len(scales), scales)

    return product


KERNELS = (
    Kernel(
        "torch's int8 product",
        (8,),
        ("cpu", "cuda"),
        lambda weight, scale, dtype: (weight, scale.to(dtype)),
        _int8_product,
    ),
    Kernel(
        "torch's int4 product",
        (4,),
        ("cpu",),
        _pack_int4_for_cpu,
        _int4_product(torch.ops.aten._weight_int4pack_mm_for_cpu),
    ),
    Kernel(
        "torch's int4 product",
        (4,),
        ("cuda",),
        _pack_int4_for_cuda,
        _int4_product(torch.ops.aten._weight_int4pack_mm),
    ),
)
"""All in bf16, for which torch has them fast; fp32 and fp16 are left to plain torch."""


class KernelLinear(nn.Module):
    """A `QuantizedLinear` as one of the kernels wants it. For computing only: it is not saved."""

    def __init__(self, layer: QuantizedLinear, kernel: Kernel) -> None:
        super().__init__()
        self._product = kernel.product
        self.bias = layer.bias
        packed = kernel.pack(layer.weight.data, layer.weight_scale.data, layer.bias.dtype)
        for number, tensor in enumerate(packed):
            self.register_buffer(f"packed_{number}", tensor, persistent=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[…, I] -> […, O] in the type of `states`."""
        product = self._product(states.flatten(0, -2), *self.buffers(recurse=False))
        return product.unflatten(0, states.shape[:-1]).to(states.dtype) + self.bias


@dataclass(frozen=True)
class Trial:
    """How one way did.

    seconds: for a product with one row of states and one with eight, medians. error: of the products,
    relative to those in fp32. fault: why it could not be tried, else "".
    """

    name: str
    kernel: Kernel | None
    seconds: float = float("inf")
    error: float = float("inf")
    fault: str = ""


@cache
@torch.inference_mode()
def try_out(
    bits: int, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Trial, ...]:
    """Every way that these allow, on a layer of random weights; plain torch, whose kernel is None, first.

    Once in a process: some 40 products for each way.
    """
    chance = torch.Generator().manual_seed(0)
    layer = QuantizedLinear(num_columns, num_rows, bits)
    weight, scale = quantize_rows(torch.randn(num_rows, num_columns, generator=chance), bits)
    layer.load_state_dict({"weight": weight, "weight_scale": scale, "bias": torch.zeros(num_rows)})
    layer.bias.data = layer.bias.data.to(dtype)
    layer.to(device)
    states = torch.randn(max(_TIMED_ROWS), num_columns, generator=chance).to(device)
    exact = states @ dequantize_rows(layer.weight, layer.weight_scale, bits, torch.float32).T
    states = states.to(dtype)
    ways: dict[str, Kernel | None] = {"plain torch": None}
    ways |= {
        kernel.name: kernel
        for kernel in KERNELS
        if bits in kernel.bits and device.type in kernel.device_types and dtype == torch.bfloat16
    }
    return tuple(_tried(name, kernel, layer, states, exact) for name, kernel in ways.items())


def _tried(
    name: str, kernel: Kernel | None, layer: QuantizedLinear, states: torch.Tensor, exact: torch.Tensor
) -> Trial:
    try:
        way = layer if kernel is None else KernelLinear(layer, kernel)
        error = float((way(states).float() - exact).norm() / exact.norm())
        times_s = [_median_s(lambda rows=rows: way(states[:rows]), states.device) for rows in _TIMED_ROWS]
    except (RuntimeError, NotImplementedError) as problem:  # a shape or a device that torch cannot do
        return Trial(name, kernel, fault=str(problem).splitlines()[0])
    return Trial(name, kernel, sum(times_s), error)


def choose(trials: Sequence[Trial]) -> Trial:
    """The fastest whose products are as exact as plain torch's, which is the first and the default."""
    plain = trials[0]
    right = [trial for trial in trials[1:] if trial.error <= 1.5 * plain.error + 1e-3]
    fastest = min(right, key=lambda trial: trial.seconds, default=plain)
    return fastest if fastest.seconds * _WORTH_IT < plain.seconds else plain


def use_fastest(model: nn.Module) -> str:
    """Tries the ways in the shape of the model's largest quantised layer and puts the best into all layers.

    Gives what was chosen, and why; "" for a model that is not quantised. The model can be computed with but
    not saved afterwards. Layers that the way cannot take stay as they are.
    """
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    largest = max(layers, key=lambda layer: layer.weight.numel(), default=None)
    if largest is None:
        return ""
    dtype, device, bits = largest.bias.dtype, largest.weight.device, largest.bits
    where = f"int{bits} in {str(dtype).removeprefix('torch.')} on {device.type}"
    num_rows, num_columns = largest.weight.shape[0], largest.weight.shape[1] * 8 // bits
    if num_rows * num_columns < _FEWEST_WEIGHTS:
        return f"{where}: plain torch (layers too small to choose)"
    trials = try_out(bits, num_rows, num_columns, dtype, device)
    best, plain = choose(trials), trials[0]
    if best.kernel is not None:
        use_kernel(model, best.kernel)
        return f"{where}: {best.name}, {plain.seconds / best.seconds:.1f} times as fast as plain torch"
    reasons = [f"{trial.name}: {_why_not(trial, plain)}" for trial in trials[1:]]
    return f"{where}: plain torch ({'; '.join(reasons) or 'nothing else for this type'})"


def _why_not(trial: Trial, plain: Trial) -> str:
    return trial.fault or f"{plain.seconds / trial.seconds:.1f} times as fast, error {trial.error:.1%}"


def use_kernel(model: nn.Module, kernel: Kernel) -> None:
    """Puts a `KernelLinear` in the place of every `QuantizedLinear` that the kernel can take."""
    for name, child in model.named_children():
        if not isinstance(child, QuantizedLinear):
            use_kernel(child, kernel)
            continue
        try:
            setattr(model, name, KernelLinear(child, kernel))
        except RuntimeError:
            continue


def _median_s(call: Callable[[], object], device: torch.device, repetitions: int = 7) -> float:
    taken = []
    for _ in range(repetitions + 2):  # the first two warm up
        begin_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - begin_s)
    return statistics.median(taken[2:])
