"""The validations of a run: when they are due, and what follows from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from medsft.assembly import most_tokens
from medsft.checkpoint.manifest import Validation
from medsft.early_stopping import EarlyStopping
from medsft.engine.distributed import World, from_main
from medsft.engine.watchdog import progress
from medsft.evaluation.loss import validation_loss
from medsft.monitor.reporter import Reporter
from medsft.preparation import Prepared

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Validating:
    """After the last step, and at each epoch's end or every `--eval_steps`; never without --validation_file.

    newest: the last validation whose loss is a number, also of the run that this one goes on with.
    """

    def __init__(
        self,
        prepared: Prepared,
        engine: DeepSpeedEngine,
        early_stopping: EarlyStopping,
        reporter: Reporter,
        world: World,
    ) -> None:
        self._prepared = prepared
        self._engine = engine
        self._early_stopping = early_stopping
        self._reporter = reporter
        self._world = world
        checkpoint = prepared.checkpoint
        self.newest: Validation | None = None if checkpoint is None else checkpoint.manifest.validation

    def after_step(self, step: int) -> None:
        """After step `step` (from 0): the loss over all ranks, if it is time for it. A collective."""
        data, config, base = self._prepared.validation_data, self._prepared.config, self._prepared.base
        if data is None or not self._is_due(step):
            return
        done = step + 1
        progress(f"the validation after step {done}")
        size, limit = config.run.per_device_eval_batch_size, most_tokens(config)
        loss = validation_loss(self._engine, data, size, limit, base.pad_token_id, self._world)
        loss = from_main(self._world, loss)  # all ranks decide by one number
        self._reporter.validation(done, loss)
        self._early_stopping.see(done, loss)
        self.newest = Validation(done, loss) if math.isfinite(loss) else None

    def _is_due(self, step: int) -> bool:
        plan, every = self._prepared.plan, self._prepared.config.run.eval_steps
        if step + 1 == plan.num_steps:
            return True
        return plan.ends_epoch(step) if every is None else (step + 1) % every == 0
