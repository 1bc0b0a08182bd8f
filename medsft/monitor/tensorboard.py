"""TensorBoard scalars of a run, written by rank 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from medsft.monitor.metrics import Metrics, Save
from medsft.monitor.sink import Sample, Sink, Summary

# Field of Metrics -> tag; TensorBoard groups by what stands before the slash, and opens the first two groups
# by name: the losses shall be among them.
TAGS = {
    "loss": "loss/train",
    "learning_rate": "optimization/learning_rate",
    "grad_norm": "optimization/gradient_norm",
    "loss_scale": "optimization/loss_scale",
    "skipped_steps": "optimization/skipped_steps",
    "tokens_per_s": "throughput/tokens_per_s",
    "supervised_tokens_per_s": "throughput/supervised_tokens_per_s",
    "examples_per_s": "throughput/examples_per_s",
    "tflops_per_device": "throughput/tflops_per_device",
    "mfu": "throughput/mfu",
    "packing_efficiency": "throughput/packing_efficiency",
    "step_time_s": "step/whole_s",
    "forward_s": "step/forward_s",
    "backward_s": "step/backward_s",
    "optimizer_s": "step/optimizer_s",
    "data_wait_s": "step/data_wait_s",
    "busy_min_s": "ranks/busy_min_s",
    "busy_median_s": "ranks/busy_median_s",
    "busy_max_s": "ranks/busy_max_s",
    "slowest_rank": "ranks/slowest_rank",
    "gpu_allocated_gb": "memory/gpu_allocated_gb",
    "gpu_reserved_gb": "memory/gpu_reserved_gb",
    "gpu_peak_gb": "memory/gpu_peak_gb",
    "host_memory_gb": "memory/host_gb",
    "tokens_seen": "progress/tokens_seen",
    "examples_seen": "progress/examples_seen",
    "epoch": "progress/epoch",
}

# The page "custom scalars": group -> chart -> curves that belong side by side.
LAYOUT = {
    "learning": {
        "loss": ["Multiline", ["loss/train", "loss/validation"]],
        "learning rate": ["Multiline", ["optimization/learning_rate"]],
        "gradient norm": ["Multiline", ["optimization/gradient_norm"]],
        "skipped steps": ["Multiline", ["optimization/skipped_steps"]],
        "loss scale": ["Multiline", ["optimization/loss_scale"]],
    },
    "speed": {
        "tokens a second": ["Multiline", ["throughput/tokens_per_s", "throughput/supervised_tokens_per_s"]],
        "examples a second": ["Multiline", ["throughput/examples_per_s"]],
        "MFU": ["Multiline", ["throughput/mfu"]],
        "packing": ["Multiline", ["throughput/packing_efficiency"]],
        "seconds of a step": ["Multiline", [tag for tag in TAGS.values() if tag.startswith("step/")]],
        "own work of the ranks": [
            "Multiline",
            ["ranks/busy_min_s", "ranks/busy_median_s", "ranks/busy_max_s"],
        ],
    },
    "memory and checkpoints": {
        "memory (GB)": ["Multiline", [tag for tag in TAGS.values() if tag.startswith("memory/")]],
        "checkpoints": ["Multiline", ["saving/stall_s", "saving/write_s"]],
    },
}


def points(metrics: Metrics) -> dict[str, float]:
    """Tag -> value of all figures that there are."""
    return {tag: value for name, tag in TAGS.items() if (value := getattr(metrics, name)) is not None}


def save_points(save: Save) -> dict[str, float]:
    """Tag -> value of what a checkpoint cost; size in 10⁹ bytes."""
    return {
        "saving/stall_s": save.stall_s,
        "saving/write_s": save.write_s,
        "saving/size_gb": save.num_bytes / 1e9,
    }


def final_points(summary: Summary) -> dict[str, float]:
    """Tag -> value of what runs are compared by in the end; figures that there are none of are left out."""
    last = summary.last
    found = {
        "result/train_loss": last and last.loss,
        "result/best_validation_loss": summary.best_loss,
        "result/tokens_per_s": last and last.tokens_per_s,
        "result/mfu": last and last.mfu,
    }
    return {tag: value for tag, value in found.items() if value is not None}


def plain_flags(flags: Mapping[str, object]) -> dict[str, bool | int | float | str]:
    """Flags with lists and None written out, as trackers take them."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in flags.items()
    }


def verbatim(text: str) -> str:
    """Text as Markdown that shows it letter by letter."""
    return indent(text, " " * 4)


class TensorBoard(Sink):
    """Event file in a folder, flushed at every report so that a killed run shows all it did.

    A run that goes on after `start_step` steps has TensorBoard forget what earlier processes wrote of later
    ones, so that no step shows twice. Texts have step 0: they are written when nobody has done so before.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self._has_texts = start_step > 0 and any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1 if start_step > 0 else 0)
        if not self._has_texts:
            self._writer.add_custom_scalars(LAYOUT)

    def text(self, tag: str, text: str) -> None:
        """A text card, such as the flags or the first example."""
        if not self._has_texts:
            self._writer.add_text(tag, text)
            self._writer.flush()

    def train(self, metrics: Metrics) -> None:
        """One point of every train curve that has a value."""
        self._scalars(points(metrics), metrics.step)

    def validation(self, step: int, loss: float) -> None:
        """One point of the validation curve."""
        self._scalars({"loss/validation": loss}, step)

    def checkpoint(self, save: Save) -> None:
        """One point of each checkpoint curve."""
        self._scalars(save_points(save), save.step)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """A card of each question, with what was answered at every such step."""
        for number, sample in enumerate(samples, start=1):
            expected = f"\n\nexpected 标准答案:\n\n{verbatim(sample.expected)}" if sample.expected else ""
            text = f"{verbatim(sample.question)}\n\n回答:\n\n{verbatim(sample.answer)}{expected}"
            self._writer.add_text(f"samples/question {number}", text, step)
        self._writer.flush()

    def finish(self, summary: Summary) -> None:
        """The page of hyperparameters: all flags, with the figures at the end."""
        known = final_points(summary)
        for record in hparams(plain_flags(summary.flags), known):
            self._writer.file_writer.add_summary(record)
        self._scalars(known, summary.steps)

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()
