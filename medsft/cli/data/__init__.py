"""`medsft data`: instruction data from knowledge graphs; checked, split, mixed, converted."""

from __future__ import annotations

import typer

from medsft.cli.data import build, check, generate, graph, rewrite, split

app = typer.Typer(help="Build, check and rewrite instruction data.", no_args_is_help=True)
for command in (
    build.build,
    generate.generate,
    split.split,
    check.check,
    rewrite.mix,
    rewrite.convert,
):
    app.command()(command)
app.add_typer(graph.app, name="graph")
