"""`medsft compare`: two models, the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft import exit_codes
from medsft.cli.options import DeviceOption, Precision, PrecisionOption, Template, TemplateOption
from medsft.errors import UserError


def compare(
    base: Annotated[Path, typer.Option(help="Model folder before training.")],
    tuned: Annotated[Path, typer.Option(help="Model or run folder after training.")],
    questions: Annotated[
        list[Path] | None,
        typer.Option(help="Questions, with answers where they are known; repeatable (default: 16 of ours)."),
    ] = None,
    choices: Annotated[
        list[Path] | None,
        typer.Option(help="Multiple-choice suite in C-Eval's, CMB's or MedQA's form; repeatable."),
    ] = None,
    num_questions: Annotated[
        int | None,
        typer.Option("--num_questions", min=1, help="At most so many of each kind, from the front."),
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
    max_new_tokens: Annotated[
        int, typer.Option("--max_new_tokens", min=1, help="Longest answer, tokens.")
    ] = 128,
    prompt_template: TemplateOption = Template.auto,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """The same questions to two models, side by side, greedily answered, with a verdict."""
    from rich.console import Console

    from medsft.evaluation.compare import compare_models, comparison_table, exact_share, measures_table
    from medsft.evaluation.comparison_page import check_name, write_comparison
    from medsft.evaluation.question_set import IN_THE_BOX, first_of_each_kind, read_questions

    if output is not None:
        check_name(output)
    asked = first_of_each_kind(read_questions(questions or [IN_THE_BOX]), num_questions)
    if max_forgetting is not None and not any(one.kind == "general" and one.expected for one in asked):
        raise UserError(
            "--max_forgetting needs general questions with answers, and there are none. Mark them in the "
            'file with "kind": "general", or leave --questions out to use those in the box.'
        )
    findings = compare_models(
        base,
        tuned,
        asked,
        choices or [],
        max_new_tokens,
        prompt_template.value,
        dtype.value,
        device,
    )
    console = Console()
    console.print(comparison_table(findings.comparisons))
    console.print(measures_table(findings))
    if output is not None:
        write_comparison(output, findings)
        typer.echo(f"written to {output}")
    faults = []
    share = exact_share(findings.comparisons)
    if share < min_exact:
        faults.append(f"only {share:.0%} exact answers after training, {min_exact:.0%} were asked for")
    # Not "more than": a loss that is no number has been forgotten too.
    if max_forgetting is not None and not findings.forgetting <= max_forgetting:
        faults.append(
            f"forgetting: the loss of general answers grew by {findings.forgetting:.3f} nats, "
            f"{max_forgetting:.3f} were allowed"
        )
    for fault in faults:
        typer.echo(fault, err=True)
    if faults:
        raise typer.Exit(exit_codes.CRASHED)
