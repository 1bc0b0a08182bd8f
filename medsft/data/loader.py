"""The micro-batches of each step for one rank, made in the background while the model works."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medsft.data.dataset import EncodedDataset
from medsft.data.pack import MicroBatch, pack, packed_slots, pad, padded_slots
from medsft.data.plan import Split

SplitStep = Callable[[Sequence[int]], Split]
"""Lengths of a step's examples -> which rank and micro-batch each goes to."""


class Plan(Protocol):
    """`StepPlan` or `InOrderPlan`."""

    @property
    def num_steps(self) -> int: ...

    def examples(self, step: int) -> np.ndarray: ...


@dataclass(frozen=True)
class StepInfo:
    """One step's whole global batch, over all ranks.

    Attributes:
        step: counted from 0.
        num_examples: examples.
        num_tokens: useful tokens.
        num_targets: supervised tokens: what the sum of the loss is divided by.
        num_slots: tokens computed, padding and dummies included.
    """

    step: int
    num_examples: int
    num_tokens: int
    num_targets: int
    num_slots: int


@dataclass(frozen=True)
class _Failure:
    error: Exception


_END = object()


class StepBatches:
    """Iterator over steps: (StepInfo of the global batch, this rank's micro-batches).

    Every rank makes the same number of micro-batches in each step. What is yielded depends on the step alone,
    so a resumed run starts at its step and sees what the first would have seen. The preparing thread is at
    most `depth` steps ahead; what it raises is raised here. Use it as a context manager, or `close()` it.

    Args:
        dataset: encoded examples.
        plan: which examples are in which step.
        split: how a step is shared out, e.g. `partial(split, world_size=2, num_micro_batches=1)`.
        rank: whose micro-batches to make.
        pad_token_id: fills the slots without tokens.
        packed: one row of several examples, else one padded row per example.
        start_step: first step to yield.
        end_step: the step after the last; None: that of the plan.
        depth: steps prepared ahead, at least 1.
        pin_memory: put tensors into page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        dataset: EncodedDataset,
        plan: Plan,
        split: SplitStep,
        rank: int,
        pad_token_id: int,
        *,
        packed: bool = True,
        start_step: int = 0,
        end_step: int | None = None,
        depth: int = 2,
        pin_memory: bool = False,
    ) -> None:
        self._dataset = dataset
        self._plan = plan
        self._split = split
        self._rank = rank
        self._pad_token_id = pad_token_id
        self._packed = packed
        self._pin_memory = pin_memory
        self._steps = range(start_step, plan.num_steps if end_step is None else end_step)
        self._queue: queue.Queue[object] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._prepare, name="step-batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[StepInfo, tuple[MicroBatch, ...]]]:
        return self

    def __next__(self) -> tuple[StepInfo, tuple[MicroBatch, ...]]:
        if self._closed.is_set():
            raise StopIteration
        item = self._queue.get()
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        if item is _END:
            self.close()
            raise StopIteration
        return item

    def __enter__(self) -> "StepBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop preparing and end the thread; what was prepared is dropped. May be called again."""
        self._closed.set()
        while self._thread.is_alive():
            try:  # a thread that waits for room in the queue goes on, and then sees that it is to stop
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def make_step(self, step: int) -> tuple[StepInfo, tuple[MicroBatch, ...]]:
        """What the iterator yields for `step`; a pure function of it."""
        indices = self._plan.examples(step)
        lengths = self._dataset.lengths[indices].tolist()
        shares = self._split(lengths)
        slots = packed_slots if self._packed else padded_slots
        info = StepInfo(
            step=step,
            num_examples=len(indices),
            num_tokens=sum(lengths),
            num_targets=int(self._dataset.num_targets[indices].sum()),
            num_slots=sum(
                slots([lengths[position] for position in positions])
                for share in shares
                for positions in share
            ),
        )
        lay_out = pack if self._packed else pad
        micro_batches = (
            lay_out([self._dataset[int(indices[position])] for position in positions], self._pad_token_id)
            for positions in shares[self._rank]
        )
        if self._pin_memory:
            micro_batches = (micro_batch.pin_memory() for micro_batch in micro_batches)
        return info, tuple(micro_batches)

    def _prepare(self) -> None:
        try:
            for step in self._steps:
                if self._closed.is_set():
                    return
                self._queue.put(self.make_step(step))
            self._queue.put(_END)
        except Exception as error:
            # Whatever it is, the consumer raises it: dying with this thread, it would leave it waiting.
            self._queue.put(_Failure(error))
