"""Full-parameter fine-tuning of ChatGLM with ZeRO-3: the run's table of contents.

Started by `python -m launcher run medsft/train.py …`, `deepspeed medsft/train.py …`, torchrun, or plain
python for a single process; `--help` lists the flags.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

if __name__ == "__main__":

    def leave(number: int, frame: FrameType | None) -> None:
        """Ends this rank at a signal during the imports, which take seconds, as `StopRequest` does later."""
        if os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0":
            name = signal.Signals(number).name
            said = "interrupted" if number == signal.SIGINT else f"{name}: stopped before the training began"
            os.write(2, f"medsft: {said}\n".encode())
        os._exit(130 if number == signal.SIGINT else 75)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)

if __package__ in (None, ""):
    # Run by path, this folder is sys.path[0] and would shadow other packages; the repository belongs there.
    _HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(_HERE.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]

import logging
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from medsft import assembly
from medsft.assembly import most_tokens
from medsft.chatglm.base import BaseModel
from medsft.chatglm.weights import parse_size
from medsft.checkpoint.export import export_model
from medsft.checkpoint.manifest import Validation
from medsft.checkpoint.reader import Checkpoint
from medsft.config import Config, parse
from medsft.data.dataset import EncodedDataset
from medsft.data.encode import describe_example
from medsft.data.plan import StepPlan
from medsft.data.progress import terminal_progress
from medsft.early_stopping import EarlyStopping
from medsft.engine.distributed import (
    World,
    from_all,
    from_main,
    largest,
    numbers_of_all,
    sum_over_ranks,
    together,
)
from medsft.engine.process import run_process
from medsft.engine.state import TrainingState
from medsft.engine.step import TrainStep
from medsft.engine.stop import Stopped, StopRequest
from medsft.engine.watchdog import progress
from medsft.evaluation.loss import validation_loss
from medsft.files import write_json
from medsft.fitting import check_fit
from medsft.launch import launch_names
from medsft.monitor.health import ModelFacts
from medsft.monitor.metrics import Figures, Hardware, Start
from medsft.monitor.reporter import Reporter, open_reporter
from medsft.monitor.trackers import check_installed
from medsft.planner.shape import Shape
from medsft.provenance import Provenance, software_versions
from medsft.run_folder import RunFolder, step_name, writing
from medsft.run_lock import check_shared, claim
from medsft.samples import Samples
from medsft.saving import (
    Saving,
    draft_manifest,
    find_checkpoint,
    flags_to_leave_out,
    identity_of,
    is_of,
    make_room,
    restore,
)

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger("medsft.train")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a training from its command line; returns the exit code of this rank."""
    return run_process(lambda: parse(sys.argv[1:] if arguments is None else arguments), run)


def run(config: Config, world: World, stop: StopRequest) -> None:
    """The whole of a run, in a folder that no other run writes to meanwhile."""
    with claimed_folder(config, world, stop) as folder:
        train(config, folder, world, stop)


def train(config: Config, folder: RunFolder, world: World, stop: StopRequest) -> None:
    """Everything a run does, top to bottom."""
    with together(world):
        if world.is_main:
            check_installed(config.run.report_to)
    batch, ds_config = assembly.settle_settings(config, world)
    base = assembly.open_base(config, world)
    data, validation_data = assembly.encode_data(config, base, folder, world)
    logger.info("first example, %s\n%s", data.source(0), describe_example(data[0], base.tokenizer))
    plan = assembly.plan_steps(config, data, validation_data, batch, world)
    assembly.compare_ranks(config, base, data, validation_data, plan, ds_config, world)
    fit = check_fit(config, base.config, data, plan, batch, most_tokens(config), ds_config, world)
    checkpoint = find_checkpoint(config, base, plan, folder, world)
    start_step = 0 if checkpoint is None else checkpoint.manifest.step
    early_stopping = EarlyStopping(config.run.early_stopping_patience, config.run.early_stopping_threshold)
    if checkpoint is not None:
        early_stopping.restore(checkpoint.manifest.counters)
    if is_finished(folder, checkpoint, plan, early_stopping, world):
        return

    engine = assembly.start_model(config, base, checkpoint, ds_config, world)
    provenance = describe_run(
        config, base, data, validation_data, plan, folder, ds_config, fit, checkpoint, world
    )
    hardware = Hardware(from_all(world, socket.gethostname()), assembly.peak_flops(world.device))
    texts = partial(assembly.texts, config, base, data, plan, ds_config, fit, hardware.hosts)
    start = Start(start_step, world.size, tuple(dict.fromkeys(hardware.hosts)))
    reporter = start_reporter(config, base, plan, folder, texts, start, world)
    schedule = assembly.learning_rate(config, plan)
    step = TrainStep(engine, world, schedule, config.optimization.max_nonfinite_steps)
    flops_of_step = partial(assembly.flops_of_step, base, data, plan)
    figures = Figures(world.device, sum_over_ranks, partial(numbers_of_all, world), hardware, flops_of_step)
    state = TrainingState(engine, world)
    if checkpoint is not None:
        restore(checkpoint, state, step, figures, world)
    identity = identity_of(base, plan)
    draft = partial(draft_manifest, provenance, identity, plan, ds_config, step, figures, early_stopping)
    saving = Saving(config.run, plan, folder, state, base, draft, reporter, world)
    validation = None if checkpoint is None else checkpoint.manifest.validation

    stop.arm()
    if reason := stop.verdict(*largest(world, stop.vote(world)), world):
        stop.clear()
        raise Stopped(reason, start_step, flags_to_leave_out(config.run))
    batches = assembly.open_batches(config, data, plan, start_step, batch, base, world)
    samples = Samples(config.run.sample_steps, engine, base, validation_data or data, world)
    done = start_step
    with reporter, saving, batches as steps:
        for info, micro_batches in figures.waiting(steps):
            if early_stopping.is_due:
                break
            done = info.step + 1
            is_last = done == plan.num_steps
            is_reported = is_last or done % config.run.logging_steps == 0
            progress(f"step {done}")
            result = step(info.step, micro_batches, info.num_targets, measure=is_reported)
            figures.add(info, result.loss_sum, result.applied)
            if is_reported:
                epoch = plan.epochs_done(info.step)
                rate = schedule(info.step)
                reporter.train(figures.report(done, epoch, rate, result.grad_norm, step.state()))
            with figures.paused():
                if validation_data is not None and (is_last or is_evaluation_due(config, plan, info.step)):
                    progress(f"the validation after step {done}")
                    size, limit = config.run.per_device_eval_batch_size, most_tokens(config)
                    loss = validation_loss(engine, validation_data, size, limit, base.pad_token_id, world)
                    loss = from_main(world, loss)  # all ranks decide by one number
                    reporter.validation(done, loss)
                    early_stopping.see(done, loss)
                    validation = Validation(done, loss) if math.isfinite(loss) else None
                if samples.are_due(done, is_last or early_stopping.is_due):
                    progress(f"the samples after step {done}")
                    reporter.samples(done, samples.ask())
                saving.after_step(info.step, stop, validation, is_last=early_stopping.is_due)
            progress(f"its wait for the data of step {done + 1}")
    stop.finishing()
    saving.settle()
    progress("the writing of the model")
    provenance = replace(provenance, step=done, **figures.totals())
    save_model(config, engine, base, provenance, folder, world)
    finish(folder, provenance, early_stopping, reporter, world)


@contextmanager
def claimed_folder(config: Config, world: World, stop: StopRequest) -> Iterator[RunFolder]:
    """The run's folder, held by rank 0 and seen by all."""
    folder = RunFolder(Path(config.run.output_dir))
    with ExitStack() as held:
        with together(world):
            lock = held.enter_context(claim(folder.path)) if world.is_main else None
            if world.is_main:
                stop.watch(folder.stop)
        if config.run.save_strategy != "no":
            owner = from_main(world, lock and lock.owner)
            with together(world):
                check_shared(folder.path, owner)
        yield folder


def is_finished(
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    plan: StepPlan,
    early_stopping: EarlyStopping,
    world: World,
) -> bool:
    """Whether the run that this one would go on with has nothing left to do, which is logged."""
    if checkpoint is None or not (checkpoint.manifest.step == plan.num_steps or early_stopping.is_due):
        return False
    if not from_main(world, is_of(checkpoint, folder) and folder.done.exists()):
        return False
    logger.info(
        "%s holds a finished run of %d steps (DONE): nothing to do. For more of it give more %s; to start "
        "over, --overwrite_output_dir true or another folder.",
        folder.path,
        checkpoint.manifest.step,
        "--early_stopping_patience" if early_stopping.is_due else "--max_steps or --num_train_epochs",
    )
    return True


def describe_run(
    config: Config,
    base: BaseModel,
    data: EncodedDataset,
    validation_data: EncodedDataset | None,
    plan: StepPlan,
    folder: RunFolder,
    ds_config: dict[str, Any],
    fit: str,
    checkpoint: Checkpoint | None,
    world: World,
) -> Provenance:
    """Makes room in the folder, writes run.json, and begins the model's provenance.

    A run that begins at step 0 leaves nothing of an earlier one in place; one that goes on from a checkpoint
    of this folder moves only what is newer.
    """
    provenance = Provenance(
        base_model=str(base.folder),
        data_fingerprint=data.fingerprint,
        prompt_template=data.summary.template,
        flags=config.flags(),
        versions=software_versions(),
    )
    start_step = 0 if checkpoint is None else checkpoint.manifest.step
    with together(world), writing(folder.path):
        if world.is_main:
            make_room(folder, checkpoint)
            facts = {
                "launch": launch_names(os.environ),
                "world_size": world.size,
                "start_step": start_step,
                "num_steps": plan.num_steps,
                "global_batch_size": plan.global_batch_size,
                "num_examples": len(data),
                "data": data.summary.facts(),
                "validation_data": validation_data and validation_data.summary.facts(),
                "plan": fit,
                "deepspeed": ds_config,
            }
            write_json(folder.description, {**provenance.origin(), **facts})
    return provenance


def start_reporter(
    config: Config,
    base: BaseModel,
    plan: StepPlan,
    folder: RunFolder,
    texts: Callable[[], Mapping[str, str]],
    start: Start,
    world: World,
) -> Reporter:
    """Opens everything that the run reports to, and tells what it is."""
    model = ModelFacts(Shape.of(base.config).num_parameters, config.optimization.learning_rate)
    trackers = config.run.report_to
    reporter = open_reporter(
        folder, plan.num_steps, world.is_main, start.step, model, trackers, config.flags()
    )
    reporter.start(start)
    reporter.texts(texts)
    return reporter


def is_evaluation_due(config: Config, plan: StepPlan, step: int) -> bool:
    """After step `step` (from 0): every `--eval_steps`, or when an epoch ends."""
    if config.run.eval_steps is not None:
        return (step + 1) % config.run.eval_steps == 0
    return plan.ends_epoch(step)


def save_model(
    config: Config,
    engine: DeepSpeedEngine,
    base: BaseModel,
    provenance: Provenance,
    folder: RunFolder,
    world: World,
) -> None:
    """The final model, complete when its folder appears."""
    with terminal_progress("writing the model") as progress:
        export_model(
            engine.module,
            base.config,
            base.tokenizer,
            provenance,
            folder.model,
            max_shard_bytes=parse_size(config.run.max_shard_size),
            world=world,
            progress=progress,
        )
    logger.info("model written to %s", folder.model)


def finish(
    folder: RunFolder,
    provenance: Provenance,
    early_stopping: EarlyStopping,
    reporter: Reporter,
    world: World,
) -> None:
    """DONE is the last thing written: who sees it can rely on all the rest."""
    best_loss, best_step = early_stopping.best_loss, early_stopping.best_step
    reporter.finish(provenance.step, best_loss, best_step, provenance.flags)
    with together(world), writing(folder.path):
        if world.is_main:
            write_json(folder.done, {"step": provenance.step, "train_loss": provenance.train_loss})
    run = shlex.quote(str(folder.path))
    if best_step not in (None, provenance.step) and (folder.checkpoints / step_name(best_step)).exists():
        logger.info("the best by validation: medsft export %s MODEL_FOLDER --step %d", run, best_step)
    logger.info("look at it: medsft report %s", run)
    logger.info("done: medsft chat --model %s", shlex.quote(str(folder.model)))


if __name__ == "__main__":
    sys.exit(main())
