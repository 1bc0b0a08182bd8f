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
KindsOption = Annotated[
    str, typer.Option(help="Kinds of questions, with commas (default: all); a wrong one lists them.")
]
NumWorkersOption = Annotated[
    int | None,
    typer.Option("--num_workers", min=1, help="Processes (default: one a core); the result is the same."),
]
TemplatesOption = Annotated[
    Path | None,
    typer.Option(help="Phrasings of your own, in the form of medsft/knowledge/templates.yaml."),
]
SeedOption = Annotated[int, typer.Option(help="The same seed makes the same choices.")]


def listed(text: str) -> tuple[str, ...]:
    """What a list with commas names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
