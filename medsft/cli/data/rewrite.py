"""`medsft data convert` and `medsft data mix`: instruction files rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.cli.data.options import SeedOption

LayoutOption = Annotated[
    str, typer.Option("--to", help="Layout to write: med-chatglm, alpaca, chatglm, messages.")
]
PromptColumn = Annotated[str | None, typer.Option("--prompt_column", help="Column of the question.")]
ResponseColumn = Annotated[str | None, typer.Option("--response_column", help="Column of the answer.")]
HistoryColumn = Annotated[str | None, typer.Option("--history_column", help="Column of earlier rounds.")]


def convert(
    file: Annotated[list[Path], typer.Option("--file", help="Instruction files, any layout; repeatable.")],
    output: Annotated[Path, typer.Option(help="Instruction file to write (.jsonl).")],
    to: LayoutOption,
    prompt_column: PromptColumn = None,
    response_column: ResponseColumn = None,
    history_column: HistoryColumn = None,
) -> None:
    """Write instruction files in another layout."""
    from medsft.cli.progress import byte_progress
    from medsft.data.convert import convert_files
    from medsft.data.files import expand_files
    from medsft.data.layouts import Columns

    columns = Columns(prompt_column, response_column, history_column)
    paths = expand_files(file)
    with byte_progress("converting", sum(path.stat().st_size for path in paths)) as report_bytes:
        done = convert_files(paths, output, to, columns, report_bytes)
    typer.echo(f"{done.describe()}: {output}")


def mix(
    source: Annotated[
        list[str], typer.Option("--source", help="FILE=WEIGHT, as general.jsonl=0.2; two or more.")
    ],
    output: Annotated[Path, typer.Option(help="Instruction file to write (.jsonl).")],
    total: Annotated[
        int | None, typer.Option(help="Examples in all (default: so many that the first source is used up).")
    ] = None,
    repeats: Annotated[bool, typer.Option("--repeats", help="Repeat sources that are too small.")] = False,
    to: LayoutOption = "chatglm",
    seed: SeedOption = 0,
) -> None:
    """Mix instruction files by shares, such as general data among medical."""
    from medsft.data.mix import Source, mix_files

    done = mix_files([Source.parse(text) for text in source], output, total, seed, repeats, to)
    typer.echo(f"{done.describe()}: {output}")
