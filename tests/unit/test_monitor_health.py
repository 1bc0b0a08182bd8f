"""Warnings about an ill training: each kind once, none for a sound one; failing sinks stop nothing."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsft.monitor import health
from medsft.monitor.health import STRAGGLER_REPORTS, WINDOW, Health, ModelFacts
from medsft.monitor.metrics import Metrics, Start
from medsft.monitor.reporter import Reporter
from medsft.monitor.tensorboard import LAYOUT, TAGS, TensorBoard
from medsft.training import samples


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


@pytest.mark.parametrize(
    ("num_parameters", "rate", "said"),
    [
        (6e9, 2e-2, "P-tuning"),
        (6e9, 1e-7, "next to nothing is learned"),
        (6e9, 2e-5, None),
        (1e6, 2e-2, None),
    ],
)
def test_a_rate_far_out_is_told_before_the_first_step(num_parameters, rate, said, caplog):
    with caplog.at_level(logging.WARNING):
        Health(ModelFacts(int(num_parameters), rate)).start(Start(0, 8))
    warnings = [record.getMessage() for record in caplog.records]
    assert [said in warning and f"--learning_rate {rate:g}" in warning for warning in warnings] == (
        [True] if said else []
    )


def test_a_skipped_stretch_is_no_trouble(caplog):
    assert warnings(caplog, [math.nan] * 30, [math.inf] * 30) == []


def test_whatever_a_sink_does_the_training_goes_on(caplog):
    class Broken(Health):
        def train(self, metrics):
            raise RuntimeError("a library fell over")

    reporter = Reporter({"a broken one": Broken(), "the health guard": Health()})
    for step in range(3):
        reporter.train(metrics(step, 1.0))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "a broken one cannot write (a library fell over); the training goes on without it"


def test_the_layout_names_curves_that_are_written(tmp_path):
    written = {*TAGS.values(), "loss/validation", "saving/stall_s", "saving/write_s"}
    shown = {tag for group in LAYOUT.values() for _, tags in group.values() for tag in tags}
    assert shown <= written
    assert min(tag.split("/")[0] for tag in written) == "loss"  # what TensorBoard shows first
    TensorBoard(tmp_path).close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_the_document_quotes_the_limits():
    text = (Path(__file__).resolve().parents[2] / "docs" / "monitoring.md").read_text(encoding="utf-8")
    words = " ".join(text.split())
    for part in (
        f"over {WINDOW} reports the loss stays more than {health.DIVERGED_NATS:g} nat above",
        f"more than {health.EXPLODED_TIMES:g} times the median of the last {WINDOW}",
        f"still within {health.PLATEAU_NATS:g} nats, above {health.PLATEAU_LOSS:g}",
        f"slowest in {STRAGGLER_REPORTS} reports in a row, each by more than {health.STRAGGLER_TIMES} times",
        "outside {:g} to {:g}".format(*health.FAR_RATES),
        "used {:g} to {:g}".format(*health.KNOWN_RATES),
        f"at most {samples.MAX_NEW_TOKENS} tokens",
        f"some {samples.MAX_NEW_TOKENS} forward passes",
    ):
        assert part in words, part
    assert samples.NUM_FROM_DATA == 2 and "the first two of the validation data" in words
    groups = {tag.split("/")[0] for tag in TAGS.values()} | {"saving", "result"}
    assert {name for name in groups if f"| `{name}` |" in text} == groups
