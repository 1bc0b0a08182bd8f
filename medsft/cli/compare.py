"""`medsft compare`: two models, the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft import exit_codes
from medsft.cli.options import (
    DeviceOption,
    Precision,
    PrecisionOption,
    QuantizeOption,
    Template,
    TemplateOption,
    num_bits,
)
from medsft.errors import UserError
from medsft.terminal import harmless


def compare(
    base: Annotated[Path, typer.Option(help="Model folder before training.")],
    tuned: Annotated[Path, typer.Option(help="Model or run folder after training.")],
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="Questions, with answers where they are known; repeatable (default: 64 of ours)."),
    ] = None,
    choices: Annotated[
        list[Path] | None,
        typer.Option(help="Multiple-choice suite in C-Eval's, CMB's or MedQA's form; repeatable."),
    ] = None,
    general_choices: Annotated[
        list[Path] | None,
        typer.Option("--general_choices", help="The same on other things than medicine; repeatable."),
    ] = None,
    num_questions: Annotated[
        int | None,
        typer.Option(
            "--num_questions", min=1, help="At most so many of each kind and suite, from the front."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the tables there too (.md or .html).")] = None,
    min_exact: Annotated[
        float, typer.Option("--min_exact", min=0.0, max=1.0, help="Exit 1 below this share of exact answers.")
    ] = 0.0,
    max_forgetting: Annotated[
        float | None,
        typer.Option(
            "--max_forgetting", help="Exit 1 when the loss of general answers grew by more than this (nats)."
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            "--max_accuracy_drop",
            min=-1.0,
            max=1.0,
            help="Exit 1 when the share of right general answers fell by more than this (0.1: 10 points).",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", min=1, help="Longest answer, tokens.")
    ] = 128,
    prompt_template: TemplateOption = Template.auto,
    quantize: QuantizeOption = None,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """The same questions to two models, side by side, greedily answered, with a verdict."""
    from rich.console import Console

    from medsft.cli.progress import if_interrupted, progress
    from medsft.evaluation.compare import compare_models
    from medsft.evaluation.comparison_page import check_name, write_comparison
    from medsft.evaluation.comparison_table import comparison_table, measures_table
    from medsft.evaluation.findings import Gate
    from medsft.evaluation.multiple_choice import read_suite
    from medsft.evaluation.question_set import GENERAL, IN_THE_BOX, first_of_each_kind, read_questions

    if output is not None:
        check_name(output)
    asked = first_of_each_kind(read_questions(questions or [IN_THE_BOX]), num_questions)
    suites = [read_suite(path, False, num_questions) for path in choices or ()]
    suites += [read_suite(path, True, num_questions) for path in general_choices or ()]
    general = [question for question in asked if question.kind == GENERAL]
    if min_exact > 0 and not any(question.expected for question in asked):
        raise UserError(
            "--min_exact needs questions with answers, and there are none. Write the answers into the file "
            '("response"), or leave --min_exact out.'
        )
    if max_forgetting is not None and not any(one.expected for one in general):
        raise UserError(
            "--max_forgetting needs general questions with answers, and there are none. Mark them in the "
            'file with "kind": "general", or leave --questions out to use those in the box.'
        )
    if max_accuracy_drop is not None and not general_choices and not any(one.accepted for one in general):
        raise UserError(
            "--max_accuracy_drop needs general questions that can be right or wrong, and there are none. "
            'Give --general_choices, mark questions with "kind": "general" and "accepted": ["…"], or leave '
            "--questions out to use those in the box."
        )
    with if_interrupted("nothing of it is kept; the same command asks everything again"):
        findings = compare_models(
            base,
            tuned,
            asked,
            suites,
            max_new_tokens,
            prompt_template.value,
            dtype.value,
            device,
            num_bits(quantize),
            progress,
        )
    faults = findings.faults(Gate(min_exact, max_forgetting, max_accuracy_drop))
    if output is not None:  # before anything is printed: whoever reads that may go away (| head)
        write_comparison(output, base, tuned, findings, faults)
    console = Console()
    console.print(comparison_table(findings.answered))
    if (table := measures_table(findings)).row_count:
        console.print(table)
    if output is not None:
        typer.echo(f"written to {output}")
    for fault in faults:
        typer.echo(harmless(fault), err=True)
    if faults:
        raise typer.Exit(exit_codes.GATE_CLOSED)
