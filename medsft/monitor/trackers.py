"""Weights & Biases and MLflow: sinks for those who keep their runs there, each by flag only.

Neither package is installed with medsft. Addresses and keys come from the variables that the packages
themselves read (WANDB_*, MLFLOW_*); without them everything stays in the run's folder, under `trackers`,
from where it can be sent later. A run that goes on after a stop goes on in the same run there.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from medsft.errors import UserError
from medsft.files import write_text
from medsft.monitor.metrics import Metrics, Save
from medsft.monitor.sink import Sink, Summary
from medsft.monitor.tensorboard import final_points, plain_flags, points, save_points
from medsft.run_folder import RunFolder

logger = logging.getLogger(__name__)

_PATIENCE_S = 20.0
"""So long the end of a run waits for a server; a job that is told to stop has no more time to spare."""


class Service(Protocol):
    """A run in one of the packages. `put` waits for no server, `end` may.

    lost: what to do about points that a server did not take, the end of a warning.
    """

    lost: str

    def put(self, values: Mapping[str, float], step: int) -> None:
        """One point of each curve."""

    def end(self, summary: Summary | None) -> None:
        """Sends what is left, and how the run ended; None: it has not finished."""


class Tracker(Sink):
    """Curves under the names that they have in TensorBoard, and at the end what runs are compared by."""

    def __init__(self, name: str, service: Service) -> None:
        self._name = name
        self._service = service
        self._summary: Summary | None = None

    def train(self, metrics: Metrics) -> None:
        """One point of every train curve that has a value."""
        self._service.put(points(metrics), metrics.step)

    def validation(self, step: int, loss: float) -> None:
        """One point of the validation curve."""
        self._service.put({"loss/validation": loss}, step)

    def checkpoint(self, save: Save) -> None:
        """One point of each checkpoint curve."""
        self._service.put(save_points(save), save.step)

    def finish(self, summary: Summary) -> None:
        """Keeps it for `close`: the run's own files wait for no server."""
        self._summary = summary

    def close(self) -> None:
        """Waits until all is sent or written, but not for a network that is gone."""
        if not ends_within(_PATIENCE_S, lambda: self._service.end(self._summary)):
            logger.warning("%s does not answer; the run ends without it. %s", self._name, self._service.lost)


class WandB:
    """A run of Weights & Biases. Without a login it is written to the folder (`wandb sync` sends it)."""

    def __init__(self, folder: RunFolder, flags: Mapping[str, object]) -> None:
        import wandb

        place = _own_folder(folder)
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "medsft"),
            name=os.environ.get("WANDB_NAME", folder.path.resolve().name),
            id=_remembered(place / "wandb.id", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=str(place),
            mode=mode,
            config=plain_flags(flags),
            # What is printed is the log's business, and nobody may be asked anything.
            settings=wandb.Settings(console="off", silent=True),
        )
        # A checkpoint is told of when it is written, steps after the one that it holds, and W&B takes points
        # of its own steps in their order only.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.lost = f"`wandb sync {shlex.quote(str(Path(self._run.dir).parent))}` sends the rest."
        logger.info("Weights & Biases: %s", self._run.url if mode == "online" else f"{mode}, {place}")

    def put(self, values: Mapping[str, float], step: int) -> None:
        """Points over the curve `step`."""
        self._run.log({**values, "step": step})

    def end(self, summary: Summary | None) -> None:
        """Figures of the table of runs, and everything sent or written."""
        if summary is not None:
            self._run.summary.update(final_points(summary))
        self._run.finish()


class MLflow:
    """A run of MLflow. Without MLFLOW_TRACKING_URI it goes into a data base in the folder (`mlflow ui`)."""

    lost = "Its last points may be missing there."

    def __init__(self, folder: RunFolder, flags: Mapping[str, object]) -> None:
        # A server that does not answer holds up the end of a run only, and not for long.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{_PATIENCE_S:.0f}")
        import mlflow

        place = _own_folder(folder)
        own = f"sqlite:///{(place / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        self._id = _remembered(place / "mlflow.id", lambda: self._make(folder))
        self._client.update_run(self._id, status="RUNNING")
        logger.info("MLflow: run %s", self._id)  # the address may hold a password
        for name, value in plain_flags(flags).items():
            self._client.set_tag(self._id, f"flag.{name}", value)  # parameters could not change at a restart

    def _make(self, folder: RunFolder) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "medsft")
        known = self._client.get_experiment_by_name(name)
        number = known.experiment_id if known else self._client.create_experiment(name)
        return self._client.create_run(number, run_name=folder.path.resolve().name).info.run_id

    def put(self, values: Mapping[str, float], step: int) -> None:
        """Hands points over; they are sent beside the training."""
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step, synchronous=False)

    def end(self, summary: Summary | None) -> None:
        """Figures of the table of runs, everything sent, and how the run ended."""
        if summary is not None:
            self.put(final_points(summary), summary.steps)
        self._client.set_terminated(self._id, status="KILLED" if summary is None else "FINISHED")


TRACKERS: Mapping[str, Callable[[RunFolder, Mapping[str, object]], Service]] = {
    "wandb": WandB,
    "mlflow": MLflow,
}
"""What --report_to may name; each is also the name of its package."""


def open_tracker(name: str, folder: RunFolder, flags: Mapping[str, object]) -> Tracker:
    """The tracker of that name in `TRACKERS`, told the run's `flags`."""
    return Tracker(name, TRACKERS[name](folder, flags))


def ends_within(seconds: float, work: Callable[[], object]) -> bool:
    """Whether some work is done by then; if not, it is left to a thread that ends with the process.

    Raises what the work raises.
    """
    faults: list[Exception] = []

    def guarded() -> None:
        try:
            work()
        except Exception as fault:
            faults.append(fault)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(seconds)
    if faults:
        raise faults[0]
    return not thread.is_alive()


def check_installed(names: Sequence[str]) -> None:
    """Raises `UserError` for a tracker whose package is not there."""
    missing = [name for name in names if not _is_package(name)]
    if missing:
        raise UserError(
            f"--report_to {' '.join(missing)} needs what is not installed here: "
            f"pip install {' '.join(missing)}, or leave the flag out. TensorBoard and metrics.jsonl are "
            "written in any case."
        )


def _is_package(name: str) -> bool:
    """Whether it can be imported; a folder of that name, as W&B leaves one where it runs, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _own_folder(folder: RunFolder) -> Path:
    folder.trackers.mkdir(parents=True, exist_ok=True)
    return folder.trackers


def _remembered(path: Path, make: Callable[[], str]) -> str:
    """What stands in a file, which is made where there is none."""
    if not path.exists():
        write_text(path, make())
    return path.read_text(encoding="utf-8").strip()
