"""`medsft data`: instruction data made from other sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build instruction data.", no_args_is_help=True)


@app.command()
def build(
    graph: Annotated[list[Path], typer.Option(help="Knowledge graph files (.jsonl); repeatable.")],
    output: Annotated[Path, typer.Option(help="Instruction file to write (.jsonl).")],
    kinds: Annotated[str, typer.Option(help="Kinds of questions, with commas: single,several,reverse.")] = "",
    num_phrasings: Annotated[int, typer.Option("--num_phrasings", min=1, help="Phrasings of each fact.")] = 2,
    max_pairs: Annotated[
        int | None, typer.Option("--max_pairs", min=1, help="At most so many pairs.")
    ] = None,
    max_bad_share: Annotated[
        float, typer.Option("--max_bad_share", min=0.0, max=1.0, help="Stop above this share of bad records.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Decides phrasings and order.")] = 0,
) -> None:
    """Turn a knowledge graph into questions and answers by templates."""
    from medsft.knowledge.build import build_pairs
    from medsft.knowledge.pairs import KINDS

    chosen = tuple(kind.strip() for kind in kinds.split(",")) if kinds else KINDS
    summary = build_pairs(graph, output, seed, chosen, num_phrasings, max_pairs, max_bad_share)
    typer.echo(f"{summary.describe()}: {output}")
