"""The best validation loss so far, and whether training has gone on for long enough without a better one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class EarlyStopping:
    """Counts validations without progress, as transformers' `EarlyStoppingCallback` does.

    A loss that is lower than the best so far by more than `threshold` nats is progress; after `patience`
    others in a row the training is to end. patience None: never. All ranks must see the same losses.
    """

    def __init__(self, patience: int | None = None, threshold: float = 0.0) -> None:
        self._patience = patience
        self._threshold = threshold
        self._num_without = 0
        self.best_loss: float | None = None
        self.best_step: int | None = None

    @property
    def is_due(self) -> bool:
        """Whether the training is to end."""
        return self._patience is not None and self._num_without >= self._patience

    def see(self, step: int, loss: float) -> None:
        """Takes up the validation loss after `step` steps; one that is no number is no progress."""
        best = math.inf if self.best_loss is None else self.best_loss
        self._num_without = 0 if best - loss > self._threshold else self._num_without + 1
        if math.isfinite(loss) and loss < best:
            self.best_loss, self.best_step = loss, step
        if self.is_due:
            logger.info(
                "step %d: the validation loss has not come down by more than %g in %d validations; the "
                "training ends here (--early_stopping_patience). The best was %s after step %s.",
                step,
                self._threshold,
                self._num_without,
                "none" if self.best_loss is None else f"{self.best_loss:.4f}",
                self.best_step,
            )

    def counters(self) -> dict[str, int | float | None]:
        """What a checkpoint takes along."""
        return {
            "validations_without_progress": self._num_without,
            "best_validation_loss": self.best_loss,
            "best_validation_step": self.best_step,
        }

    def restore(self, counters: Mapping[str, int | float | None]) -> None:
        """Goes on from `counters`; a checkpoint from before these were counted begins anew."""
        self._num_without = counters.get("validations_without_progress", 0)
        self.best_loss = counters.get("best_validation_loss")
        self.best_step = counters.get("best_validation_step")
