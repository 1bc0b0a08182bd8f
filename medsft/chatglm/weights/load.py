"""A checked model folder -> the model in one process's memory."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.chatglm.weights.check import open_release
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
    folder: str | Path, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu"
) -> ChatGLMForConditionalGeneration:
    """The model of `folder` in eval mode, its parameters in `dtype` (None: as stored) on `device`.

    Each tensor is read once, straight into its place; the peak of private memory is the model itself. The
    folder's generation_config.json, where there is one, becomes the model's. Raises UserError as
    `check_release` does, and for a dtype that is no floating type.
    """
    model, files = open_release(folder)
    dtype = files.dtype(EMBEDDING_NAME) if dtype is None else parse_dtype(dtype)
    tensors = {
        name: torch.empty(parameter.shape, dtype=dtype, device=device).copy_(files.read(name))
        for name, parameter in model.named_parameters()
    }
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
