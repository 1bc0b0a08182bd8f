"""A run that is under way: everything its steps pass through, put together from what was prepared."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from medsft.checkpoint.manifest import Validation
from medsft.engine.distributed import World, from_all, numbers_of_all, sum_over_ranks
from medsft.engine.state import TrainingState
from medsft.engine.step import TrainStep
from medsft.evaluation.loss import validation_loss
from medsft.monitor.metrics import Figures, Hardware
from medsft.monitor.reporter import Reporter
from medsft.provenance import Provenance
from medsft.run_folder import RunFolder
from medsft.training import assembly
from medsft.training.description import describe_run, start_reporter
from medsft.training.early_stopping import EarlyStopping
from medsft.training.preparation import Prepared
from medsft.training.samples import Samples
from medsft.training.saving import Saving, draft_manifest, identity_of, restore
from medsft.training.validating import Validating

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


@dataclass(frozen=True)
class Running:
    """The same parts on every rank.

    Attributes:
        engine: DeepSpeed's, around the model.
        provenance: what the model comes from, but for the figures that only its end knows.
        schedule: learning rate of a step, counted from 0.
        step: makes one step of micro-batches.
        figures: what the steps are measured by.
        reporter: where the figures go.
        validating, samples, saving: what is done after a step, each when it is due.
    """

    engine: DeepSpeedEngine
    provenance: Provenance
    schedule: Callable[[int], float]
    step: TrainStep
    figures: Figures
    reporter: Reporter
    validating: Validating
    samples: Samples
    saving: Saving


def start(
    prepared: Prepared,
    folder: RunFolder,
    early_stopping: EarlyStopping,
    newest: Validation | None,
    world: World,
) -> Running:
    """Reads the weights, and the states of the checkpoint that the run goes on from. A collective.

    newest: the last validation of that checkpoint, whose counts `early_stopping` has.
    """
    config, base, plan, checkpoint = prepared.config, prepared.base, prepared.plan, prepared.checkpoint
    engine = assembly.start_model(
        config, base, checkpoint, prepared.ds_config, world, prepared.fit.recomputes
    )
    hardware = Hardware(from_all(world, socket.gethostname()), assembly.peak_flops(world.device))
    provenance = describe_run(prepared, folder, world)
    reporter = start_reporter(prepared, folder, hardware.hosts, world)
    schedule = assembly.learning_rate(config, plan)
    step = TrainStep(engine, world, schedule, config.optimization.max_nonfinite_steps)
    flops_of_step = partial(assembly.flops_of_step, base, prepared.data, plan)
    figures = Figures(world.device, sum_over_ranks, partial(numbers_of_all, world), hardware, flops_of_step)
    state = TrainingState(engine, world)
    if checkpoint is not None:
        restore(checkpoint, state, step, figures, world)
    measure = partial(
        validation_loss,
        engine,
        per_device_size=config.run.per_device_eval_batch_size,
        max_tokens=assembly.most_tokens(config),
        pad_token_id=base.pad_token_id,
        world=world,
    )
    validating = Validating(
        config.run.eval_steps,
        plan,
        prepared.validation_data,
        measure,
        early_stopping,
        newest,
        reporter,
        world,
    )
    samples = Samples(config.run.sample_steps, engine, base, prepared.unseen, reporter, world)
    draft = partial(
        draft_manifest,
        provenance,
        identity_of(base, plan),
        plan,
        prepared.ds_config,
        step,
        figures,
        early_stopping,
    )
    saving = Saving(config.run, plan, folder, state, base, draft, reporter, world)
    return Running(engine, provenance, schedule, step, figures, reporter, validating, samples, saving)
