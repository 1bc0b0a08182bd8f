"""Weights & Biases and MLflow: for real where they are installed, else that a flag for them is refused."""

import importlib.util
import threading
from contextlib import closing, nullcontext
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsft import config, train
from medsft.config import parse
from medsft.engine.distributed import World
from medsft.errors import UserError
from medsft.monitor import trackers
from medsft.monitor.metrics import Metrics, Save
from medsft.monitor.reporter import open_reporter
from medsft.monitor.trackers import check_installed, ends_within
from medsft.provenance import Provenance
from medsft.run_folder import RunFolder
from medsft.training.early_stopping import EarlyStopping

REQUIRED = ["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o"]
METRICS = Metrics(1, 0.1, 3.0, 5e-5, 1.0, 10.0, 5.0, 8, 80, 0.99, 0, 1.0)
FLAGS = {"learning_rate": 1e-4, "train_file": ["a"]}
PROVENANCE = Provenance("base", "a" * 64, "none", FLAGS, {}, step=1)


def is_there(name):
    return importlib.util.find_spec(name) is not None


def test_other_names_and_missing_packages_are_refused(monkeypatch):
    assert tuple(trackers.TRACKERS) == config.TRACKERS
    with pytest.raises(UserError, match="--report_to comet must be of wandb, mlflow"):
        parse([*REQUIRED, "--report_to", "comet", "wandb"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--report_to mlflow needs .*pip install mlflow"):
        check_installed(parse([*REQUIRED, "--report_to", "mlflow"]).run.report_to)
    check_installed(parse(REQUIRED).run.report_to)


@pytest.mark.skipif(is_there("wandb"), reason="a package hides a folder")
def test_a_folder_that_wandb_left_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="pip install wandb"):
        check_installed(["wandb"])


def test_one_that_fails_stops_no_training(tmp_path, monkeypatch, caplog):
    class Offline:
        lost = "All is lost."

        def __init__(self, folder, flags):
            assert flags == FLAGS

        def put(self, values, step):
            raise ConnectionError("no route to host")

        def end(self, summary):
            raise ConnectionError("no route to host")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Offline)
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", lambda folder, flags: 1 / 0)
    reporter = open_reporter(RunFolder(tmp_path), 10, True, trackers=["wandb", "mlflow"], flags=FLAGS)
    reporter.train(METRICS)
    reporter.validation(1, 2.0)
    reporter.finish(1, 2.0, 1, FLAGS)
    reporter.close()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [text.split(";")[0] for text in said] == [
        "mlflow cannot be opened (division by zero)",
        "wandb cannot write (no route to host)",
    ]


def test_a_server_that_never_answers_is_not_waited_for():
    answer = threading.Event()
    try:
        assert not ends_within(0.01, answer.wait)
    finally:
        answer.set()
    assert ends_within(10.0, answer.wait)
    with pytest.raises(OSError, match="no route"):
        ends_within(10.0, lambda: (_ for _ in ()).throw(OSError("no route to host")))


def test_the_files_of_a_finished_run_wait_for_no_tracker(tmp_path, monkeypatch, caplog):
    """One hangs and one fails in the end; until then everything of the run's own is complete."""
    folder, release, seen = RunFolder(tmp_path), threading.Event(), {}

    class Hanging:
        lost = "Send it again."

        def put(self, values, step):
            assert not folder.done.exists()

        def end(self, summary):
            seen["DONE"] = folder.done.exists()
            seen["lines"] = folder.metrics.read_text(encoding="utf-8").count("\n")
            board = EventAccumulator(str(folder.tensorboard)).Reload()
            seen["best"] = board.Scalars("result/best_validation_loss")[0].value
            seen["told"] = summary.best_loss
            release.wait()

    class Failing(Hanging):
        def end(self, summary):
            raise ConnectionError("no route to host")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", lambda folder, flags: Hanging())
    monkeypatch.setitem(trackers.TRACKERS, "mlflow", lambda folder, flags: Failing())
    monkeypatch.setattr(trackers, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(train, "together", lambda world: nullcontext())
    reporter = open_reporter(folder, 1, True, trackers=["wandb", "mlflow"], flags=FLAGS)
    reporter.train(METRICS)
    early_stopping = EarlyStopping()
    early_stopping.see(1, 2.0)
    try:
        with closing(reporter):
            train.finish(folder, PROVENANCE, early_stopping, reporter, World(0, 1, 0, torch.device("cpu")))
    finally:
        release.set()
    assert seen == {"DONE": True, "lines": 1, "best": 2.0, "told": 2.0}
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "wandb does not answer; the run ends without it. Send it again.",
        "mlflow cannot write (no route to host); the training goes on without it",
    ]


def report(folder, name):
    """Two processes of one run; the second goes on after step 2 of the first one's three."""
    for start_step, last in ((0, 3), (2, 5)):
        reporter = open_reporter(folder, 5, True, start_step, trackers=[name], flags=FLAGS)
        for step in range(start_step + 1, last + 1):
            reporter.train(replace(METRICS, step=step, loss=6.0 / step))
        reporter.checkpoint(Save(last - 1, 0.1, 0.2, 10**9))
        if last == 5:
            reporter.finish(5, 2.0, 5, FLAGS)
        reporter.close()


@pytest.mark.skipif(not is_there("mlflow"), reason="needs mlflow")
def test_mlflow_has_the_curves_of_one_run(tmp_path, monkeypatch, caplog):
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = RunFolder(tmp_path / "运行 1")
    folder.path.mkdir()
    report(folder, "mlflow")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    client = mlflow.MlflowClient(f"sqlite:///{folder.trackers / 'mlflow.db'}")
    number = (folder.trackers / "mlflow.id").read_text(encoding="utf-8")
    run = client.get_run(number)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "运行 1")
    assert run.data.tags["flag.learning_rate"] == "0.0001"
    assert run.data.metrics["result/best_validation_loss"] == 2.0
    points = [(point.step, point.value) for point in client.get_metric_history(number, "loss/train")]
    assert points == [(step, 6.0 / step) for step in (1, 2, 3, 3, 4, 5)]
    open_reporter(folder, 5, True, 5, trackers=["mlflow"], flags=FLAGS).close()
    assert client.get_run(number).info.status == "KILLED"  # nobody told it that the run had finished


@pytest.mark.skipif(not is_there("wandb"), reason="needs wandb")
def test_weights_and_biases_keeps_one_run_without_a_login(tmp_path, monkeypatch, caplog):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a login would stand
    folder = RunFolder(tmp_path / "运行 1")
    folder.path.mkdir()
    report(folder, "wandb")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    number = (folder.trackers / "wandb.id").read_text(encoding="utf-8")
    written = sorted((folder.trackers / "wandb").glob(f"offline-run-*/run-{number}.wandb"))
    assert len(written) == 2
    assert b"loss/train" in written[0].read_bytes()
