"""TensorBoard scalars of a run, written by rank 0."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from medsft.monitor.metrics import Metrics, Save

# Field of Metrics -> tag; TensorBoard groups by what stands before the slash.
TAGS = {
    "loss": "loss/train",
    "learning_rate": "optimization/learning_rate",
    "grad_norm": "optimization/gradient_norm",
    "skipped_steps": "optimization/skipped_steps",
    "tokens_per_s": "throughput/tokens_per_s",
    "supervised_tokens_per_s": "throughput/supervised_tokens_per_s",
    "step_time_s": "throughput/step_time_s",
    "packing_efficiency": "throughput/packing_efficiency",
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
    },
    "speed": {
        "tokens a second": ["Multiline", ["throughput/tokens_per_s", "throughput/supervised_tokens_per_s"]],
        "seconds of a step": ["Multiline", ["throughput/step_time_s"]],
        "checkpoints": ["Multiline", ["checkpoint/stall_s", "checkpoint/write_s"]],
    },
}


class TensorBoard:
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
        """One point of every train curve."""
        for name, tag in TAGS.items():
            self._writer.add_scalar(tag, getattr(metrics, name), metrics.step)
        self._writer.flush()

    def validation(self, step: int, loss: float) -> None:
        """One point of the validation curve."""
        self._writer.add_scalar("loss/validation", loss, step)
        self._writer.flush()

    def checkpoint(self, save: Save) -> None:
        """One point of each checkpoint curve."""
        self._writer.add_scalar("checkpoint/stall_s", save.stall_s, save.step)
        self._writer.add_scalar("checkpoint/write_s", save.write_s, save.step)
        self._writer.add_scalar("checkpoint/size_gb", save.num_bytes / 1e9, save.step)
        self._writer.flush()

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()
