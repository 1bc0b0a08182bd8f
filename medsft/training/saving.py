"""What a run has to do with checkpoints: which one it begins with, when it saves, what it writes into one."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol, Self

from medsft.chatglm.base import BaseModel
from medsft.checkpoint import commit
from medsft.checkpoint.manifest import Identity, Manifest, Validation
from medsft.checkpoint.reader import Checkpoint
from medsft.checkpoint.resume import candidates, changed_flags, check_same_run, open_best
from medsft.checkpoint.retention import Keep
from medsft.checkpoint.saver import CheckpointSaver
from medsft.config import Config, RunConfig
from medsft.data.plan import StepPlan
from medsft.data.progress import terminal_progress
from medsft.engine.distributed import AgreedError, World, largest, together
from medsft.engine.rng import restore_rng_states
from medsft.engine.state import TrainingState, restore_scaler
from medsft.engine.step import DivergedError, TrainStep
from medsft.engine.stop import Stopped, StopRequest
from medsft.errors import UserError
from medsft.monitor.metrics import Figures, Save
from medsft.monitor.reporter import Reporter
from medsft.provenance import Provenance
from medsft.run_folder import RunFolder, move_aside, move_aside_newer, move_aside_results
from medsft.training.assembly import OF_A_PLACE
from medsft.training.early_stopping import EarlyStopping

logger = logging.getLogger(__name__)

DEFAULT_SAVE_STEPS = 500
DEFAULT_SAVE_MINUTES = 30.0
_OF_A_START = frozenset(
    {"resume_from_checkpoint", "overwrite_output_dir", "allow_changed", "allow_low_memory"}
)
"""Flags that concern one start of a run, and not the run."""


def identity_of(base: BaseModel, plan: StepPlan) -> Identity:
    """What makes two starts the same run."""
    return Identity(
        model=base.fingerprint(),
        tokenizer=base.tokenizer.fingerprint(),
        data=plan.fingerprint,
        seed=plan.seed,
        global_batch_size=plan.global_batch_size,
    )


def find_checkpoint(
    config: Config, base: BaseModel, plan: StepPlan, folder: RunFolder, world: World
) -> Checkpoint | None:
    """The checkpoint that the run begins with, verified and held against the settings; None for step 0."""
    flags = config.run
    identity = identity_of(base, plan)

    def check(manifest: Manifest) -> None:
        for change in check_same_run(manifest, identity, base.shapes, flags.allow_changed):
            if world.is_main:
                logger.warning("--allow_changed: %s", change)
        if manifest.step > plan.num_steps:
            raise UserError(
                f"the checkpoint is of step {manifest.step}, and this run has {plan.num_steps} steps. Give "
                "more --max_steps or --num_train_epochs, or an earlier checkpoint."
            )

    with together(world):
        paths = []
        if world.is_main:
            paths = candidates(folder, flags.resume_from_checkpoint, flags.overwrite_output_dir, os.environ)
    with terminal_progress("verifying the checkpoint") as progress:
        checkpoint = open_best(paths, check, world, progress if world.is_main else None)
    if checkpoint is None:
        return None
    manifest = checkpoint.manifest
    for change in changed_flags(manifest.flags, config.flags(), OF_A_PLACE | _OF_A_START):
        logger.info("changed since the checkpoint: %s", change)
    ranks = f"{manifest.world_size} rank{'s' if manifest.world_size > 1 else ''}"
    logger.info(
        "going on from %s: step %d of %d, epoch %.2f, saved by %s",
        checkpoint.folder,
        manifest.step,
        plan.num_steps,
        manifest.epoch,
        ranks,
    )
    return checkpoint


def is_of(checkpoint: Checkpoint, folder: RunFolder) -> bool:
    """Whether a checkpoint is one of this run's own."""
    return checkpoint.folder.resolve().parent == folder.checkpoints.resolve()


def make_room(folder: RunFolder, checkpoint: Checkpoint | None) -> None:
    """Leaves in the folder what the run goes on with, and nothing that it would take for its own.

    For rank 0 alone. What an earlier start did not finish to write or to delete is removed; the rest is moved
    aside: everything for a run that begins at step 0 or elsewhere, else checkpoints newer than the one it
    goes on from, and the model and DONE of a run that had finished.
    """
    for name in commit.clean(folder.checkpoints):
        logger.info("removed %s, which an earlier start did not finish", folder.checkpoints / name)
    if checkpoint is None or not is_of(checkpoint, folder):
        if aside := move_aside(folder.path):
            logger.info("what an earlier run left in %s is moved to %s", folder.path, aside.name)
        return
    step = checkpoint.manifest.step
    aside = move_aside_newer(folder.path, step)
    if aside is not None:
        logger.warning("checkpoints newer than step %d are moved to %s", step, aside)
    move_aside_results(folder.path)
    commit.point(folder.checkpoints)


def restore(
    checkpoint: Checkpoint, state: TrainingState, step: TrainStep, figures: Figures, world: World
) -> None:
    """Puts everything that a step changes back to where the checkpoint was taken."""
    manifest = checkpoint.manifest
    with together(world), terminal_progress("reading optimiser states") as progress:
        state.restore(checkpoint, manifest.adam_step, progress if world.is_main else None)
        restore_scaler(state.loss_scaler, manifest.loss_scaler)
        step.restore(manifest.counters)
        if manifest.world_size == world.size:
            mine = manifest.ranks[world.rank]
            restore_rng_states(mine.rng)
            loss_sum = mine.figures_loss_sum
        else:
            # Nothing in a step draws random numbers, and a sum is the same on whatever rank it lies.
            everyone = sum(rank.figures_loss_sum for rank in manifest.ranks)
            loss_sum = everyone if world.is_main else 0.0
        figures.restore(manifest.counters, loss_sum)


def flags_to_leave_out(config: RunConfig) -> list[str]:
    """Flags with which the same command, typed again, would not go on with the run but begin another."""
    flags = ["--overwrite_output_dir"] if config.overwrite_output_dir else []
    if config.resume_from_checkpoint not in ("auto", "latest"):
        flags.append("--resume_from_checkpoint")
    return flags


class Draft(Protocol):
    """`draft_manifest` with the facts of a run filled in."""

    def __call__(self, done: int, validation: Validation | None) -> tuple[Manifest, float]: ...


def draft_manifest(
    provenance: Provenance,
    identity: Identity,
    plan: StepPlan,
    ds_config: Mapping[str, Any],
    step: TrainStep,
    figures: Figures,
    early_stopping: EarlyStopping,
    done: int,
    validation: Validation | None,
) -> tuple[Manifest, float]:
    """A checkpoint's manifest after `done` steps but for what the saver knows, and this rank's loss sum."""
    counters, loss_sum = figures.state()
    manifest = Manifest(
        step=done,
        epoch=plan.epochs_done(done - 1),
        **figures.totals(),
        validation=validation,
        created="",
        world_size=0,
        identity=identity,
        plan=asdict(plan),
        base_model=provenance.base_model,
        prompt_template=provenance.prompt_template,
        flags=provenance.flags,
        deepspeed=ds_config,
        versions=provenance.versions,
        adam_step=0,
        loss_scaler={},
        counters={**counters, **step.counters(), **early_stopping.counters()},
        ranks=(),
        files={},
        parameters={},
    )
    return manifest, loss_sum


class Saving:
    """The checkpoints of a run: begins saves, takes up how they ended, reports them.

    Every method must be called by all ranks, for a reason that they share. Memory for the copies is taken
    here, unless nothing is to be saved by itself; raises `UserError` where there is too little.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: StepPlan,
        folder: RunFolder,
        state: TrainingState,
        base: BaseModel,
        draft: Draft,
        reporter: Reporter,
        world: World,
    ) -> None:
        self._config = config
        self._plan = plan
        self._draft = draft
        self._reporter = reporter
        self._world = world
        keep = Keep(config.save_total_limit, config.keep_every_steps, config.keep_best)
        self._saver = CheckpointSaver(folder.checkpoints, state, world, keep, base.write_companions)
        self._begun_s = time.monotonic()
        if config.save_strategy != "no":
            with together(world):
                state.reserve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is DivergedError:  # the one that all ranks leave a step by: the save before it may finish
            self.settle()

    def after_step(self, step: int, stop: StopRequest, validation: Validation | None, is_last: bool) -> None:
        """After step `step` (from 0): saves if it is time to, and ends the run if somebody asked for it.

        `is_last`: it is the run's last one. `validation` is the most recent one. Raises `Stopped`, the
        checkpoint on the disk, on all ranks alike; `AgreedError` when a save failed and the run is to end
        then.
        """
        # Read once: a save that ends after the ranks have voted is taken up after the next step, by all.
        has_ended, has_failed = self._saver.has_ended, self._saver.has_failed
        vote, is_time, any_failed = largest(self._world, stop.vote(self._world), self._is_time(), has_failed)
        if any_failed or (has_ended and not has_failed):
            self.settle()
        done = step + 1
        # A run that has all its steps behind it ends by itself.
        reason = None if is_last else stop.verdict(vote, self._world)
        if reason or is_time or is_save_due(self._config, self._plan, step, is_last):
            self._begin(done, validation)
        if reason:
            self.settle(must=True)
            stop.clear()
            raise Stopped(reason, done, flags_to_leave_out(self._config))

    def settle(self, must: bool = False) -> None:
        """Waits for the save in flight, if any, and takes it up; `must`: the run cannot go on without it.

        Raises `AgreedError` when it failed and the run is to end then; the checkpoints before are untouched.
        """
        end = self._saver.take()
        if end is None:
            return
        if end.fault is None:
            self._reporter.checkpoint(Save(end.step, end.stall_s, end.write_s, end.num_bytes))
        elif must or self._config.on_save_failure == "stop":
            raise AgreedError(f"the checkpoint of step {end.step} could not be saved: {end.fault}")
        elif self._world.is_main:
            logger.warning("the checkpoint of step %d could not be saved: %s", end.step, end.fault)

    def _begin(self, done: int, validation: Validation | None) -> None:
        start_s = time.perf_counter()
        self.settle()  # one at a time
        self._begun_s = time.monotonic()
        self._saver.save(*self._draft(done, validation), waited_s=time.perf_counter() - start_s)

    def _is_time(self) -> bool:
        """Whether --save_minutes have passed since the last save began, by this rank's clock."""
        minutes = self._config.save_minutes or DEFAULT_SAVE_MINUTES
        passed_s = time.monotonic() - self._begun_s
        return self._config.save_strategy == "time" and passed_s >= minutes * 60


def is_save_due(config: RunConfig, plan: StepPlan, step: int, is_last: bool) -> bool:
    """After step `step` (from 0), by --save_strategy; the clock is asked elsewhere."""
    if config.save_strategy == "no":
        return False
    if is_last:
        return True
    if config.save_strategy == "steps":
        return (step + 1) % (config.save_steps or DEFAULT_SAVE_STEPS) == 0
    return config.save_strategy == "epoch" and plan.ends_epoch(step)
