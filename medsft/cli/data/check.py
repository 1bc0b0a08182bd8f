"""`medsft data check`: what of an instruction file is worth training on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    file: Annotated[list[Path], typer.Option("--file", help="Instruction files, any layout; repeatable.")],
    output: Annotated[Path, typer.Option(help="File for what is kept (.jsonl); the others lie beside it.")],
    held_out: Annotated[
        list[Path] | None,
        typer.Option("--held_out", help="Validation and test files that may not leak in; repeatable."),
    ] = None,
    graph: Annotated[
        list[Path] | None, typer.Option(help="Knowledge graph that answers may not contradict; repeatable.")
    ] = None,
    strict_facts: Annotated[
        bool, typer.Option("--strict_facts", help="With a graph: nor name values that it does not have.")
    ] = False,
    near: Annotated[float, typer.Option(help="Similarity of near duplicates; 0: exact ones only.")] = 0.75,
    language: Annotated[str, typer.Option(help="zh: answers must be Chinese; any.")] = "zh",
    mend: Annotated[bool, typer.Option(help="Put answers right where nothing has to be known.")] = True,
    max_reject_share: Annotated[
        float,
        typer.Option("--max_reject_share", min=0.0, max=1.0, help="Exit 1 above this share of rejects."),
    ] = 1.0,
) -> None:
    """Reject duplicates, leaks, personal data, broken and boilerplate answers, each with its reason."""
    from medsft import exit_codes
    from medsft.cli.progress import byte_progress
    from medsft.data.check.report import write_report
    from medsft.data.check.review import REJECTS_SUFFIX, ReviewSettings, review_files, settings_as_text
    from medsft.data.files import expand_files
    from medsft.data.writing import check_output
    from medsft.errors import UserError
    from medsft.knowledge.facts import FactCheck
    from medsft.knowledge.graph import read_graph
    from medsft.knowledge.templates import load_templates

    if language not in ("zh", "any"):
        raise UserError(f"The language {language!r} is not known; give zh or any.")
    facts = FactCheck(read_graph(graph), load_templates(), strict_facts) if graph else None
    settings = ReviewSettings(
        near_threshold=near or None,
        language=language,
        mends=mend,
        held_out=expand_files(held_out) if held_out else (),
        further=(facts.fault,) if facts else (),
        names_in=facts.names.found_in if facts else None,
    )
    paths = expand_files(file)
    rejects = output.with_suffix(REJECTS_SUFFIX)
    graph_files = expand_files(graph) if graph else ()
    check_output(output, graph_files)
    check_output(rejects, graph_files, REJECTS_SUFFIX)
    with byte_progress("checking", 2 * sum(path.stat().st_size for path in paths)) as report_bytes:
        review = review_files(paths, output, rejects, settings, report_bytes)
    told = dict(settings_as_text(settings, paths))
    if graph_files:
        told["graph"] = ", ".join(map(str, graph_files))
        told["its facts may not be"] = "contradicted or left" if strict_facts else "contradicted"
    report, page = write_report(output, review, told)
    typer.echo(f"{review.describe()}\nkept: {output}\nrejected: {rejects}\nreport: {report}, {page}")
    if review.rejected.total() > max_reject_share * review.num_read:
        typer.echo(f"more than {max_reject_share:.0%} of the records are rejected", err=True)
        raise typer.Exit(exit_codes.GATE_CLOSED)
