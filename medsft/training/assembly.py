"""The parts of a run, each built from the settings: what train.py puts together."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.chatglm.attention import choose
from medsft.chatglm.base import BaseModel, open_base_model
from medsft.chatglm.block import ChatGLMBlock
from medsft.chatglm.weights import parse_size
from medsft.checkpoint.reader import Checkpoint
from medsft.config import Config
from medsft.data.cache import load_or_build
from medsft.data.dataset import EncodedDataset
from medsft.data.files import expand_files
from medsft.data.loader import StepBatches
from medsft.data.plan import StepPlan, check_capacity, split, split_by_count
from medsft.data.progress import terminal_progress
from medsft.data.records import Columns
from medsft.engine import deepspeed_config
from medsft.engine.deepspeed_config import Batch
from medsft.engine.distributed import World, agree, together
from medsft.engine.ops import prepare_ops
from medsft.engine.optimizer import build_optimizer
from medsft.engine.schedule import Schedule, warmup_steps
from medsft.engine.state import check_reachable
from medsft.engine.step import start_engine
from medsft.engine.zero import build_partitioned, load_slices
from medsft.errors import UserError
from medsft.planner.flops import step_flops, visible_pairs
from medsft.planner.hardware import match_gpu
from medsft.planner.shape import Shape
from medsft.provenance import software_versions
from medsft.run_folder import RunFolder, model_folder

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

OF_A_PLACE = frozenset({"local_rank", "output_dir", "data_cache_dir"})
"""Flags that may differ between hosts and between the starts of a run."""


def settle_settings(config: Config, base: BaseModel, world: World) -> tuple[Batch, dict[str, Any]]:
    """Batch sizes for this number of ranks, and the DeepSpeed JSON held against flags and model."""
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
            deepspeed_config.read_json(path),
            path,
            batch,
            config.flags(),
            Shape.of(base.config),
            world.device,
        )
        check_reachable(ds_config)
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
    agree(
        world,
        {
            "the model's fingerprint": base.fingerprint(),
            "the training data's fingerprint": data.fingerprint,
            "the validation data's fingerprint": validation_data and validation_data.fingerprint,
            "the step plan": plan,
            "the DeepSpeed configuration": ds_config,
            "the command line": {
                name: value for name, value in config.flags().items() if name not in OF_A_PLACE
            },
            "the software": software_versions(),
        },
    )


def most_tokens(config: Config) -> int:
    """Tokens that fit one packed micro-batch."""
    longest = config.data.max_source_length + config.data.max_target_length
    return config.optimization.micro_batch_tokens or config.optimization.per_device_train_batch_size * longest


def start_model(
    config: Config,
    base: BaseModel,
    checkpoint: Checkpoint | None,
    ds_config: dict[str, Any],
    world: World,
    recomputes: bool,
) -> DeepSpeedEngine:
    """The model cut into slices, each rank's read from the files, with its optimiser inside DeepSpeed.

    The weights are those of the checkpoint, if there is one. `recomputes`: with gradient checkpointing.
    """
    flags = config.optimization
    dtype = deepspeed_config.compute_dtype(ds_config)
    with together(world):
        prepare_ops(ds_config)
    # Building and starting are collectives, so they stand outside `together`, which shares out faults.
    model = build_partitioned(lambda: ChatGLMForConditionalGeneration(base.config), ds_config)
    with together(world), terminal_progress("reading weights") as progress:
        source = checkpoint or base.weights
        load_slices(model, source, world, progress if world.is_main else None)
    logger.info("weights read on this rank: %.1f MB, computing in %s", source.bytes_read / 1e6, dtype)
    logger.info("attention: %s", choose(world.device, dtype, base.config.head_dim)[1])
    if recomputes:
        model.recompute_activations()
    if config.model.torch_compile:
        model.compile_blocks()
    with together(world):
        optimizer = build_optimizer(
            model,
            ds_config,
            learning_rate=flags.learning_rate,
            betas=(flags.adam_beta1, flags.adam_beta2),
            epsilon=flags.adam_epsilon,
            weight_decay=flags.weight_decay,
        )
    return start_engine(model, optimizer, ds_config, leaves=[ChatGLMBlock])


def flops_of_step(base: BaseModel, data: EncodedDataset, plan: StepPlan, step: int) -> float:
    """Operations that the arithmetic of step `step` (from 0) asks for, over all ranks."""
    examples = plan.examples(step)
    lengths, targets = data.lengths[examples], data.num_targets[examples]
    pairs = visible_pairs(lengths.astype(int), targets.astype(int)).sum()
    return step_flops(Shape.of(base.config), lengths.sum(), targets.sum(), pairs).necessary


def peak_flops(device: torch.device) -> float | None:
    """Operations a second of this device at most, as its maker states it for 16 bits; None: not known.

    A CPU's is not known: it depends on clocks and instructions that no program is told of.
    """
    if device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(device)
    gpu = match_gpu(properties.name, properties.total_memory)
    return gpu and gpu.peak_flops


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
    config: Config,
    data: EncodedDataset,
    plan: StepPlan,
    start_step: int,
    batch: Batch,
    base: BaseModel,
    world: World,
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
        start_step=start_step,
        pin_memory=world.device.type == "cuda",
    )
