"""`medsft`: every command of the toolkit. Each imports what it needs only when it runs."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from medsft import exit_codes
from medsft.errors import UserError

app = typer.Typer(
    name="medsft",
    help="Fine-tune ChatGLM-6B on medical knowledge, from data to answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Build instruction data.", no_args_is_help=True)
app.add_typer(data_app, name="data")


class Template(str, Enum):
    """Form of a question; auto: what the model was trained with."""

    auto = "auto"
    none = "none"
    chatglm = "chatglm"
    med_chatglm = "med-chatglm"


class Precision(str, Enum):
    """Number type of the weights in memory."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


ModelOption = Annotated[Path, typer.Option("--model", help="Model folder, or a run's output folder.")]
TemplateOption = Annotated[
    Template,
    typer.Option("--prompt_template", help="How a question is written for the model; auto: as it was trained."),
]
PrecisionOption = Annotated[Precision, typer.Option(help="auto: fp32 on CPU, as stored on a GPU.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto: a GPU if there is one.")]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def train(context: typer.Context) -> None:
    """Train in this process; `medsft train --help` lists the flags. For more GPUs: python -m launcher run."""
    from medsft.train import main as train_main

    raise typer.Exit(train_main(context.args))


@app.command()
def chat(
    model: ModelOption,
    prompt_template: TemplateOption = Template.auto,
    history: Annotated[
        Optional[bool],
        typer.Option(help="Keep earlier rounds (default: yes, but not in the med-chatglm form)."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer, tokens.")] = 512,
    greedy: Annotated[bool, typer.Option(help="Always the most likely token.")] = False,
    top_p: Annotated[float, typer.Option("--top_p", min=0.0, max=1.0, help="Nucleus of sampling.")] = 0.7,
    temperature: Annotated[float, typer.Option(min=0.01, help="Higher is more varied.")] = 0.95,
    seed: Annotated[Optional[int], typer.Option(help="Makes sampled answers repeatable.")] = None,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """Talk to a model in the terminal, or pipe questions in, one a line."""
    from medsft.inference.chat import chat as converse
    from medsft.inference.responder import Sampling, open_responder, seed_everything

    responder = open_responder(model, prompt_template.value, dtype.value, device)
    seed_everything(seed)
    keep = responder.template != "med-chatglm" if history is None else history
    converse(responder, Sampling(max_new_tokens, greedy, top_p, temperature), keep)


@app.command()
def compare(
    base: Annotated[Path, typer.Option(help="Model folder before training.")],
    tuned: Annotated[Path, typer.Option(help="Model or run folder after training.")],
    questions: Annotated[Path, typer.Option(help="Instruction file: questions with their answers.")],
    num_questions: Annotated[int, typer.Option("--num_questions", min=1, help="How many, from the front.")] = 10,
    min_exact: Annotated[
        float, typer.Option("--min_exact", min=0.0, max=1.0, help="Exit 1 below this share of exact answers.")
    ] = 0.0,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer, tokens.")] = 128,
    prompt_template: TemplateOption = Template.auto,
    dtype: PrecisionOption = Precision.auto,
    device: DeviceOption = "auto",
) -> None:
    """The same questions to two models, side by side, greedily answered."""
    from rich.console import Console

    from medsft.evaluation.compare import compare_models, comparison_table, exact_share

    comparisons = compare_models(
        base, tuned, questions, num_questions, max_new_tokens, prompt_template.value, dtype.value, device
    )
    Console().print(comparison_table(comparisons))
    share = exact_share(comparisons)
    if share < min_exact:
        typer.echo(f"only {share:.0%} exact answers after training, {min_exact:.0%} were asked for", err=True)
        raise typer.Exit(exit_codes.CRASHED)


def main() -> None:
    """Entry point of the `medsft` command: a user's error is one paragraph and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"medsft: error: {error}", file=sys.stderr)
        sys.exit(exit_codes.USER_ERROR)


if __name__ == "__main__":
    main()
