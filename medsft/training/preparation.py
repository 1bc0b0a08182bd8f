"""What a run works with, settled by all ranks together before a weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from medsft.chatglm.base import BaseModel
from medsft.checkpoint.reader import Checkpoint
from medsft.config import Config
from medsft.data.dataset import EncodedDataset
from medsft.data.encode import describe_example
from medsft.data.plan import StepPlan
from medsft.engine.deepspeed_config import Batch
from medsft.engine.distributed import World, together
from medsft.monitor.trackers import check_installed
from medsft.run_folder import RunFolder
from medsft.training import assembly
from medsft.training.fitting import Fit, check_fit
from medsft.training.saving import find_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The same on every rank.

    Attributes:
        config: what was asked for.
        base: the model to tune, its weights still in their files.
        batch: how a step is cut for this number of ranks.
        ds_config: what DeepSpeed gets.
        data, validation_data: tokens; None without --validation_file.
        plan: which examples make up which step.
        fit: that memory suffices, and how.
        checkpoint: what the run goes on from; None: from the base model.
    """

    config: Config
    base: BaseModel
    batch: Batch
    ds_config: dict[str, Any]
    data: EncodedDataset
    validation_data: EncodedDataset | None
    plan: StepPlan
    fit: Fit
    checkpoint: Checkpoint | None

    @property
    def start_step(self) -> int:
        """Steps done before this start of the run."""
        return 0 if self.checkpoint is None else self.checkpoint.manifest.step

    @property
    def unseen(self) -> EncodedDataset:
        """Examples that the model does not learn from, where there are any."""
        return self.validation_data or self.data


def prepare(config: Config, folder: RunFolder, world: World) -> Prepared:
    """Everything that can be wrong is found here, in the run's first seconds. A collective.

    Raises `UserError` on all ranks.
    """
    with together(world):
        if world.is_main:
            check_installed(config.run.report_to)
    base = assembly.open_base(config, world)
    batch, ds_config = assembly.settle_settings(config, base, world)
    data, validation_data = assembly.encode_data(config, base, folder, world)
    logger.info("first example, %s\n%s", data.source(0), describe_example(data[0], base.tokenizer))
    plan = assembly.plan_steps(config, data, validation_data, batch, world)
    assembly.compare_ranks(config, base, data, validation_data, plan, ds_config, world)
    fit = check_fit(config, base.config, data, plan, batch, assembly.most_tokens(config), ds_config, world)
    checkpoint = find_checkpoint(config, base, plan, folder, world)
    return Prepared(config, base, batch, ds_config, data, validation_data, plan, fit, checkpoint)
