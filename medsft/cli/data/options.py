"""Options that several data commands take alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GraphOption = Annotated[
    list[Path],
    typer.Option(help="Knowledge graph files: records (.jsonl), triples (.csv), Neo4j (.json); repeatable."),
]
MaxBadShareOption = Annotated[
    float, typer.Option("--max_bad_share", min=0.0, max=1.0, help="Stop above this share of bad records.")
]
SeedOption = Annotated[int, typer.Option(help="The same seed makes the same choices.")]
