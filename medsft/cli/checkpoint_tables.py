"""Checkpoints as tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from medsft.checkpoint.manifest import Manifest
from medsft.checkpoint.survey import Found
from medsft.config import Config, DataConfig, ModelConfig, OptimizationConfig, RunConfig

_PIPED_WIDTH = 160
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def write(table: Table) -> None:
    """Prints to stdout; a pipe or a file, which have no width of their own, get wide lines."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED_WIDTH)
    console.print(table)


def overview(found: Sequence[Found]) -> Table:
    """A line for each checkpoint."""
    table = Table(box=SIMPLE)
    for column in ("step", "size", "age", "training loss", "validation loss", "ranks"):
        table.add_column(column, justify="right")
    table.add_column("state")
    now = datetime.now(UTC)
    for item in found:
        manifest = item.manifest
        state = "complete" if item.fault is None else "[red]damaged[/]"
        if item.is_latest:
            state += ", latest"
        facts = (
            ["—"] * 4
            if manifest is None
            else [
                age(datetime.fromisoformat(manifest.created), now),
                loss(manifest.train_loss),
                validation(manifest),
                str(manifest.world_size),
            ]
        )
        table.add_row(str(item.step), decimal(item.num_bytes), *facts, state)
    return table


def description(folder: Path, manifest: Manifest) -> Table:
    """What the manifest says, but for the files."""
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify = escape(str(folder)), "left"
    identity = manifest.identity
    created_ago = age(datetime.fromisoformat(manifest.created), datetime.now(UTC))
    rows = {
        "step": f"{manifest.step:,} (epoch {manifest.epoch:.2f})",
        "created": f"{manifest.created} ({created_ago} ago)",
        "examples seen": f"{manifest.examples_seen:,}",
        "tokens seen": f"{manifest.tokens_seen:,}",
        "training loss": loss(manifest.train_loss),
        "validation loss": validation(manifest),
        "ranks": str(manifest.world_size),
        "base model": manifest.base_model,
        "question form": manifest.prompt_template,
        "model fingerprint": identity.model,
        "tokenizer fingerprint": identity.tokenizer,
        "data fingerprint": identity.data,
        "seed": str(identity.seed),
        "examples a step": str(identity.global_batch_size),
        "Adam's step": str(manifest.adam_step),
        "parameters": f"{sum(item.num_elements for item in manifest.parameters.values()):,}",
        "software": ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        "flags, not default": "\n".join(
            f"--{name} {json.dumps(value, ensure_ascii=False)}"
            for name, value in chosen_flags(manifest).items()
        ),
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def files(manifest: Manifest) -> Table:
    """Names, sizes and digests."""
    table = Table(box=SIMPLE)
    table.add_column("file", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("SHA-256", no_wrap=True)
    for name, entry in manifest.files.items():
        table.add_row(escape(name), decimal(entry.size), entry.sha256)
    return table


def age(since: datetime, now: datetime) -> str:
    """The largest unit that fits, e.g. 3 h; clocks of two hosts may make it 0 s."""
    seconds = max(0, int((now - since).total_seconds()))
    name, size = next(((name, size) for name, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{seconds // size} {name}"


def loss(value: float | None) -> str:
    """Nats a supervised token, or a dash where none was reported yet."""
    return "—" if value is None else f"{value:.4f}"


def validation(manifest: Manifest) -> str:
    """The last validation loss, with its step where that is an earlier one."""
    measured = manifest.validation
    if measured is None:
        return loss(None)
    earlier = "" if measured.step == manifest.step else f" (step {measured.step})"
    return loss(measured.loss) + earlier


def chosen_flags(manifest: Manifest) -> dict[str, Any]:
    """Flags of the run that differ from what this version takes without them."""
    defaults = Config(ModelConfig(), DataConfig(), OptimizationConfig(), RunConfig()).flags()
    unknown = object()
    return {name: value for name, value in manifest.flags.items() if value != defaults.get(name, unknown)}
