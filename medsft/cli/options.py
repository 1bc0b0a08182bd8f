"""Options that several commands take alike."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Template(StrEnum):
    """Form of a question; auto: what the model was trained with."""

    auto = "auto"
    none = "none"
    chatglm = "chatglm"
    med_chatglm = "med-chatglm"


class Precision(StrEnum):
    """Number type of the weights in memory."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


class StoredType(StrEnum):
    """Number type of the weights in a file."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Quantization(StrEnum):
    """Bits of a weight in memory or in a file."""

    int8 = "8"
    int4 = "4"


def num_bits(quantize: Quantization | None) -> int | None:
    """As a number, where it is given."""
    return None if quantize is None else int(quantize.value)


ModelOption = Annotated[Path, typer.Option("--model", help="Model folder, or a run's output folder.")]
TemplateOption = Annotated[
    Template,
    typer.Option(
        "--prompt_template",
        "--prompt-template",
        help="How a question is written for the model; auto: as it was trained.",
    ),
]
PrecisionOption = Annotated[
    Precision, typer.Option(help="auto: as stored, fp32 on a CPU; quantised: bf16 where possible.")
]
QuantizeOption = Annotated[
    Quantization | None, typer.Option(help="Hold the weights of the blocks in 8 or 4 bits.")
]
PolishOption = Annotated[
    bool,
    typer.Option(
        "--postprocess/--no-postprocess", help="Full-width punctuation in Chinese, as the release does it."
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1 …; auto: a GPU if there is one; cuda:0,cuda:1 or all: blocks on several GPUs."
    ),
]
