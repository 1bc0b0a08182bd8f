"""`medsft data`: instruction data from knowledge graphs; checked, split, mixed, converted."""

from __future__ import annotations

import typer

from medsft.cli.data import build, graph

app = typer.Typer(help="Build, check and rewrite instruction data.", no_args_is_help=True)
app.command()(build.build)
app.add_typer(graph.app, name="graph")
