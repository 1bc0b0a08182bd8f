"""One rank of a measured training: opened and stepped by the trainer's own parts, on made-up examples."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from made_up import made_up_rows

from medsft.chatglm.base import BaseModel
from medsft.checkpoint.manifest import Manifest
from medsft.config import Config, parse
from medsft.data.pack import pack
from medsft.data.plan import StepPlan
from medsft.engine.distributed import World, complete_environment, from_all, start, sum_over_ranks
from medsft.engine.step import TrainStep
from medsft.engine.stopwatch import Stopwatch
from medsft.monitor.metrics import Figures
from medsft.provenance import Provenance, software_versions
from medsft.run_folder import RunFolder
from medsft.training import assembly, saving
from medsft.training.early_stopping import EarlyStopping

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

GLOBAL_BATCH = 64  # examples; what a checkpoint and the run that goes on from it must have in common
NUM_STEPS = 100_000


@dataclass(frozen=True)
class Run:
    """What a training settles before its model is built."""

    config: Config
    world: World
    ds_config: dict[str, Any]
    base: BaseModel
    plan: StepPlan
    folder: RunFolder

    def train_step(self, engine: DeepSpeedEngine, stopwatch: Stopwatch | None = None) -> TrainStep:
        """Steps as the trainer makes them."""
        limit = self.config.optimization.max_nonfinite_steps
        schedule = assembly.learning_rate(self.config, self.plan)
        return TrainStep(engine, self.world, schedule, limit, stopwatch)

    def draft(self, step: TrainStep, number: int) -> Manifest:
        """The manifest of the checkpoint of step `number`, but for what the saver adds."""
        provenance = Provenance(
            str(self.base.folder), self.plan.fingerprint, "none", self.config.flags(), software_versions()
        )
        identity = saving.identity_of(self.base, self.plan)
        figures = Figures(self.world.device, sum_over_ranks)
        manifest, _ = saving.draft_manifest(
            provenance, identity, self.plan, self.ds_config, step, figures, EarlyStopping(), number, None
        )
        return manifest


def open_run(options: argparse.Namespace) -> Run:
    """Joins the ranks and opens the model, as train.py does."""
    complete_environment(os.environ)
    world = start(timeout_min=60)
    flags = {
        "model_name_or_path": options.model,
        "train_file": "none",
        "output_dir": options.folder,
        "deepspeed": options.deepspeed,
        "per_device_train_batch_size": 1,
        "global_batch_size": GLOBAL_BATCH,
        "learning_rate": 1e-4,
    }
    config = parse([text for name, value in flags.items() for text in (f"--{name}", str(value))])
    base = assembly.open_base(config, world)
    batch, ds_config = assembly.settle_settings(config, base, world)
    plan = StepPlan.for_run(1000, "none", batch.global_size, 0, 1.0, NUM_STEPS)
    return Run(config, world, ds_config, base, plan, RunFolder(Path(options.folder)))


def do_step(run: Run, step: TrainStep, number: int, num_examples: int) -> float:
    """A real optimiser step on `num_examples` made-up examples a rank, of 66 tokens on average.

    Seconds that its data took: the packing, not the making up.
    """
    rows = made_up_rows(num_examples * run.world.size, run.base.config, seed=number)
    num_targets = sum(len(row.input_ids) - row.context_length for row in rows)
    begin_s = time.perf_counter()
    micro_batch = pack(rows[run.world.rank :: run.world.size], run.base.pad_token_id)
    data_s = time.perf_counter() - begin_s
    step(number, [micro_batch], num_targets)
    if run.world.device.type == "cuda":
        torch.cuda.synchronize()
    return data_s


def timed(world: World, action: Callable[[], Any]) -> float:
    """Seconds until the slowest rank is through with `action`, all beginning together."""
    from_all(world, None)
    begin_s = time.perf_counter()
    action()
    return max(from_all(world, time.perf_counter() - begin_s))
