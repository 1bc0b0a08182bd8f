"""`medsft data graph`: what a knowledge graph holds."""

from __future__ import annotations

from typing import Annotated

import typer

from medsft.cli.data.options import GraphOption, MaxBadShareOption

app = typer.Typer(help="Look at knowledge graphs.", no_args_is_help=True)


@app.command()
def stats(
    graph: GraphOption,
    max_bad_share: MaxBadShareOption = 0.01,
    num_bad: Annotated[int, typer.Option("--num_bad", min=0, help="Bad records to list.")] = 10,
) -> None:
    """Entities, relations, coverage, and the records that cannot be used."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medsft.knowledge.graph import read_graph
    from medsft.knowledge.stats import graph_stats
    from medsft.knowledge.templates import load_templates

    read = read_graph(graph, max_bad_share)
    found = graph_stats(read, load_templates())
    typer.echo(
        f"{found.num_entities:,} entities, {len(found.relations):,} relations, {found.num_facts:,} facts "
        f"({found.num_links:,} of them name another entity); {found.num_merged:,} records merged, "
        f"{found.num_repeated:,} values repeated or empty, {found.num_bad:,} records left out"
    )
    table = Table()
    table.add_column("relation 关系")
    for name in ("entities 实体", "coverage 覆盖", "facts 事实", "values 取值"):
        table.add_column(name, justify="right")
    table.add_column("commonest 最常见")
    table.add_column("phrasings 句式")
    for relation in found.relations:
        value, count = relation.commonest
        table.add_row(
            escape(relation.name),
            f"{relation.num_entities:,}",
            f"{relation.num_entities / found.num_entities:.0%}",
            f"{relation.num_facts:,}",
            f"{relation.num_values:,}",
            escape(f"{value} × {count:,}"),
            "own" if relation.has_templates else "general",
        )
    Console().print(table)
    if found.sparse:
        shown = "、".join(found.sparse[:5])
        typer.echo(f"{len(found.sparse):,} entities have one relation only: {shown}")
    for line in read.bad[:num_bad]:
        typer.echo(f"left out: {line}")
    if len(read.bad) > num_bad:
        typer.echo(f"left out: {len(read.bad) - num_bad:,} more")
