"""`medsft plan`: memory and time of a training before it starts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsft.errors import UserError
from medsft.planner.shape import CHATGLM_6B

if TYPE_CHECKING:
    from medsft.planner.advice import Candidate, Job, Scaling
    from medsft.planner.cluster import Cluster

# Of made-up lengths, which are all made, and of a step, whose examples are dealt out one by one.
_MOST_EXAMPLES, _LARGEST_BATCH = 10_000_000, 1_000_000
_LENGTH_LIMIT = 256  # the trainer's default, for context and answer


def plan(
    model_name_or_path: Annotated[
        Path | None, typer.Option("--model_name_or_path", help="Model folder; its config.json is enough.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Shape by name instead of a folder; an unknown name lists them.")
    ] = CHATGLM_6B,
    train_file: Annotated[
        list[Path] | None,
        typer.Option("--train_file", help="Instruction files, for their real lengths; needs a tokenizer."),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder with the tokenizer, where the model's has none.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Lengths as share:tokens pairs, 0:20,0.5:63,1:264 (default: Med-ChatGLM's data)."),
    ] = None,
    num_examples: Annotated[
        int, typer.Option("--num_examples", help="Training examples, without --train_file.")
    ] = 7622,
    gpu: Annotated[
        str, typer.Option(help="GPU by name, cpu, or custom; an unknown name lists them.")
    ] = "A100-80",
    gpus_per_node: Annotated[int, typer.Option("--gpus_per_node", help="GPUs (ranks) of a host.")] = 8,
    nodes: Annotated[int, typer.Option(help="Hosts.")] = 1,
    gpu_memory_gib: Annotated[
        float | None, typer.Option("--gpu_memory_gib", help="Memory of a GPU, instead of the named one's.")
    ] = None,
    gpu_tflops: Annotated[
        float | None, typer.Option("--gpu_tflops", help="Its dense 16-bit peak, likewise.")
    ] = None,
    gpu_bandwidth_gbs: Annotated[
        float | None, typer.Option("--gpu_bandwidth_gbs", help="GB/s of its memory, likewise.")
    ] = None,
    host_memory_gib: Annotated[
        float | None, typer.Option("--host_memory_gib", help="Memory of a host; default: not held against.")
    ] = None,
    interconnect: Annotated[
        str | None,
        typer.Option(help="Between the GPUs of a host: nvlink3, pcie4, 50GB/s … (default: usual)."),
    ] = None,
    network: Annotated[
        str, typer.Option(help="Between hosts, all adapters of one together: 100g, 200g, 400g, 25GB/s …")
    ] = "100g",
    global_batch_size: Annotated[
        int, typer.Option("--global_batch_size", help="Examples in one optimiser step.")
    ] = 16,
    per_device_train_batch_size: Annotated[
        int | None,
        typer.Option(
            "--per_device_train_batch_size",
            help="Examples in a micro-batch of a rank (default: as many as a step has, or as fit).",
        ),
    ] = None,
    max_source_length: Annotated[
        int, typer.Option("--max_source_length", help="Context limit in tokens.")
    ] = _LENGTH_LIMIT,
    max_target_length: Annotated[
        int, typer.Option("--max_target_length", help="Answer limit.")
    ] = _LENGTH_LIMIT,
    packing: Annotated[bool, typer.Option("--packing/--no-packing", help="Rows without padding.")] = True,
    num_train_epochs: Annotated[
        float, typer.Option("--num_train_epochs", help="Passes over the data.")
    ] = 3.0,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints/--no-checkpoints", help="The run saves checkpoints.")
    ] = True,
    deepspeed: Annotated[
        Path | None, typer.Option(help="A DeepSpeed JSON to plan for (default: the best of ds_configs).")
    ] = None,
    efficiency: Annotated[
        float, typer.Option(help="Share of the arithmetic peak that is counted on, 0 to 1.")
    ] = 0.5,
    price_per_gpu_hour: Annotated[
        float | None, typer.Option("--price_per_gpu_hour", help="For the cost, in any currency.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Tell memory, time and the best configuration of a training before it starts."""
    from medsft.planner.advice import Job, candidates, command, read_configs, scaling
    from medsft.planner.cluster import Cluster, Efficiency
    from medsft.planner.hardware import gpu_of
    from medsft.planner.lengths import MED_CHATGLM_QUANTILES, Lengths, parse_quantiles, read_lengths
    from medsft.planner.memory import Saves
    from medsft.planner.plan import Batch
    from medsft.planner.shape import preset_shape, read_shape

    _check(
        ("--num_examples", num_examples, 1 <= num_examples <= _MOST_EXAMPLES, f"1 to {_MOST_EXAMPLES:,}"),
        (
            "--global_batch_size",
            global_batch_size,
            1 <= global_batch_size <= _LARGEST_BATCH,
            f"1 to {_LARGEST_BATCH:,}",
        ),
        (
            "--per_device_train_batch_size",
            per_device_train_batch_size,
            per_device_train_batch_size is None or per_device_train_batch_size >= 1,
            "1 or more",
        ),
        ("--max_source_length", max_source_length, max_source_length >= 1, "1 or more"),
        ("--max_target_length", max_target_length, max_target_length >= 1, "1 or more"),
        ("--num_train_epochs", num_train_epochs, 0 < num_train_epochs < float("inf"), "above 0"),
        (
            "--price_per_gpu_hour",
            price_per_gpu_hour,
            0 <= (price_per_gpu_hour or 0) < float("inf"),
            "0 or more",
        ),
    )
    device = gpu_of(gpu, gpu_memory_gib, gpu_tflops, gpu_bandwidth_gbs)
    cluster = Cluster.of(device, gpus_per_node, nodes, host_memory_gib, interconnect, network)
    shape = read_shape(model_name_or_path) if model_name_or_path else preset_shape(preset)
    if train_file:
        opened = _tokenizer(tokenizer or model_name_or_path)
        data = read_lengths(train_file, opened, max_source_length, max_target_length)
    else:
        quantiles = MED_CHATGLM_QUANTILES if lengths is None else parse_quantiles(lengths)
        data = Lengths.from_quantiles(quantiles, num_examples)
    batch = Batch(global_batch_size, 1, 1, packing=packing, num_epochs=num_train_epochs)
    longest = max(max_source_length + max_target_length, *data.tokens)
    job = Job(
        shape,
        data,
        batch,
        Saves(checkpoints),
        Efficiency(compute=efficiency),
        per_device_train_batch_size,
        longest,
    )
    configs = _configs(deepspeed) if deepspeed else read_configs()
    found = candidates(job, cluster, configs)
    if not found:
        raise UserError(
            f"no configuration suits {gpu}: {', '.join(configs)} ask for another precision, or for several "
            "hosts."
        )
    grown = scaling(job, cluster, configs)
    if as_json:
        typer.echo(json.dumps(_as_json(found, grown, price_per_gpu_hour), ensure_ascii=False, indent=2))
        return
    words = command(
        found[0],
        str(model_name_or_path or f"models/{preset}"),
        [str(path) for path in train_file or ["data/train.jsonl"]],
        deepspeed=deepspeed and str(deepspeed),
    )
    for name, limit in (("max_source_length", max_source_length), ("max_target_length", max_target_length)):
        words += [f"--{name}", str(limit)] if limit != _LENGTH_LIMIT else []
    _print(job, cluster, found, grown, price_per_gpu_hour, words)


def _check(*rules: tuple[str, Any, bool, str]) -> None:
    faults = [f"{flag} {value} must be {allowed}" for flag, value, fits, allowed in rules if not fits]
    if faults:
        raise UserError("wrong settings: " + "; ".join(faults) + ".")


def _tokenizer(folder: Path | None) -> Any:
    if folder is None:
        raise UserError(
            "--train_file needs a tokenizer for its lengths: give --model_name_or_path or --tokenizer, or "
            "--lengths instead."
        )
    from medsft.chatglm.base import open_tokenizer

    return open_tokenizer(folder)


def _configs(path: Path) -> dict[str, dict[str, Any]]:
    from medsft.engine.deepspeed_config import read_json

    return {str(path): read_json(path)}


def _as_json(found: list[Candidate], grown: Scaling, price: float | None) -> dict[str, Any]:
    best = found[0].plan
    return {
        "recommended": found[0].label if best.fits else None,
        "parameters": best.shape.num_parameters,
        "world_size": best.cluster.world_size,
        "num_steps": best.num_steps,
        "configurations": [
            {
                "name": item.name,
                "gradient_checkpointing": item.plan.batch.checkpointing,
                "per_device_train_batch_size": item.plan.batch.per_device_size,
                "fits": item.plan.fits,
                "gpu_bytes": item.plan.gpu_bytes,
                "gpu_bytes_short": item.plan.gpu_short,
                "host_bytes": item.plan.host_bytes,
                "host_bytes_short": item.plan.host_short,
                "stages": [
                    {"name": stage.name, "gpu": dict(stage.gpu), "host_of_a_rank": dict(stage.host)}
                    for stage in item.plan.stages
                ],
                "step": None
                if item.plan.times is None
                else {**asdict(item.plan.times), "step_s": item.plan.times.step_s},
                "run_s": item.plan.run_s,
                "mfu": item.plan.mfu,
                "cost": None if price is None else item.plan.cost(price),
            }
            for item in found
        ],
        "gpus": [
            {
                "world_size": size.world_size,
                "configuration": item and item.label,
                "run_s": item and item.plan.run_s,
            }
            for size, item in grown.sizes
        ],
        "advice": list(grown.advice),
    }


def _print(
    job: Job,
    cluster: Cluster,
    found: list[Candidate],
    grown: Scaling,
    price: float | None,
    words: list[str],
) -> None:
    from medsft.cli import plan_tables
    from medsft.cli.checkpoint_tables import write
    from medsft.planner.advice import gpus_that_fit, read_configs, shown_command

    typer.echo(plan_tables.headline(job, cluster, found[0].plan))
    write(plan_tables.configurations(found, price))
    write(plan_tables.memory(found[0]))
    if cluster.gpu is not None:
        write(plan_tables.numbers_of_gpus(grown, price))
    for sentence in grown.advice:
        typer.echo(f"- {sentence}")
    if found[0].plan.fits:
        if found[0].plan.settings.hpz > 1:
            typer.echo(f"- zero_hpz_partition_size in {found[0].name} is to be {cluster.gpus_per_node}.")
        typer.echo(f"\n{shown_command(words)}")
        return
    typer.echo(f"- Nothing fits: {plan_tables.shortage(found[0])}.")
    if cluster.gpu is not None:
        enough = gpus_that_fit(job, cluster.gpu, cluster, read_configs())
        if enough is not None:
            typer.echo(f"- It fits on {enough[0]} of these GPUs, in hosts of at most 8, with {enough[1]}.")
