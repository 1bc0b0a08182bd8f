"""A checked model folder -> the model in one process's memory."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig

from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.chatglm.quantization import QUANTIZED_NAMES, SCALE_SUFFIX, check_bits, quantize_rows
from medsft.chatglm.weights.check import model_on_meta, open_release, refuse_quantised
from medsft.chatglm.weights.files import EMBEDDING_NAME
from medsft.chatglm.weights.placement import (
    check_accelerate,
    check_host_memory,
    connect,
    device_of,
    num_bytes,
    place,
)
from medsft.errors import UserError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def load_model(
    folder: str | Path,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | Sequence[torch.device] = "cpu",
    quantize: int | None = None,
) -> ChatGLMForConditionalGeneration:
    """The model of `folder` in eval mode, its parameters in `dtype` on `device`; on several, block by block.

    dtype: None, as stored; "auto", what this device computes fast in (see `automatic_dtype`); or a type.

    Each tensor is read once, straight into its place; the peak of private memory is the model itself and,
    with `quantize`, some copies of its largest matrix in fp32. The folder's generation_config.json, where
    there is one, becomes the model's.

    quantize: 8 or 4 bits for the linear layers of the blocks (see `medsft.chatglm.quantization`). What a
    folder holds as integers, and their scales, keep their types; all other tensors take `dtype`.

    Raises UserError as `check_release` does, for a dtype that is no floating type, for a folder that is
    quantised otherwise than asked for, for several devices without accelerate, and where the host's memory
    does not hold the weights.
    """
    devices = [torch.device(device)] if isinstance(device, str | torch.device) else list(device)
    if len(devices) > 1:
        check_accelerate()
    model, files = open_release(folder)
    stored_bits = model.config.quantization_bit
    if dtype == "auto":
        dtype = automatic_dtype(devices[0], bool(quantize or stored_bits))
    dtype = files.dtype(EMBEDDING_NAME) if dtype is None else parse_dtype(dtype)
    if quantize is not None and quantize != stored_bits:
        refuse_quantised(files.folder, model.config, f"quantising to {quantize} bits")
        check_bits(quantize)
        model.config.quantization_bit = quantize
        model = model_on_meta(model.config)
    if devices[0].type == "cpu":
        check_host_memory(files.folder, num_bytes(model, dtype))
    placement = place(model, dtype, devices)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in tensors:
            continue
        device = device_of(name, placement)
        if QUANTIZED_NAMES.fullmatch(name) and model.config.quantization_bit != stored_bits:
            integers, scale = quantize_rows(files.read(name), quantize)
            tensors[name] = integers.to(device)
            tensors[name + SCALE_SUFFIX] = scale.to(device)
        else:
            is_quantised = parameter.dtype == torch.int8 or name.endswith(SCALE_SUFFIX)
            kept = parameter.dtype if is_quantised else dtype
            tensors[name] = torch.empty(parameter.shape, dtype=kept, device=device).copy_(files.read(name))
    # Not strict, as of a tied pair only one is given; open_release has compared all names.
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    if (files.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(files.folder)
    if len(devices) > 1:
        connect(model, placement)
    return model.eval()


def automatic_dtype(device: torch.device, is_quantised: bool) -> torch.dtype | None:
    """fp32 on a CPU, elsewhere None: as stored. Quantised models: bf16 where the device computes in it.

    In bf16 torch has its fast products with int8 and int4 weights.
    """
    if device.type == "cuda":
        computes_in_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        computes_in_bf16 = (
            torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    if is_quantised and computes_in_bf16:
        return torch.bfloat16
    return torch.float32 if device.type == "cpu" else None


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating type by torch's name or its short one ("fp16"); raises UserError for anything else."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or not found.is_floating_point:
        raise UserError(f"The type {dtype} is not one for weights; it may be {', '.join(DTYPES)}.")
    return found
