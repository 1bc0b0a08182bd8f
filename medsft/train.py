"""Full-parameter fine-tuning of ChatGLM with ZeRO-3: the run's table of contents.

Started by `python -m launcher run medsft/train.py …`, `deepspeed medsft/train.py …`, torchrun, or plain
python for a single process; `--help` lists the flags.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run by path, this folder is sys.path[0] and would shadow other packages; the repository belongs there.
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.chatglm.base import BaseModel, open_base_model
from medsft.chatglm.weights import parse_size
from medsft.checkpoint.export import export_model
from medsft.config import Config, parse
from medsft.data.cache import load_or_build
from medsft.data.dataset import EncodedDataset
from medsft.data.encode import describe_example
from medsft.data.files import expand_files
from medsft.data.loader import StepBatches
from medsft.data.plan import StepPlan, check_capacity, split, split_by_count
from medsft.data.progress import terminal_progress
from medsft.data.records import Columns
from medsft.engine import deepspeed_config
from medsft.engine.deepspeed_config import Batch
from medsft.engine.distributed import World, agree, sum_over_ranks, together
from medsft.engine.optimizer import build_optimizer
from medsft.engine.process import run_process
from medsft.engine.schedule import Schedule, warmup_steps
from medsft.engine.step import TrainStep, start_engine
from medsft.engine.zero import build_partitioned, load_slices
from medsft.errors import UserError
from medsft.evaluation.loss import validation_loss
from medsft.files import write_json
from medsft.monitor.metrics import Figures
from medsft.monitor.reporter import Reporter, open_reporter
from medsft.provenance import Provenance, software_versions
from medsft.run_folder import RunFolder, claim, model_folder, move_aside, writing

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger("medsft.train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a training from its command line; returns the exit code of this rank."""
    return run_process(lambda: parse(sys.argv[1:] if arguments is None else arguments), run)


def run(config: Config, world: World) -> None:
    """The whole of a run, top to bottom."""
    folder, lock = claim_folder(config, world)
    batch, ds_config = settle_settings(config, world)
    base = open_base(config, world)
    data, validation_data = encode_data(config, base, folder, world)
    logger.info("first example, %s\n%s", data.source(0), describe_example(data[0], base.tokenizer))
    plan = plan_steps(config, data, validation_data, batch, world)
    compare_ranks(config, base, data, validation_data, plan, ds_config, world)
    engine = start_model(config, base, ds_config, world)
    provenance = describe_run(config, base, data, plan, folder, ds_config, world)
    with together(world), writing(folder.path):
        reporter = open_reporter(folder.metrics, folder.tensorboard, plan.num_steps, speaks=world.is_main)
    reporter.text("first example", describe_example(data[0], base.tokenizer))

    schedule = learning_rate(config, plan)
    step = TrainStep(engine, world, schedule, config.optimization.max_nonfinite_steps)
    figures = Figures(world.device, sum_over_ranks)
    with open_batches(config, data, plan, batch, base, world) as steps:
        for info, micro_batches in steps:
            result = step(info.step, micro_batches, info.num_targets)
            figures.add(info, result.loss_sum, result.applied)
            done = info.step + 1
            is_last = done == plan.num_steps
            if is_last or done % config.run.logging_steps == 0:
                epoch = plan.epochs_done(info.step)
                rate = schedule(info.step)
                reporter.train(figures.report(done, epoch, rate, result.grad_norm, step.num_skipped))
            with figures.paused():
                if validation_data is not None and (is_last or is_evaluation_due(config, plan, info.step)):
                    size, limit = config.run.per_device_eval_batch_size, most_tokens(config)
                    loss = validation_loss(engine, validation_data, size, limit, base.pad_token_id, world)
                    reporter.validation(done, loss)
                if not is_last and is_snapshot_due(config, plan, info.step):
                    so_far = replace(provenance, step=done, **figures.totals())
                    save_model(config, engine, base, so_far, folder.snapshot(done), world)

    provenance = replace(provenance, step=plan.num_steps, **figures.totals())
    save_model(config, engine, base, provenance, folder.model, world)
    finish(folder, provenance, reporter, lock, world)


def claim_folder(config: Config, world: World) -> tuple[RunFolder, FileLock | None]:
    """The run's folder, held by rank 0 until the end."""
    folder = RunFolder(Path(config.run.output_dir))
    with together(world):
        lock = claim(folder.path, config.run.overwrite_output_dir) if world.is_main else None
    return folder, lock


def settle_settings(config: Config, world: World) -> tuple[Batch, dict[str, Any]]:
    """Batch sizes for this number of ranks, and the DeepSpeed JSON held against the flags."""
    flags = config.optimization
    with together(world):
        batch = deepspeed_config.resolve_batch(
            world.size,
            flags.per_device_train_batch_size,
            flags.gradient_accumulation_steps,
            flags.global_batch_size,
        )
        path = (
            Path(config.run.deepspeed)
            if config.run.deepspeed
            else deepspeed_config.default_path(world.device)
        )
        ds_config = deepspeed_config.settle(
            deepspeed_config.read_json(path), path, batch, config.flags(), world.device
        )
    return batch, ds_config


def open_base(config: Config, world: World) -> BaseModel:
    """Configuration, tokenizer and mapped weights of the model to tune, checked against each other."""
    with together(world):
        parse_size(config.run.max_shard_size)  # wrong, it shall not surface at the first save
        base = open_base_model(model_folder(Path(config.model.model_name_or_path)))
        longest = config.data.max_source_length + config.data.max_target_length
        if longest > base.config.max_sequence_length:
            raise UserError(
                f"--max_source_length {config.data.max_source_length} and --max_target_length "
                f"{config.data.max_target_length} make {longest} tokens, but the model has "
                f"{base.config.max_sequence_length} positions. Lower one of them."
            )
    return base


def encode_data(
    config: Config, base: BaseModel, folder: RunFolder, world: World
) -> tuple[EncodedDataset, EncodedDataset | None]:
    """Training and validation data as tokens, made once and shared by all ranks through files."""
    flags = config.data
    load = partial(
        load_or_build,
        tokenizer=base.tokenizer,
        cache_dir=flags.data_cache_dir or folder.data_cache,
        columns=Columns(flags.prompt_column, flags.response_column, flags.history_column),
        max_source_length=flags.max_source_length,
        max_target_length=flags.max_target_length,
        max_bad_share=flags.max_bad_share,
        num_workers=flags.preprocessing_num_workers,
    )
    with together(world), terminal_progress("tokenising") as progress:
        if flags.validation_file:
            expand_files(flags.validation_file)  # a wrong name shall not surface after an hour of tokenising
        data = load(
            flags.train_file,
            template=flags.prompt_template,
            max_samples=flags.max_train_samples,
            progress=progress,
        )
        logger.info("training data: %s", data.summary.describe())
        validation_data = None
        if flags.validation_file:
            validation_data = load(flags.validation_file, template=data.summary.template, progress=progress)
            logger.info("validation data: %s", validation_data.summary.describe())
    return data, validation_data


def plan_steps(
    config: Config,
    data: EncodedDataset,
    validation_data: EncodedDataset | None,
    batch: Batch,
    world: World,
) -> StepPlan:
    """Which examples make up which step; fails here, not in step 5000, if one does not fit a micro-batch."""
    flags = config.optimization
    with together(world):
        if flags.packing:
            check_capacity(data.lengths, most_tokens(config), data.source)
        if validation_data is not None:
            check_capacity(validation_data.lengths, most_tokens(config), validation_data.source)
        plan = StepPlan.for_run(
            len(data),
            data.fingerprint,
            batch.global_size,
            flags.seed,
            flags.num_train_epochs,
            flags.max_steps,
        )
    logger.info(
        "steps: %d, examples a step: %d, ranks: %d, micro-batches a rank: %d",
        plan.num_steps,
        batch.global_size,
        world.size,
        batch.num_micro_batches,
    )
    return plan


def compare_ranks(
    config: Config,
    base: BaseModel,
    data: EncodedDataset,
    validation_data: EncodedDataset | None,
    plan: StepPlan,
    ds_config: dict[str, Any],
    world: World,
) -> None:
    """Hosts without a shared file system may hold other files or versions: better to hear of it now."""
    own = {"local_rank", "output_dir", "data_cache_dir"}
    agree(
        world,
        {
            "the model's fingerprint": base.fingerprint(),
            "the training data's fingerprint": data.fingerprint,
            "the validation data's fingerprint": validation_data and validation_data.fingerprint,
            "the step plan": plan,
            "the DeepSpeed configuration": ds_config,
            "the command line": {name: value for name, value in config.flags().items() if name not in own},
            "the software": software_versions(),
        },
    )


def most_tokens(config: Config) -> int:
    """Tokens that fit one packed micro-batch."""
    longest = config.data.max_source_length + config.data.max_target_length
    return config.optimization.micro_batch_tokens or config.optimization.per_device_train_batch_size * longest


def start_model(config: Config, base: BaseModel, ds_config: dict[str, Any], world: World) -> DeepSpeedEngine:
    """The model cut into slices, each rank's read from the files, with its optimiser inside DeepSpeed."""
    flags = config.optimization
    dtype = deepspeed_config.compute_dtype(ds_config)
    # Building and starting are collectives, so they stand outside `together`, which shares out faults.
    model = build_partitioned(lambda: ChatGLMForConditionalGeneration(base.config), ds_config)
    with together(world), terminal_progress("reading weights") as progress:
        load_slices(model, base.weights, world, progress if world.is_main else None)
    logger.info("weights read on this rank: %.1f MB, computing in %s", base.weights.bytes_read / 1e6, dtype)
    if config.model.gradient_checkpointing:
        model.recompute_activations()
    with together(world):
        optimizer = build_optimizer(
            model,
            ds_config,
            world.device,
            learning_rate=flags.learning_rate,
            betas=(flags.adam_beta1, flags.adam_beta2),
            epsilon=flags.adam_epsilon,
            weight_decay=flags.weight_decay,
        )
    return start_engine(model, optimizer, ds_config)


def describe_run(
    config: Config,
    base: BaseModel,
    data: EncodedDataset,
    plan: StepPlan,
    folder: RunFolder,
    ds_config: dict[str, Any],
    world: World,
) -> Provenance:
    """Writes run.json, from which on the folder holds a run, and begins the model's provenance."""
    provenance = Provenance(
        base_model=str(base.folder),
        data_fingerprint=data.fingerprint,
        prompt_template=data.summary.template,
        flags=config.flags(),
        versions=software_versions(),
    )
    with together(world), writing(folder.path):
        if world.is_main:
            move_aside(folder.path)
            facts = {
                "world_size": world.size,
                "num_steps": plan.num_steps,
                "global_batch_size": plan.global_batch_size,
                "num_examples": len(data),
                "deepspeed": ds_config,
            }
            write_json(folder.description, {**provenance.origin(), **facts})
    return provenance


def learning_rate(config: Config, plan: StepPlan) -> Schedule:
    """Learning rate of each step."""
    flags = config.optimization
    num_warmup_steps = warmup_steps(plan.num_steps, flags.warmup_ratio, flags.warmup_steps)
    if num_warmup_steps >= plan.num_steps:
        logger.info(
            "note: warm-up takes %d steps and the run has %d: the learning rate, which begins at 0, never "
            "reaches its peak. Give --warmup_steps 0, or more --num_train_epochs.",
            num_warmup_steps,
            plan.num_steps,
        )
    return Schedule(flags.lr_scheduler_type, flags.learning_rate, num_warmup_steps, plan.num_steps)


def open_batches(
    config: Config, data: EncodedDataset, plan: StepPlan, batch: Batch, base: BaseModel, world: World
) -> StepBatches:
    """This rank's micro-batches, step after step, made in the background."""
    if config.optimization.packing:
        share = partial(
            split,
            world_size=world.size,
            num_micro_batches=batch.num_micro_batches,
            max_tokens=most_tokens(config),
        )
    else:
        share = partial(split_by_count, world_size=world.size, max_examples=batch.per_device_size)
    return StepBatches(
        data,
        plan,
        share,
        world.rank,
        base.pad_token_id,
        packed=config.optimization.packing,
        pin_memory=world.device.type == "cuda",
    )


def is_evaluation_due(config: Config, plan: StepPlan, step: int) -> bool:
    """After step `step` (from 0): every `--eval_steps`, or when an epoch ends."""
    if config.run.eval_steps is not None:
        return (step + 1) % config.run.eval_steps == 0
    return plan.ends_epoch(step)


def is_snapshot_due(config: Config, plan: StepPlan, step: int) -> bool:
    """After step `step` (from 0), by `--save_strategy`."""
    if config.run.save_strategy == "steps":
        return (step + 1) % (config.run.save_steps or 500) == 0
    return config.run.save_strategy == "epoch" and plan.ends_epoch(step)


def save_model(
    config: Config,
    engine: DeepSpeedEngine,
    base: BaseModel,
    provenance: Provenance,
    folder: Path,
    world: World,
) -> None:
    """A model folder, complete when it appears."""
    with terminal_progress("writing the model") as progress:
        export_model(
            engine.module,
            base.config,
            base.tokenizer,
            provenance,
            folder,
            max_shard_bytes=parse_size(config.run.max_shard_size),
            world=world,
            progress=progress,
        )
    logger.info("model written to %s", folder)


def finish(
    folder: RunFolder, provenance: Provenance, reporter: Reporter, lock: FileLock | None, world: World
) -> None:
    """DONE is the last thing written: who sees it can rely on all the rest."""
    reporter.close()
    with together(world), writing(folder.path):
        if world.is_main:
            write_json(folder.done, {"step": provenance.step, "train_loss": provenance.train_loss})
    if lock is not None:
        lock.release()
    logger.info("done: medsft chat --model %s", shlex.quote(str(folder.model)))


if __name__ == "__main__":
    sys.exit(main())
