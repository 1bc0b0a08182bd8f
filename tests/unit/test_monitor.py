import json
import math
from dataclasses import dataclass, fields

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medsft.monitor.console import duration, step_line
from medsft.monitor.metrics import Figures, Metrics, MetricsFile
from medsft.monitor.tensorboard import TAGS, TensorBoard

METRICS = Metrics(
    step=3,
    epoch=0.5,
    loss=2.25,
    learning_rate=5e-5,
    grad_norm=float("inf"),
    tokens_per_s=1234.5,
    supervised_tokens_per_s=600.0,
    examples_seen=48,
    tokens_seen=3000,
    packing_efficiency=0.979,
    skipped_steps=1,
    step_time_s=0.5,
)


def test_the_file_holds_every_field_as_strict_json(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.train(METRICS)
    file.validation(3, 2.5)
    file.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    train, validation = (json.loads(line, parse_constant=refuse) for line in lines)
    assert {field.name for field in fields(Metrics)} <= train.keys()
    assert train["kind"] == "train" and train["loss"] == 2.25 and train["grad_norm"] is None
    assert (validation["kind"], validation["step"], validation["loss"]) == ("validation", 3, 2.5)


def test_tensorboard_shows_every_figure(tmp_path):
    board = TensorBoard(tmp_path)
    board.train(METRICS)
    board.validation(3, 2.5)
    board.text("data/first example", "病")
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(TAGS) == {field.name for field in fields(Metrics)} - {"step"}
    assert set(TAGS.values()) | {"loss/validation"} == set(events.Tags()["scalars"])
    (point,) = events.Scalars("loss/train")
    assert (point.step, point.value) == (3, 2.25)


def test_the_console_line_has_units_and_a_time_left():
    line = step_line(METRICS, num_steps=100, seconds_left=130)
    for part in (
        "step   3/100",
        "loss 2.2500",
        "1,234 tokens/s",
        "600 supervised",
        "97.9%",
        "skipped 1",
        "0:02:10",
    ):
        assert part in line
    assert "\n" not in line


def test_durations_read_as_clock_time():
    assert [duration(seconds) for seconds in (0, 59.6, 3600, -1)] == [
        "0:00:00",
        "0:01:00",
        "1:00:00",
        "0:00:00",
    ]


@dataclass(frozen=True)
class Counts:
    num_examples: int
    num_tokens: int
    num_targets: int
    num_slots: int


def test_figures_weigh_losses_by_targets_and_begin_anew_after_a_report():
    figures = Figures(torch.device("cpu"), sum_over_ranks=lambda values: values * 2)  # as two like ranks
    figures.add(Counts(2, 10, 4, 16), torch.tensor(4.0), applied=True)
    figures.add(Counts(2, 20, 6, 24), torch.tensor(1.0), applied=True)
    first = figures.report(2, 0.5, 1e-3, 1.5, 0)
    assert first.loss == pytest.approx(2 * 5.0 / 10)
    assert first.packing_efficiency == pytest.approx(30 / 40)
    assert (first.step, first.examples_seen, first.tokens_seen) == (2, 4, 30)
    assert first.tokens_per_s / first.supervised_tokens_per_s == pytest.approx(30 / 10)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(3.0), applied=True)
    second = figures.report(3, 0.75, 1e-3, 1.5, 1)
    assert second.loss == pytest.approx(2 * 3.0 / 2)
    assert (second.examples_seen, second.tokens_seen, second.packing_efficiency) == (5, 38, 1.0)
    assert figures.totals() == {"examples_seen": 5, "tokens_seen": 38, "train_loss": second.loss}


def test_the_loss_of_a_skipped_step_is_left_out():
    figures = Figures(torch.device("cpu"), sum_over_ranks=lambda values: values)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(3.0), applied=True)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(float("nan")), applied=False)
    assert figures.report(2, 0.1, 1e-3, 1.0, 1).loss == pytest.approx(1.5)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(float("nan")), applied=False)
    assert math.isnan(figures.report(3, 0.1, 1e-3, float("inf"), 2).loss)
