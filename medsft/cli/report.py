"""`medsft report`: runs as a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.errors import UserError
from medsft.terminal import harmless


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; several are drawn over each other.")],
    output: Annotated[
        Path | None, typer.Option(help="Page to write (default: report.html in the first folder).")
    ] = None,
) -> None:
    """Curves, checkpoints, evaluation and settings of runs as one HTML page; works while they go on."""
    from medsft.files import write_text
    from medsft.monitor.run import read_run
    from medsft.monitor.run_page import run_page

    page = output or runs[0] / "report.html"
    text = run_page([read_run(run) for run in runs])
    try:
        write_text(page, harmless(text))
    except OSError as error:
        raise UserError(f"{page} cannot be written ({error}); give another --output.") from error
    typer.echo(f"written to {page}")
