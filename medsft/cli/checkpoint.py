"""`medsft checkpoint`: the checkpoints of a run listed, verified, shown and pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsft.cli.progress import byte_progress
from medsft.errors import UserError

app = typer.Typer(help="Look after the checkpoints of a run.", no_args_is_help=True)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's output folder, or its checkpoints.")
]


@app.command("list")
def list_(run: RunArgument) -> None:
    """What checkpoints there are, the newest first; their sizes are checked, not their contents."""
    from medsft.checkpoint.survey import checkpoints_root, survey, unfinished
    from medsft.cli.checkpoint_tables import overview, write

    root = checkpoints_root(run)
    found = survey(root)
    if not found:
        typer.echo(f"no checkpoints in {root}")
    else:
        write(overview(found))
    for item in found:
        if item.fault is not None:
            typer.echo(f"{item.folder.name}: {item.fault}")
    for name in unfinished(root):
        typer.echo(f"{name}: being written or deleted, or left by a process that was killed")


@app.command()
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="A run's output folder, or one checkpoint.")
    ],
) -> None:
    """Compare every byte with its SHA-256 in the manifest; exit 2 if a checkpoint is damaged."""
    from rich.filesize import decimal

    from medsft.checkpoint.survey import checkpoint_folder, checkpoints_root, is_checkpoint, look, survey
    from medsft.checkpoint.verify import verify as verify_files

    found = [look(checkpoint_folder(path))] if is_checkpoint(path) else survey(checkpoints_root(path))
    if not found:
        raise UserError(f"{path} holds no checkpoints to verify.")
    damaged: dict[str, UserError] = {}
    num_bytes = sum(item.manifest.num_bytes() for item in found if item.manifest is not None)
    with byte_progress("verifying", num_bytes) as report:
        for item in found:
            try:
                manifest = verify_files(item.folder, report)
            except UserError as error:
                damaged[item.folder.name] = error
                typer.echo(f"{item.folder.name}: damaged. {error}")
            else:
                num_files = len(manifest.files) + 1
                typer.echo(f"{item.folder.name}: intact, {num_files} files, {decimal(manifest.num_bytes())}")
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(found)} checkpoints cannot be used: {', '.join(damaged)}. "
            f"{next(iter(damaged.values()))} A run that is resumed takes the newest intact one."
        )


@app.command()
def show(
    path: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint, or a run: then its newest one.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="The manifest itself.")] = False,
) -> None:
    """What a checkpoint says of itself: progress, losses, identity, versions, flags, files."""
    from medsft.checkpoint.layout import MANIFEST
    from medsft.checkpoint.manifest import read_manifest
    from medsft.checkpoint.survey import checkpoint_folder
    from medsft.cli.checkpoint_tables import description, files, write

    folder = checkpoint_folder(path)
    manifest = read_manifest(folder)
    if as_json:
        typer.echo((folder / MANIFEST).read_text(encoding="utf-8"), nl=False)
        return
    write(description(folder, manifest))
    write(files(manifest))


@app.command()
def prune(
    run: RunArgument,
    keep_last: Annotated[int, typer.Option("--keep-last", min=1, help="Keep the newest so many.")],
    keep_every: Annotated[
        int | None, typer.Option("--keep-every", min=1, help="Keep also each whose step this divides.")
    ] = None,
    keep_best: Annotated[
        bool, typer.Option("--keep-best/--no-keep-best", help="Keep also the lowest validation loss.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be deleted.")] = False,
) -> None:
    """Delete old checkpoints; refused while a run writes there, or if the newest one is damaged."""
    from contextlib import nullcontext

    from rich.filesize import decimal

    from medsft.checkpoint.commit import delete
    from medsft.checkpoint.retention import Keep, superseded
    from medsft.checkpoint.survey import checkpoints_root, comparable_losses, survey
    from medsft.run_folder import RunFolder
    from medsft.run_lock import claim

    root = checkpoints_root(run)
    is_in_run = root.name == RunFolder(root.parent).checkpoints.name
    # A look changes nothing, so a live run does not stand in its way.
    with nullcontext() if dry_run else claim(root.parent if is_in_run else root, patience_s=0):
        found = [item for item in survey(root) if item.is_committed]
        if found and found[0].fault is not None:
            raise UserError(
                "The newest checkpoint is damaged, so nothing was deleted: the older ones may be needed. "
                f"{found[0].fault} Move {found[0].folder} away to prune the others."
            )
        doomed = superseded(comparable_losses(found), Keep(keep_last, keep_every, keep_best))
        for item in reversed(found):
            if item.step not in doomed:
                what = "keep"
            elif dry_run:
                what = "would delete"
            else:
                delete(root, item.step)
                what = "deleted"
            typer.echo(f"{what} {item.folder.name} ({decimal(item.num_bytes)})")
