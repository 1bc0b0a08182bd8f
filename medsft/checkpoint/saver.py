"""Writes checkpoints beside the training: a step waits only until its state is copied to host memory.

Every rank has a thread that writes its own file; the threads talk over a process group of their own, so
that they never meet the collectives of the training. Rank 0's thread begins and commits (`commit`). One save
is in flight at most; how it ended is known to all ranks alike, and is taken up at the end of a step.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from medsft.checkpoint import commit
from medsft.checkpoint.crash_points import reach
from medsft.checkpoint.layout import shard_name
from medsft.checkpoint.manifest import FileEntry, Manifest, Parameter, RankState, even_slices, tensor_name
from medsft.checkpoint.retention import Keep, superseded
from medsft.checkpoint.shard import write_shard
from medsft.checkpoint.survey import comparable_losses, survey
from medsft.checkpoint.verify import describe_file
from medsft.engine.adam import STATES
from medsft.engine.distributed import World
from medsft.engine.rng import rng_states
from medsft.engine.state import TrainingState, scaler_state
from medsft.errors import UserError
from medsft.run_folder import writing

logger = logging.getLogger(__name__)

# A slow disk may keep a rank for hours, and the others' threads wait for it. A rank that is gone is noticed
# by its closed connection, and one that hangs by the training itself.
_PATIENCE = timedelta(days=1)
# Whoever waits for a save says so this often, in seconds.
_PATIENT_S = 60.0


@dataclass(frozen=True)
class SaveEnd:
    """How a save ended, the same on all ranks but for the times, which are this rank's.

    stall_s: seconds that training waited. write_s: from the copy to the commit. num_bytes: of all files.
    fault: None where the checkpoint is committed, else what to tell the user.
    """

    step: int
    stall_s: float
    write_s: float
    num_bytes: int
    fault: str | None


@dataclass(frozen=True)
class _Part:
    """What one rank has written."""

    file: str
    entry: FileEntry
    rank_state: RankState


class CheckpointSaver:
    """Saves a training state under `root`, keeping of the earlier checkpoints what `keep` says.

    `write_model` writes configuration and tokenizer into a folder, so that a checkpoint can be exported
    anywhere. Making one is a collective, and so is every `save`.
    """

    def __init__(
        self,
        root: Path,
        state: TrainingState,
        world: World,
        keep: Keep,
        write_model: Callable[[Path], None],
    ) -> None:
        self._root = root
        self._state = state
        self._world = world
        self._keep = keep
        self._write_model = write_model
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._thread: threading.Thread | None = None
        self._end: SaveEnd | None = None
        self._crash: BaseException | None = None
        self._stage = ""

    @property
    def has_ended(self) -> bool:
        """Whether the save that was begun last is over on this rank and has not been taken up."""
        return self._thread is not None and not self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether it is over and has left no checkpoint."""
        return self.has_ended and (self._end is None or self._end.fault is not None)

    def save(self, draft: Manifest, figures_loss_sum: float, waited_s: float) -> None:
        """Copies the state of the step that `draft` names and returns; the rest happens in the background.

        `draft` has everything but files, parameters, ranks, Adam's step and the loss scaler. The save before
        must have been taken up; `waited_s` seconds were waited for that.
        """
        assert self._thread is None, "one save at a time"
        start_s = time.perf_counter()
        tensors, adam_step = self._state.copy()
        draft = replace(draft, adam_step=adam_step, loss_scaler=scaler_state(self._state.loss_scaler))
        rank_state = RankState(figures_loss_sum, rng_states())
        stall_s = waited_s + time.perf_counter() - start_s
        work = partial(self._run, draft, tensors, rank_state, stall_s)
        self._end = self._crash = None
        # A daemon: a rank that must leave at once does not wait for a disk.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def take(self) -> SaveEnd | None:
        """Waits for the save in flight and tells how it ended; None when there is none.

        What went wrong for other reasons than disk and files is raised here.
        """
        if self._thread is None:
            return None
        start_s = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(timeout=_PATIENT_S)
            if self._thread.is_alive():
                waited_s = time.monotonic() - start_s
                logger.info(
                    "waiting for the checkpoint to be written, for %.0f s now: %s", waited_s, self._stage
                )
        self._thread = None
        if self._crash is not None:
            raise self._crash
        return self._end

    def _run(
        self,
        draft: Manifest,
        tensors: Mapping[tuple[str, str], torch.Tensor],
        rank_state: RankState,
        stall_s: float,
    ) -> None:
        start_s = time.perf_counter()
        try:
            num_bytes, fault = self._write(draft, tensors, rank_state)
            self._end = SaveEnd(draft.step, stall_s, time.perf_counter() - start_s, num_bytes, fault)
        except BaseException as error:
            self._crash = error  # dying with this thread, it would never be told

    def _write(
        self, draft: Manifest, tensors: Mapping[tuple[str, str], torch.Tensor], rank_state: RankState
    ) -> tuple[int, str | None]:
        """The whole of a save: (bytes of the checkpoint, None) or (0, what went wrong on some rank)."""
        self._stage = "the folder is made"
        temporary, fault = self._from_main(partial(self._begin, draft.step))
        if fault is not None:
            return 0, fault
        self._stage = "this rank writes its file"
        part, fault = _tried(partial(self._write_part, temporary, draft, tensors, rank_state))
        self._stage = "other ranks write their files"
        everyone: list[Any] = [None] * self._world.size
        dist.all_gather_object(everyone, (part, fault), group=self._group)
        self._stage = "rank 0 commits"
        faults = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(everyone) if text is not None]
        num_bytes, fault = self._from_main(
            partial(self._finish, temporary, draft, [part for part, _ in everyone], faults)
        )
        return (num_bytes or 0), fault

    def _from_main(self, action: Callable[[], Any]) -> tuple[Any, str | None]:
        """What `action` gives on rank 0, and its fault, on every rank."""
        box = [_tried(action) if self._world.is_main else (None, None)]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def _begin(self, step: int) -> Path:
        num_elements = sum(math.prod(shape) for shape in self._state.shapes.values())
        commit.check_space(self._root, num_elements * torch.float32.itemsize * len(STATES))
        return commit.begin(self._root, step)

    def _write_part(
        self,
        temporary: Path,
        draft: Manifest,
        tensors: Mapping[tuple[str, str], torch.Tensor],
        rank_state: RankState,
    ) -> _Part:
        if not temporary.is_dir():
            raise UserError(
                f"{temporary}, made by rank 0, is not there for rank {self._world.rank}. Give an "
                "--output_dir on a file system that all nodes share."
            )
        file = shard_name(self._world.rank, self._world.size)
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        with writing(temporary):
            entry = write_shard(
                temporary / file,
                {tensor_name(state, name): tensor for (state, name), tensor in tensors.items()},
                _at_half(num_bytes, partial(reach, "shard-half", draft.step)),
            )
        reach("shard-written", draft.step)
        return _Part(file, entry, rank_state)

    def _finish(self, temporary: Path, draft: Manifest, parts: list[_Part], faults: list[str]) -> int:
        """Commits on rank 0 what all ranks have written, or gives it up; returns the bytes."""
        try:
            if faults:
                raise UserError("; ".join(faults))
            with writing(temporary):
                self._write_model(temporary / "model")
                companions = {
                    path.relative_to(temporary).as_posix(): describe_file(path)
                    for path in sorted((temporary / "model").rglob("*"))
                    if path.is_file()
                }
            manifest = self._complete(draft, parts, companions)
            commit.commit(self._root, draft.step, temporary, manifest)
        except Exception:
            commit.abandon(temporary)
            raise
        self._retire()
        return manifest.num_bytes()

    def _complete(
        self, draft: Manifest, parts: Sequence[_Part], companions: Mapping[str, FileEntry]
    ) -> Manifest:
        files = [part.file for part in parts]
        return replace(
            draft,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            world_size=self._world.size,
            ranks=tuple(part.rank_state for part in parts),
            files={**{part.file: part.entry for part in parts}, **companions},
            parameters={
                name: Parameter(shape, even_slices(math.prod(shape), files))
                for name, shape in self._state.shapes.items()
            },
        )

    def _retire(self) -> None:
        """Deletes what newer checkpoints supersede; a fault there costs room, but no checkpoint."""
        try:
            good = [found for found in survey(self._root) if found.fault is None]
            for step in superseded(comparable_losses(good), self._keep):
                commit.delete(self._root, step)
        except (UserError, OSError) as error:
            logger.warning("superseded checkpoints stay for now: %s", error)


def _tried(action: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `action` gives, or what went wrong, in words that other ranks can be told.

    Whatever it is: a rank that left its save by an exception would leave the others waiting in theirs.
    """
    try:
        return action(), None
    except UserError as error:
        return None, str(error)
    except Exception as error:
        logger.exception("the checkpoint cannot be saved")
        return None, f"the save crashed: {error!r}"


def _at_half(num_bytes: int, action: Callable[[], None]) -> Callable[[int], None]:
    """A progress function that calls `action` once, when half of the bytes are written."""
    left = num_bytes // 2

    def count(num_written: int) -> None:
        nonlocal left
        before, left = left, left - num_written
        if before > 0 >= left:
            action()

    return count
