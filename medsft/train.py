"""Full-parameter fine-tuning of ChatGLM with ZeRO-3: the run's table of contents.

Started by `python -m launcher run medsft/train.py …`, `deepspeed medsft/train.py …`, torchrun, or plain
python for a single process; `--help` lists the flags.
"""

from __future__ import annotations

import os
import signal
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
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from medsft.chatglm.weights import parse_size
from medsft.checkpoint.export import export_model
from medsft.config import Config, parse
from medsft.data.progress import terminal_progress
from medsft.engine.distributed import World, from_main, largest, together
from medsft.engine.process import run_process
from medsft.engine.stop import Stopped, StopRequest
from medsft.engine.watchdog import now_at
from medsft.files import write_json
from medsft.monitor.reporter import Reporter
from medsft.provenance import Provenance
from medsft.run_folder import RunFolder, step_name, writing
from medsft.run_lock import check_shared, claim
from medsft.training import assembly
from medsft.training.early_stopping import EarlyStopping
from medsft.training.preparation import Prepared, prepare
from medsft.training.running import Running, start
from medsft.training.saving import flags_to_leave_out, is_of
from medsft.training.validating import take_up

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
    prepared = prepare(config, folder, world)
    early_stopping = EarlyStopping(config.run.early_stopping_patience, config.run.early_stopping_threshold)
    newest = None
    if prepared.checkpoint is not None:
        newest = take_up(prepared.checkpoint.manifest, prepared.validation_data, early_stopping)
    if is_finished(prepared, folder, early_stopping, world):
        return

    running = start(prepared, folder, early_stopping, newest, world)
    stop.arm()
    if reason := stop.verdict(*largest(world, stop.vote(world)), world):
        stop.clear()
        raise Stopped(reason, prepared.start_step, flags_to_leave_out(config.run))
    done = take_steps(prepared, running, early_stopping, stop, world)
    with closing(running.reporter):
        stop.finishing()
        running.saving.settle()
        now_at("the writing of the model")
        provenance = replace(running.provenance, step=done, **running.figures.totals())
        save_model(prepared, running.engine, provenance, folder, world)
        finish(folder, provenance, early_stopping, running.reporter, world)


def take_steps(
    prepared: Prepared, running: Running, early_stopping: EarlyStopping, stop: StopRequest, world: World
) -> int:
    """All steps that are left, or those until the validation loss stays where it is; the steps done then."""
    config, plan, figures = prepared.config, prepared.plan, running.figures
    validating, saving, reporter = running.validating, running.saving, running.reporter
    done = prepared.start_step
    batches = assembly.open_batches(config, prepared.data, plan, done, prepared.batch, prepared.base, world)
    with reporter, saving, batches as steps:
        for info, micro_batches in figures.waiting(steps):
            if early_stopping.is_due:
                break
            done = info.step + 1
            is_last = done == plan.num_steps
            is_reported = is_last or done % config.run.logging_steps == 0
            # A validation may end the run, whose last step is reported.
            may_be_reported = is_reported or validating.is_due(info.step, is_last)
            now_at(f"step {done}")
            result = running.step(info.step, micro_batches, info.num_targets, measure=may_be_reported)
            figures.add(info, result.loss_sum, result.applied)
            with figures.paused():
                validating.after_step(info.step, is_last)
            is_last = is_last or early_stopping.is_due
            if is_reported or is_last:
                epoch, rate = plan.epochs_done(info.step), running.schedule(info.step)
                reporter.train(figures.report(done, epoch, rate, result.grad_norm, running.step.state()))
            with figures.paused():
                running.samples.after_step(info.step, is_last)
                saving.after_step(info.step, stop, validating.newest, is_last)
            now_at(f"its wait for the data of step {done + 1}")
    return done


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


def is_finished(prepared: Prepared, folder: RunFolder, early_stopping: EarlyStopping, world: World) -> bool:
    """Whether the run that this one would go on with has nothing left to do, which is logged."""
    checkpoint, last = prepared.checkpoint, prepared.plan.num_steps
    if checkpoint is None or not (checkpoint.manifest.step == last or early_stopping.is_due):
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


def save_model(
    prepared: Prepared, engine: DeepSpeedEngine, provenance: Provenance, folder: RunFolder, world: World
) -> None:
    """The final model, complete when its folder appears."""
    with terminal_progress("writing the model") as progress:
        export_model(
            engine.module,
            prepared.base.config,
            prepared.base.tokenizer,
            provenance,
            folder.model,
            max_shard_bytes=parse_size(prepared.config.run.max_shard_size),
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
    """DONE is the last file: who sees it can rely on all the rest. Trackers are waited for after it."""
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
