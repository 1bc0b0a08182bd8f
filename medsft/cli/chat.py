"""`medsft chat`: what a model answers."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from medsft.cli.options import (
    DeviceOption,
    ModelOption,
    PolishOption,
    Precision,
    PrecisionOption,
    QuantizeOption,
    Template,
    TemplateOption,
    num_bits,
)
from medsft.errors import UserError


def chat(
    model: ModelOption,
    prompt_template: TemplateOption = Template.auto,
    history: Annotated[
        bool | None,
        typer.Option(help="Keep earlier rounds (default: yes, but not in the med-chatglm form)."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max_new_tokens", min=1, help="Longest answer, tokens (default: 512, or half of what fits)."
        ),
    ] = None,
    greedy: Annotated[bool, typer.Option(help="Always the most likely token.")] = False,
    top_p: Annotated[float, typer.Option("--top_p", min=0.0, max=1.0, help="Nucleus of sampling.")] = 0.7,
    top_k: Annotated[int, typer.Option("--top_k", min=0, help="Tokens to draw from; 0: no limit.")] = 50,
    temperature: Annotated[float, typer.Option(min=0.01, help="Higher is more varied.")] = 0.95,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition_penalty", min=0.01, help="Above 1: fewer repetitions.")
    ] = 1.0,
    num_beams: Annotated[
        int, typer.Option("--num_beams", min=1, help="Answers followed at once; above 1 none is streamed.")
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Makes sampled answers repeatable.")
    ] = None,
    postprocess: PolishOption = True,
    quantize: QuantizeOption = None,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """Talk to a model in the terminal, or pipe questions in, one a line."""
    import torch

    from medsft.inference.chat import chat as converse
    from medsft.inference.responder import open_responder
    from medsft.inference.sampling import Sampling

    if sys.stdin is None:
        raise UserError("standard input is closed, so there is nobody to ask; use a terminal or a pipe.")
    sys.stdin.reconfigure(errors="strict")  # a wrong encoding shall be told, not passed on to the model
    sys.stdout.reconfigure(errors="replace")  # a terminal in GBK lacks signs that an answer may hold
    if sys.stdin.isatty():
        typer.echo(f"loading {model} …", err=True)
    responder = open_responder(
        model, prompt_template.value, dtype.value, device, num_bits(quantize), postprocess
    )
    if sys.stdin.isatty():
        typer.echo(responder.summary, err=True)
    if seed is not None:
        torch.manual_seed(seed)  # once: the second answer to a question may differ from the first
    keep = responder.keeps_history if history is None else history
    longest = max_new_tokens or min(512, responder.model.config.max_sequence_length // 2)
    responder.prompt_ids("", (), longest)  # refuses a limit that leaves no room, before anything is typed
    sampling = Sampling(longest, greedy, top_p, top_k, temperature, repetition_penalty, num_beams)
    converse(responder, sampling, keep, sys.stdin)
