"""`medsft data split`: training, validation, test and recall pairs of a knowledge graph."""

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


def split(
    graph: GraphOption,
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder for the files.")],
    shares: Annotated[
        str, typer.Option(help="Shares of the entities: training,validation,test.")
    ] = "0.8,0.1,0.1",
    kinds: KindsOption = "",
    num_phrasings: Annotated[int, typer.Option("--num_phrasings", min=1, help="Phrasings of each fact.")] = 2,
    templates: TemplatesOption = None,
    max_bad_share: MaxBadShareOption = 0.01,
    num_workers: NumWorkersOption = None,
    seed: SeedOption = 0,
) -> None:
    """Build pairs with no entity in two parts, and a set that asks for learnt facts in other words."""
    from medsft.cli.progress import progress
    from medsft.data.workers import num_cores
    from medsft.errors import UserError
    from medsft.knowledge.pairs import KINDS
    from medsft.knowledge.split import write_split
    from medsft.knowledge.templates import DEFAULT_TEMPLATES

    try:
        parsed = [float(share) for share in listed(shares)]
    except ValueError as error:
        raise UserError(f"The shares {shares!r} must be three numbers with commas: 0.8,0.1,0.1.") from error
    summary = write_split(
        graph,
        output_dir,
        parsed,
        seed,
        listed(kinds) or KINDS,
        num_phrasings,
        max_bad_share,
        templates or DEFAULT_TEMPLATES,
        num_workers or num_cores(),
        progress,
    )
    typer.echo(f"{summary.describe()}: {output_dir}")
