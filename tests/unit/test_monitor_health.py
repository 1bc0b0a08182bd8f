"""Warnings about an ill training: each kind once, none for a sound one; failing sinks stop nothing."""

import logging
import math
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsft.monitor.health import STRAGGLER_REPORTS, WINDOW, Health
from medsft.monitor.metrics import Metrics
from medsft.monitor.reporter import Reporter
from medsft.monitor.tensorboard import LAYOUT, TAGS, TensorBoard


def metrics(step, loss, grad_norm=1.0):
    return Metrics(step, 0.1, loss, 5e-5, grad_norm, 1.0, 1.0, 1, 1, 1.0, 0, 1.0)


def warnings(caplog, losses, norms=()):
    health = Health()
    norms = list(norms) or [1.0] * len(losses)
    with caplog.at_level(logging.WARNING):
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
            health.train(metrics(step, loss, norm))
    return [record.getMessage() for record in caplog.records]


def test_a_sound_training_is_left_alone(caplog):
    losses = [11.8 * 0.95**step for step in range(100)]
    # A loss scale that is looked for makes infinite norms at any time.
    norms = [math.inf] * 2 + [1.0, 2.5] * 24 + [math.inf] + [1.0] * 49
    assert warnings(caplog, losses, norms) == []


@pytest.mark.parametrize(
    ("losses", "norms", "said"),
    [
        ([2.0] * WINDOW + [3.5] * (2 * WINDOW), (), "diverges"),
        ([11.8] * (2 * WINDOW), (), "nothing is learned"),
        ([2.0 - step / 100 for step in range(13)], [1.0] * WINDOW + [50, 60, 1], "gradient norm is 50"),
    ],
    ids=["divergence", "plateau", "explosion"],
)
def test_each_trouble_is_told_once(losses, norms, said, caplog):
    (warning,) = warnings(caplog, losses, norms)
    assert said in warning


def test_a_rank_that_holds_the_others_up_is_named_once(caplog):
    health = Health()
    with caplog.at_level(logging.WARNING):
        for step in range(1, 30):
            # First now this one is the slowest, now that one; from step 12 on it is always rank 3.
            slowest, times = (3, 1.4) if step >= 12 else (step % 3, 1.4)
            health.train(
                replace(
                    metrics(step, 2.0 - step / 100),
                    busy_median_s=0.5,
                    busy_max_s=0.5 * times,
                    slowest_rank=slowest,
                    slowest_host="node-7",
                )
            )
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"step {11 + STRAGGLER_REPORTS}: rank 3 on host node-7 needs 0.7 s")


def test_a_skipped_stretch_is_no_trouble(caplog):
    assert warnings(caplog, [math.nan] * 30, [math.inf] * 30) == []


def test_whatever_a_sink_does_the_training_goes_on(caplog):
    class Broken(Health):
        def train(self, metrics):
            raise RuntimeError("a library fell over")

    reporter = Reporter([Broken(), Health()])
    for step in range(3):
        reporter.train(metrics(step, 1.0))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "Broken cannot write (a library fell over); the training goes on without it"


def test_the_layout_names_curves_that_are_written(tmp_path):
    written = {*TAGS.values(), "loss/validation", "checkpoint/stall_s", "checkpoint/write_s"}
    shown = {tag for group in LAYOUT.values() for _, tags in group.values() for tag in tags}
    assert shown <= written
    TensorBoard(tmp_path).close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]
