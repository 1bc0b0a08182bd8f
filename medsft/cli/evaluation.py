"""`medsft eval`: how well a model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.cli.options import (
    DeviceOption,
    ModelOption,
    Precision,
    PrecisionOption,
    QuantizeOption,
    Template,
    TemplateOption,
    num_bits,
)


def evaluate(
    model: ModelOption,
    questions: Annotated[list[Path], typer.Option(help="Instruction files with answers; repeatable.")],
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", help="Folder for predictions and scores (default: MODEL/evaluation)."),
    ] = None,
    num_questions: Annotated[
        int | None, typer.Option("--num_questions", min=1, help="At most so many, from the front.")
    ] = None,
    generate: Annotated[bool, typer.Option(help="Generate answers and score them.")] = True,
    max_source_length: Annotated[
        int, typer.Option("--max_source_length", min=2, help="Longest question, tokens.")
    ] = 256,
    max_target_length: Annotated[
        int, typer.Option("--max_target_length", min=3, help="Longest answer, tokens.")
    ] = 256,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Questions at once.")] = 8,
    prompt_template: TemplateOption = Template.auto,
    quantize: QuantizeOption = None,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """Loss, perplexity, and scores of a model's answers; goes on after an interruption."""
    from rich.console import Console

    from medsft.cli.progress import if_interrupted, progress
    from medsft.evaluation.evaluate import evaluate_model, evaluation_table

    folder = output_dir or model / "evaluation"
    kept = f"the answers so far are kept in {folder}; the same command asks only what is missing"
    with if_interrupted(kept if generate else "nothing is kept; the same command begins again"):
        found = evaluate_model(
            model,
            questions,
            folder,
            num_questions,
            generate,
            max_source_length,
            max_target_length,
            batch_size,
            prompt_template.value,
            dtype.value,
            device,
            num_bits(quantize),
            progress,
        )
    if found is not None:
        Console().print(evaluation_table(found))
        typer.echo(f"written to {folder}")
