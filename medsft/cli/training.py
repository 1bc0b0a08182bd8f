"""`medsft train`: a training in this process."""

from __future__ import annotations

import typer


def train(context: typer.Context) -> None:
    """Train in this process; `medsft train --help` lists the flags. For more GPUs: python -m launcher run."""
    from medsft.train import main as train_main

    raise typer.Exit(train_main(context.args))
