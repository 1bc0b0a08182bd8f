"""`medsft`: every command of the toolkit. Each imports what it needs only when it runs."""

from __future__ import annotations

import sys

import typer

from medsft import exit_codes
from medsft.cli import (
    chat,
    checkpoint,
    compare,
    data,
    evaluation,
    models,
    planning,
    report,
    serving,
    training,
)
from medsft.errors import UserError

app = typer.Typer(
    name="medsft",
    help="Fine-tune ChatGLM-6B on medical knowledge, from data to answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# What follows `medsft train` is the training's own command line, its --help included.
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(training.train)
for command in (
    planning.plan,
    chat.chat,
    serving.serve,
    compare.compare,
    report.report,
    models.tokenizer,
    models.init,
    models.convert,
    models.export,
):
    app.command()(command)
app.command("eval")(evaluation.evaluate)
app.add_typer(data.app, name="data")
app.add_typer(checkpoint.app, name="checkpoint")


def main() -> None:
    """Entry point of the `medsft` command: a user's error is one paragraph and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"medsft: error: {error}", file=sys.stderr)
        sys.exit(exit_codes.USER_ERROR)
