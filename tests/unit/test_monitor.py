"""What a run tells, and that a resumed run tells it as if it had never been stopped."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as ServerEventAccumulator,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from medsft.monitor.console import Console, duration, save_line, seconds_left, step_line, summary_lines
from medsft.monitor.metrics import Figures, Hardware, Metrics, Save
from medsft.monitor.metrics_file import MetricsFile
from medsft.monitor.reporter import Reporter, open_reporter
from medsft.monitor.sink import Sample, Summary
from medsft.monitor.tensorboard import TAGS, TensorBoard
from medsft.run_folder import RunFolder

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
    examples_per_s=19.2,
    tflops_per_device=101.5,
    mfu=0.325,
    loss_scale=65536.0,
    forward_s=0.15,
    backward_s=0.28,
    optimizer_s=0.05,
    data_wait_s=0.01,
    busy_min_s=0.12,
    busy_median_s=0.13,
    busy_max_s=0.2,
    slowest_rank=1,
    slowest_host="node-1",
    gpu_allocated_gb=40.0,
    gpu_reserved_gb=60.0,
    gpu_peak_gb=55.0,
    host_memory_gb=12.5,
)
SAVE = Save(step=2, stall_s=0.21, write_s=3.4, num_bytes=1_200_000_000)


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def read_lines(path: Path) -> list[dict]:
    content = path.read_text(encoding="utf-8")
    assert content == "" or content.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in content.splitlines()]


def test_the_file_holds_every_field_as_strict_json(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.train(METRICS)
    file.validation(3, 2.5)
    file.checkpoint(SAVE)
    file.close()

    train, validation, checkpoint = read_lines(tmp_path / "metrics.jsonl")
    assert {field.name for field in fields(Metrics)} <= train.keys()
    assert train["kind"] == "train" and train["loss"] == 2.25 and train["grad_norm"] is None
    assert (validation["kind"], validation["step"], validation["loss"]) == ("validation", 3, 2.5)
    assert checkpoint.pop("time") > 0
    assert checkpoint == {"kind": "checkpoint", **asdict(SAVE)}


def write_run(path: Path, steps: range, start_step: int) -> None:
    """A train line for each step, a validation line for each second one, a late line for each checkpoint."""
    file = MetricsFile(path, start_step)
    for step in steps:
        file.train(replace(METRICS, step=step))
        if step % 2 == 0:
            file.validation(step, 2.5)
        if step % 4 == 1 and step - 1 > start_step:
            file.checkpoint(replace(SAVE, step=step - 1))
    file.close()


def told(path: Path) -> list[tuple[str, int]]:
    return sorted((line["kind"], line["step"]) for line in read_lines(path))


@pytest.mark.parametrize(
    "torn",
    [
        b"",
        b'{"kind": "train", "time": 1.5, "st',
        b"\0\0\0\0",
        b"\xe7\x97",
        pytest.param(b"[" * 100_000, id="nested"),
    ],
)
def test_a_resumed_run_drops_the_lines_it_will_write_again(tmp_path, torn):
    path = tmp_path / "一 个" / "metrics.jsonl"
    path.parent.mkdir()
    write_run(path, range(1, 12), start_step=0)
    whole = told(path)
    write_run(tmp_path / "killed.jsonl", range(1, 10), start_step=0)
    path.write_bytes((tmp_path / "killed.jsonl").read_bytes() + torn)
    inode = path.stat().st_ino
    write_run(path, range(9, 12), start_step=8)
    # The line about the checkpoint of step 8 came after that of step 9, and stays.
    assert told(path) == whole
    assert path.stat().st_ino != inode, "rewritten in place: a kill in that instant loses the file"
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_touched_when_nothing_is_to_drop(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, range(1, 9), start_step=0)
    before, content = path.stat(), path.read_bytes()
    MetricsFile(path, start_step=8).close()
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.read_bytes() == content


def test_a_whole_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}')
    write_run(path, range(3, 4), start_step=2)
    assert told(path) == [("train", 1), ("train", 2), ("train", 3)]


def test_a_run_without_a_checkpoint_begins_its_file_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_run(path, range(1, 6), start_step=0)
    write_run(path, range(1, 3), start_step=0)
    assert told(path) == [("train", 1), ("train", 2), ("validation", 2)]


def test_tensorboard_shows_every_figure(tmp_path):
    board = TensorBoard(tmp_path)
    board.train(METRICS)
    board.validation(3, 2.5)
    board.checkpoint(SAVE)
    board.text("data/first example", "病")
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(TAGS) == {field.name for field in fields(Metrics)} - {"step", "slowest_host"}
    saves = {"saving/stall_s": 0.21, "saving/write_s": 3.4, "saving/size_gb": 1.2}
    assert set(TAGS.values()) | {"loss/validation", *saves} == set(events.Tags()["scalars"])
    (point,) = events.Scalars("loss/train")
    assert (point.step, point.value) == (3, 2.25)
    for tag, value in saves.items():
        (point,) = events.Scalars(tag)
        assert (point.step, point.value) == (2, pytest.approx(value))


# Forks what has torch already: a fresh interpreter would need seconds for each process below.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["medsft.monitor.reporter"])


def report_steps(folder: Path, start_step: int, last: int) -> None:
    reporter = open_reporter(RunFolder(folder), 100, True, start_step)
    reporter.texts(lambda: {"first example": "病"})
    for step in range(start_step + 1, last + 1):
        reporter.train(replace(METRICS, step=step, loss=float(start_step)))
        reporter.validation(step, 2.5)
        if step - 1 > start_step:  # written beside the next step
            reporter.checkpoint(replace(SAVE, step=step - 1))


def report_and_die(folder: Path, start_step: int, last: int) -> None:
    """Reports step after step and is killed without closing anything."""
    report_steps(folder, start_step, last)
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_reporting(folder: Path, start_step: int, last: int, num_bytes_lost: int) -> None:
    """Runs a process for the steps up to `last` and cuts its event file inside a record, as a kill may."""
    before = set((folder / "tensorboard").glob("*"))
    # TensorBoard reads files by name, and names hold whole seconds.
    started = int(time.time())
    while int(time.time()) == started:
        time.sleep(0.01)
    process = FRESH.Process(target=report_and_die, args=(folder, start_step, last))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (written,) = set((folder / "tensorboard").glob("*")) - before
    os.truncate(written, written.stat().st_size - num_bytes_lost)


def text_steps(folder: Path) -> list[int]:
    """Steps of the text card as TensorBoard's server reads them; only this reader purges texts."""
    events = ServerEventAccumulator(str(folder), purge_orphaned_data=True).Reload()
    return [event.step for event in events.Tensors("first example/text_summary")]


@pytest.mark.parametrize("num_bytes_lost", [(1, 150), (37, 1)])
def test_a_resumed_run_shows_each_step_once_without_a_gap(tmp_path, num_bytes_lost):
    folder = tmp_path / "运行 1"
    folder.mkdir()
    kill_while_reporting(folder, 0, 9, num_bytes_lost[0])
    kill_while_reporting(folder, 6, 12, num_bytes_lost[1])
    kill_while_reporting(folder, 9, 15, num_bytes_lost=0)

    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss/train", "loss/validation", "saving/stall_s"} <= tags
    for tag in tags:
        last = 14 if tag.startswith("saving/") else 15
        assert [point.step for point in events.Scalars(tag)] == list(range(1, last + 1)), tag
    # Each step's figures are those of the process that did it last.
    assert [point.value for point in events.Scalars("loss/train")] == [0] * 6 + [6] * 3 + [9] * 6
    assert text_steps(folder / "tensorboard") == [0]
    kinds = [kind for kind, step in told(folder / "metrics.jsonl")]
    assert {kind: kinds.count(kind) for kind in kinds} == {"train": 15, "validation": 15, "checkpoint": 14}


def test_a_run_started_over_shows_nothing_of_the_one_without_a_checkpoint(tmp_path):
    kill_while_reporting(tmp_path, 0, 5, num_bytes_lost=1)
    kill_while_reporting(tmp_path, 0, 3, num_bytes_lost=0)
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True).Reload()
    assert [point.step for point in events.Scalars("loss/train")] == [1, 2, 3]
    assert text_steps(tmp_path / "tensorboard") == [0]


def test_a_run_that_goes_on_in_another_folder_has_its_texts_there(tmp_path):
    board = TensorBoard(tmp_path / "new", start_step=10)
    board.text("first example", "病")
    board.close()
    assert text_steps(tmp_path / "new") == [0]


def test_only_the_rank_that_speaks_writes(tmp_path):
    reporter = open_reporter(RunFolder(tmp_path), 10, speaks=False)
    reporter.texts(lambda: {"nobody": 1 / 0})
    reporter.train(METRICS)
    reporter.checkpoint(SAVE)
    reporter.close()
    assert not list(tmp_path.iterdir())


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


def test_the_time_left_follows_from_the_steps_of_this_process():
    assert seconds_left(elapsed_s=50.0, step=10, num_steps=110, start_step=0) == 500.0
    assert seconds_left(elapsed_s=50.0, step=110, num_steps=120, start_step=100) == 50.0
    assert seconds_left(elapsed_s=50.0, step=120, num_steps=120, start_step=100) == 0.0


def test_the_console_says_what_a_checkpoint_cost():
    assert save_line(Save(100, 0.21, 3.4, 1_200_000_000), num_steps=357) == (
        "step 100/357  checkpoint written: 1.2 GB, training waited 0.21 s, written in 3.4 s (0.35 GB/s)"
    )
    assert save_line(Save(5, 0.0012, 0.25, 3_300_000), num_steps=10) == (
        "step  5/10  checkpoint written: 3.3 MB, training waited 0.00 s, written in 0.2 s (13.20 MB/s)"
    )


def test_the_summary_leaves_out_what_there_is_none_of():
    lines = dict(summary_lines(Summary(1234, 3661.0, 1.25, 800, METRICS, {})))
    assert lines == {
        "steps": "1,234",
        "time": "1:01:01",
        "training loss": "2.2500",
        "validation loss": "1.2500 at best, after step 800",
        "speed": "1,234 tokens/s, MFU 32.5%",
        "memory": "55.0 GB of a GPU, 12.5 GB of a host for each rank",
    }
    assert [name for name, _ in summary_lines(Summary(0, 1.0, None, None, None, {}))] == ["steps", "time"]


def test_durations_read_as_clock_time():
    assert [duration(seconds) for seconds in (0, 59.6, 3600, -1)] == [
        "0:00:00",
        "0:01:00",
        "1:00:00",
        "0:00:00",
    ]


@dataclass(frozen=True)
class State:
    """What steps leave and take, all of it 0 but for the skipped ones."""

    num_skipped: int = 0
    loss_scale: float | None = None
    forward_s: float = 0.0
    backward_s: float = 0.0
    optimizer_s: float = 0.0
    own_s: float = 0.0


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
    first = figures.report(2, 0.5, 1e-3, 1.5, State())
    assert first.loss == pytest.approx(2 * 5.0 / 10)
    assert first.packing_efficiency == pytest.approx(30 / 40)
    assert (first.step, first.examples_seen, first.tokens_seen) == (2, 4, 30)
    assert first.tokens_per_s / first.supervised_tokens_per_s == pytest.approx(30 / 10)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(3.0), applied=True)
    second = figures.report(3, 0.75, 1e-3, 1.5, State(1))
    assert second.loss == pytest.approx(2 * 3.0 / 2)
    assert (second.examples_seen, second.tokens_seen, second.packing_efficiency) == (5, 38, 1.0)
    assert figures.totals() == {"examples_seen": 5, "tokens_seen": 38, "train_loss": second.loss}


def test_what_all_ranks_measured_comes_into_one_report():
    """Two hosts with three ranks: this one is rank 0; the others have waited, hold more, work longer."""
    own = {}

    def gather(numbers):
        own["numbers"] = numbers
        forward_s, backward_s, optimizer_s, wait_s, busy_s, *gpu, host_gb = numbers
        return [
            numbers,
            [forward_s + 0.3, backward_s, optimizer_s, wait_s + 1.0, busy_s + 0.5, *gpu, host_gb + 2],
            [forward_s, backward_s, optimizer_s, wait_s, busy_s + 0.1, *gpu, host_gb],
        ]

    hardware = Hardware(("node-0", "node-1", "node-1"), peak_flops=1e12)
    figures = Figures(torch.device("cpu"), lambda values: values, gather, hardware, lambda step: 1e9 * step)
    steps = [Counts(4, 10, 4, 16), Counts(4, 20, 6, 24)]
    for counts in figures.waiting(steps):
        figures.add(counts, torch.tensor(1.0), applied=True)
    metrics = figures.report(9, 0.5, 1e-3, 1.5, State(0, 1024.0, 0.8, 1.6, 0.4, 0.7))
    assert (metrics.forward_s, metrics.backward_s) == (pytest.approx(0.4 + 0.1), pytest.approx(0.8))
    assert metrics.optimizer_s == pytest.approx(0.2)
    assert metrics.data_wait_s == pytest.approx(own["numbers"][3] + 1.0)
    assert metrics.busy_min_s == pytest.approx(0.7 + own["numbers"][3])
    assert metrics.busy_median_s == pytest.approx(metrics.busy_min_s + 0.1)
    assert metrics.busy_max_s == pytest.approx(metrics.busy_min_s + 0.5)
    assert (metrics.slowest_rank, metrics.slowest_host) == (1, "node-1")
    assert metrics.host_memory_gb == own["numbers"][-1] + 2 and metrics.gpu_peak_gb is None
    assert metrics.loss_scale == 1024.0
    # Steps 8 and 9, number 7 and 8 from 0, and three devices of 1 TFLOP/s.
    assert metrics.tflops_per_device == pytest.approx(15e9 / (2 * metrics.step_time_s) / 3 / 1e12)
    assert metrics.mfu == pytest.approx(metrics.tflops_per_device)
    assert metrics.examples_per_s == pytest.approx(8 / (2 * metrics.step_time_s))


def test_a_device_that_nobody_knows_has_no_mfu():
    figures = Figures(torch.device("cpu"), lambda values: values, flops_of_step=lambda step: 1e9)
    figures.add(Counts(4, 10, 4, 16), torch.tensor(1.0), applied=True)
    metrics = figures.report(1, 0.5, 1e-3, 1.5, State())
    assert metrics.mfu is None and metrics.tflops_per_device > 0


def test_the_time_for_which_steps_are_waited_is_a_wait_for_data():
    def slow():
        for number in range(2):
            time.sleep(0.02)
            yield number

    figures = Figures(torch.device("cpu"), lambda values: values)
    for _ in figures.waiting(slow()):
        time.sleep(0.05)
        figures.add(Counts(4, 10, 4, 16), torch.tensor(1.0), applied=True)
    metrics = figures.report(2, 0.5, 1e-3, 1.5, State())
    assert 0.02 <= metrics.data_wait_s <= metrics.step_time_s - 0.05


def test_the_loss_of_a_skipped_step_is_left_out():
    figures = Figures(torch.device("cpu"), sum_over_ranks=lambda values: values)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(3.0), applied=True)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(float("nan")), applied=False)
    assert figures.report(2, 0.1, 1e-3, 1.0, State(1)).loss == pytest.approx(1.5)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(float("nan")), applied=False)
    assert math.isnan(figures.report(3, 0.1, 1e-3, float("inf"), State(2)).loss)


NUM_STEPS = 14
# Which are not bit-exact over a stop, being measured.
MEASURED = {name for name in TAGS if name.endswith(("_s", "_gb", "_device"))}


def report_run(stopped_after: int | None) -> list[str]:
    """The reports of 14 steps, one each four; stopped and restored through JSON after one of the steps.

    Losses are float32 whose sum depends on the order and on every bit; steps 6 to 8 were skipped, so the
    report of step 8 has the mean of one loss, and one of the last report has none if stopped there.
    """
    generator = torch.Generator().manual_seed(5)
    figures = Figures(torch.device("cpu"), sum_over_ranks=lambda values: values.clone())
    reports = []
    for step in range(1, NUM_STEPS + 1):
        loss_sum = torch.rand((), generator=generator) * 10 ** (step % 5)
        applied = step not in (5, 6, 7, 8)
        counts = Counts(3, 40 + step, 7 * step, 64)
        figures.add(counts, loss_sum if applied else torch.tensor(float("nan")), applied)
        if step % 4 == 0 or step == NUM_STEPS:
            metrics = asdict(figures.report(step, step / 7, 1e-3, 1.0, State()))
            reports.append(repr({name: value for name, value in metrics.items() if name not in MEASURED}))
        if step == stopped_after:
            text = json.dumps(figures.state(), allow_nan=False)
            figures = Figures(torch.device("cpu"), sum_over_ranks=lambda values: values.clone())
            counters, own_sum = json.loads(text)
            figures.restore({**counters, "skipped_steps": 4}, own_sum)
            totals = figures.totals()
            assert totals == {name: counters[name] for name in totals}
    return [*reports, repr(figures.totals())]


@pytest.mark.parametrize("stopped_after", range(NUM_STEPS))
def test_a_restored_run_reports_what_the_uninterrupted_one_does(stopped_after):
    assert report_run(stopped_after) == report_run(None)


def test_the_time_before_a_stop_counts_and_the_pause_does_not():
    figures = Figures(torch.device("cpu"), sum_over_ranks=lambda values: values)
    figures.add(Counts(1, 8, 2, 8), torch.tensor(3.0), applied=True)
    with figures.paused():
        first = figures.state()[0]
        time.sleep(0.01)
        second = figures.state()[0]
    assert first == second
    figures.restore({**first, "seconds_since_report": 1000.0}, 3.0)
    assert figures.state()[0]["seconds_since_report"] >= 1000.0
    metrics = figures.report(1, 0.1, 1e-3, 1.0, State())
    assert metrics.step_time_s >= 1000.0
    assert metrics.tokens_per_s == pytest.approx(8 / metrics.step_time_s)


def hyperparameters(folder: Path) -> dict[str, object]:
    """What TensorBoard's page HParams reads of a run: its flags."""
    events = ServerEventAccumulator(str(folder)).Reload()
    data = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    flags = HParamsPluginData.FromString(data).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in flags.items()}


def test_the_end_of_a_run_is_compared_by_its_hyperparameters(tmp_path):
    flags = {"learning_rate": 1e-4, "packing": True, "train_file": ["a", "b"], "warmup_steps": None}
    board = TensorBoard(tmp_path)
    board.finish(Summary(12, 60.0, 1.25, 8, METRICS, flags))
    board.finish(Summary(12, 60.0, None, None, None, flags))  # nothing was reported: no figures
    board.close()
    written = {"learning_rate": 1e-4, "packing": True, "train_file": "['a', 'b']", "warmup_steps": "None"}
    assert hyperparameters(tmp_path) == written
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found == {
        "result/train_loss": [(12, 2.25)],
        "result/best_validation_loss": [(12, 1.25)],
        "result/tokens_per_s": [(12, 1234.5)],
        "result/mfu": [(12, pytest.approx(0.325))],
    }


def test_samples_are_cards_of_their_questions_and_lines_of_the_file(tmp_path):
    samples = [Sample("**头痛**", "<b>x</b>", "去医院"), Sample("北京", "", "")]
    board, file = TensorBoard(tmp_path / "t"), MetricsFile(tmp_path / "metrics.jsonl")
    for step in (10, 20):
        board.samples(step, samples)
        file.samples(step, samples)
    board.close()
    file.close()
    events = ServerEventAccumulator(str(tmp_path / "t")).Reload()
    cards = events.Tensors("samples/question 1/text_summary")
    assert [card.step for card in cards] == [10, 20]
    # Indented by four: Markdown shows it as it is.
    text = cards[0].tensor_proto.string_val[0].decode()
    assert "    **头痛**" in text and "    <b>x</b>" in text and "    去医院" in text
    assert (
        "expected"
        not in events.Tensors("samples/question 2/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    first, _ = read_lines(tmp_path / "metrics.jsonl")
    assert (first["kind"], first["step"], first["samples"]) == (
        "samples",
        10,
        [asdict(one) for one in samples],
    )


def test_texts_that_cannot_be_made_stop_no_training(tmp_path, caplog):
    reporter = open_reporter(RunFolder(tmp_path), 10, True)
    with caplog.at_level("WARNING", logger="medsft"):
        reporter.texts(lambda: {"first example": str(1 / 0)})
        reporter.train(METRICS)
    assert "the texts for TensorBoard cannot be made (division by zero)" in caplog.text
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 1


def test_a_place_that_cannot_be_opened_is_left_out(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("in the way", encoding="utf-8")
    with caplog.at_level("WARNING", logger="medsft"):
        with open_reporter(RunFolder(tmp_path), 10, True) as reporter:
            reporter.train(METRICS)
            reporter.validation(3, 1.0)
        reporter.finish(10, 1.0, 3, {})
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("TensorBoard cannot be opened (") and "training goes on" in warning
    assert [line["kind"] for line in read_lines(tmp_path / "metrics.jsonl")] == ["train", "validation"]


def test_reports_end_with_a_run_that_is_stopped(tmp_path):
    closed = []

    class Place(Console):
        def close(self) -> None:
            closed.append(True)

    with Reporter({"place": Place(10)}):
        pass
    assert not closed  # the end is still to be told
    with pytest.raises(KeyboardInterrupt), Reporter({"place": Place(10)}):
        raise KeyboardInterrupt
    assert closed == [True]


def test_a_full_disk_stops_no_training_and_is_told_once(tmp_path, caplog):
    full = MetricsFile(tmp_path / "full.jsonl")
    with Path("/dev/full").open("w", encoding="utf-8") as nothing_fits:
        os.dup2(nothing_fits.fileno(), full._file.fileno())
    good = MetricsFile(tmp_path / "metrics.jsonl")
    reporter = Reporter({"the full one": full, "metrics.jsonl": good})
    with caplog.at_level("WARNING", logger="medsft"):
        for step in (1, 2, 3):
            reporter.validation(step, 1.0)
        reporter.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the full one cannot write" in caplog.text and "No space left" in caplog.text
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
