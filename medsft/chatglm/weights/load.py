"""A checked model folder -> the model in one process's memory."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.chatglm.quantization import QUANTIZED_NAMES, SCALE_SUFFIX, check_bits, quantize_rows
from medsft.chatglm.weights.check import model_on_meta, open_release, refuse_quantised
from medsft.chatglm.weights.files import EMBEDDING_NAME
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
    device: torch.device | str = "cpu",
    quantize: int | None = None,
) -> ChatGLMForConditionalGeneration:
    """The model of `folder` in eval mode, its parameters in `dtype` (None: as stored) on `device`.

    Each tensor is read once, straight into its place; the peak of private memory is the model itself and,
    with `quantize`, some copies of its largest matrix in fp32. The folder's generation_config.json, where
    there is one, becomes the model's.

    quantize: 8 or 4 bits for the linear layers of the blocks (see `medsft.chatglm.quantization`). What a
    folder holds as integers, and their scales, keep their types; all other tensors take `dtype`.

    Raises UserError as `check_release` does, for a dtype that is no floating type, and for a folder that is
    quantised otherwise than asked for.
    """
    model, files = open_release(folder)
    dtype = files.dtype(EMBEDDING_NAME) if dtype is None else parse_dtype(dtype)
    stored_bits = model.config.quantization_bit
    if quantize is not None and quantize != stored_bits:
        refuse_quantised(files.folder, model.config, f"quantising to {quantize} bits")
        check_bits(quantize)
        model.config.quantization_bit = quantize
        model = model_on_meta(model.config)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in tensors:
            continue
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
    return model.eval()


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating type by torch's name or its short one ("fp16"); raises UserError for anything else."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or not found.is_floating_point:
        raise UserError(f"The type {dtype} is not one for weights; it may be {', '.join(DTYPES)}.")
    return found
