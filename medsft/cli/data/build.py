"""`medsft data build`: one file of pairs from a knowledge graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.cli.data.options import (
    GraphOption,
    KindsOption,
    MaxBadShareOption,
    NumWorkersOption,
    SeedOption,
    TemplatesOption,
    listed,
)


def build(
    graph: GraphOption,
    output: Annotated[Path, typer.Option(help="Instruction file to write (.jsonl).")],
    kinds: KindsOption = "",
    num_phrasings: Annotated[int, typer.Option("--num_phrasings", min=1, help="Phrasings of each fact.")] = 2,
    max_pairs: Annotated[
        int | None, typer.Option("--max_pairs", min=1, help="At most so many pairs.")
    ] = None,
    templates: TemplatesOption = None,
    max_bad_share: MaxBadShareOption = 0.01,
    num_workers: NumWorkersOption = None,
    seed: SeedOption = 0,
) -> None:
    """Turn a knowledge graph into questions and answers by templates."""
    from medsft.cli.progress import progress
    from medsft.data.workers import num_cores
    from medsft.knowledge.build import build_pairs
    from medsft.knowledge.pairs import KINDS
    from medsft.knowledge.templates import DEFAULT_TEMPLATES

    summary = build_pairs(
        graph,
        output,
        seed,
        listed(kinds) or KINDS,
        num_phrasings,
        max_pairs,
        max_bad_share,
        templates or DEFAULT_TEMPLATES,
        num_workers or num_cores(),
        progress,
    )
    typer.echo(f"{summary.describe()}: {output}")
