"""The validations of a run: when they are due, and what follows from them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from medsft.checkpoint.manifest import Manifest, Validation
from medsft.data.dataset import EncodedDataset
from medsft.data.plan import StepPlan
from medsft.engine.distributed import World, from_main
from medsft.engine.watchdog import now_at
from medsft.monitor.reporter import Reporter
from medsft.training.early_stopping import EarlyStopping

logger = logging.getLogger(__name__)


def take_up(
    manifest: Manifest, data: EncodedDataset | None, early_stopping: EarlyStopping
) -> Validation | None:
    """The newest validation of a checkpoint, whose counts `early_stopping` goes on with.

    None, and nothing counted, where the run validates with other data now: losses of two sets do not compare.
    """
    newest = manifest.validation
    if newest is not None and data is not None and not newest.is_comparable(data.fingerprint):
        logger.info(
            "the validation data are others than those of step %d: the best loss and the validations without "
            "progress are counted anew",
            newest.step,
        )
        return None
    early_stopping.restore(manifest.counters)
    return newest


class Validating:
    """After the last step, and at each epoch's end or every `every` steps; never without data.

    newest: the last validation whose loss is a number, also of the run that this one goes on with.
    """

    def __init__(
        self,
        every: int | None,
        plan: StepPlan,
        data: EncodedDataset | None,
        measure: Callable[[EncodedDataset], float],
        early_stopping: EarlyStopping,
        newest: Validation | None,
        reporter: Reporter,
        world: World,
    ) -> None:
        """`measure`: the loss over all ranks, in nats a supervised token; a collective."""
        self._every = every
        self._plan = plan
        self._data = data
        self._measure = measure
        self._early_stopping = early_stopping
        self.newest = newest
        self._reporter = reporter
        self._world = world

    def is_due(self, step: int, is_last: bool) -> bool:
        """Whether there is a validation after step `step` (from 0). `is_last`: of those that are planned."""
        if self._data is None:
            return False
        if self._every is None:
            return is_last or self._plan.ends_epoch(step)
        return is_last or (step + 1) % self._every == 0

    def after_step(self, step: int, is_last: bool) -> None:
        """Validates after step `step` (from 0), if it is time for it. A collective."""
        if self._data is None or not self.is_due(step, is_last):
            return
        done = step + 1
        now_at(f"the validation after step {done}")
        loss = from_main(self._world, self._measure(self._data))  # all ranks decide by one number
        self._reporter.validation(done, loss)
        self._early_stopping.see(done, loss)
        if math.isfinite(loss):
            self.newest = Validation(done, loss, self._data.fingerprint)
