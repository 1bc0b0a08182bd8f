"""Plans as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from medsft.planner.advice import Candidate, Job, Scaling
from medsft.planner.cluster import Cluster
from medsft.planner.plan import Plan


def gb(size: float) -> str:
    """Bytes as GB, 10⁹."""
    return f"{size / 1e9:,.1f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that fits; a dash where they are not known."""
    if seconds is None:
        return "—"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 180:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"


def headline(job: Job, cluster: Cluster, made: Plan) -> str:
    """What is planned: model, data, machines, and what is counted on."""
    sizes, lengths, share = made.sizes, job.lengths, job.efficiency
    gpu = cluster.gpu
    device = "CPU ranks" if gpu is None else f"{gpu.name} ({gb(cluster.gpu_memory_bytes)} GB)"
    lines = [
        f"model: {job.shape.num_parameters:,} parameters",
        f"data: {len(lengths):,} examples, {lengths.mean_tokens:.1f} tokens of which "
        f"{lengths.mean_targets:.1f} supervised; {made.num_steps:,} steps of {made.batch.global_size} "
        f"examples, {sizes.num_tokens:,.0f} tokens ({sizes.num_tokens / sizes.num_slots:.0%} of the slots)",
        f"machines: {cluster.nodes} x {cluster.gpus_per_node} {device}",
    ]
    if gpu is not None:
        lines[-1] += f", {cluster.link.name} inside a host" + (
            f", {cluster.network.name} between hosts" if cluster.nodes > 1 else ""
        )
        lines.append(
            f"counted on: {share.compute:.0%} of {gpu.peak_flops / 1e12:.0f} TFLOP/s, {share.memory:.0%} of "
            f"{gpu.bandwidth / 1e9:,.0f} GB/s of memory, {share.link:.0%} of "
            f"{cluster.link.bandwidth / 1e9:.0f} GB/s a link"
        )
    return "\n".join(lines)


def shortage(candidate: Candidate) -> str:
    """By how much it does not fit."""
    made = candidate.plan
    parts = []
    if made.gpu_short:
        parts.append(f"{gb(made.gpu_short)} GB short on each GPU")
    if made.host_short:
        parts.append(f"{gb(made.host_short)} GB short on each host")
    return f"{candidate.label}: " + ", ".join(parts) if parts else "fits"


def configurations(found: Sequence[Candidate], price: float | None) -> Table:
    """A line for each configuration, the best first."""
    table = Table(box=SIMPLE)
    table.add_column("configuration", overflow="fold")
    columns = ["examples a pass", "GPU, GB", "host, GB", "step", "run", "MFU"]
    for column in columns + (["cost"] if price is not None else []):
        table.add_column(column, justify="right")
    table.add_column("most of it")
    table.add_column("fits")
    for item in found:
        made = item.plan
        times = made.times
        cost = [] if price is None else [f"{made.cost(price) or 0:,.2f}"]
        fits = "yes" if made.fits else f"[red]{escape(shortage(item).split(': ', 1)[1])}[/]"
        table.add_row(
            escape(item.label),
            str(made.batch.per_device_size),
            gb(made.gpu_bytes) if made.cluster.gpu else "—",
            gb(made.host_bytes),
            duration(times and times.step_s),
            duration(made.run_s),
            "—" if made.mfu is None else f"{made.mfu:.0%}",
            *cost,
            times.dominant if times else "—",
            fits,
        )
    return table


def memory(candidate: Candidate) -> Table:
    """Components by stage: of a GPU, and of a rank in host memory, in GB."""
    made = candidate.plan
    table = Table(box=SIMPLE, title=f"memory with {escape(candidate.label)}, GB", title_justify="left")
    table.add_column("")
    for stage in made.stages:
        table.add_column(stage.name, justify="right")
    for side, title in (("gpu", "a GPU"), ("host", "a rank on its host")):
        names = list(dict.fromkeys(name for stage in made.stages for name in getattr(stage, side)))
        if not names:
            continue
        for name in names:
            sizes = [getattr(stage, side).get(name, 0.0) for stage in made.stages]
            if max(sizes) >= 5e7:
                table.add_row(escape(f"{title}: {name}"), *(gb(size) if size else "" for size in sizes))
        totals = [getattr(stage, f"{side}_bytes") for stage in made.stages]
        table.add_row(f"[bold]{title}[/]", *(f"[bold]{gb(size)}[/]" for size in totals), end_section=True)
    table.add_row("[bold]a host, all ranks[/]", *(f"[bold]{gb(made.node_bytes(s))}[/]" for s in made.stages))
    return table


def numbers_of_gpus(grown: Scaling, price: float | None) -> Table:
    """The best on fewer and on more GPUs."""
    table = Table(box=SIMPLE)
    for column in ("GPUs", "hosts"):
        table.add_column(column, justify="right")
    table.add_column("best configuration")
    for column in ["step", "run"] + (["cost"] if price is not None else []):
        table.add_column(column, justify="right")
    table.add_column("most of it")
    for size, item in grown.sizes:
        start = [str(size.world_size), str(size.nodes)]
        if item is None:
            table.add_row(*start, "nothing fits")
            continue
        made = item.plan
        cost = [] if price is None else [f"{made.cost(price) or 0:,.2f}"]
        times = made.times
        figures = [duration(times and times.step_s), duration(made.run_s), *cost]
        table.add_row(*start, escape(item.label), *figures, times.dominant if times else "—")
    return table
