"""What all rows work on: a toy model, pairs, and a training that nobody has disturbed."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs import HERE, Job, Place, committed, metrics, starting
from runs import REPOSITORY
from safetensors.numpy import load_file
from tally import Tally
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tb_logging

from medsft.chatglm.init import write_random_model
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.checkpoint.layout import is_leftover, read_latest, step_folder
from medsft.checkpoint.manifest import STATES
from medsft.checkpoint.reader import open_checkpoint
from medsft.checkpoint.verify import verify
from medsft.errors import UserError
from medsft.knowledge.build import build_pairs
from medsft.run_folder import RunFolder

NUM_STEPS = 24
SAVE_STEPS = 4
NUM_EXAMPLES = 512
SHAPE = {"hidden_size": 64, "num_layers": 3, "num_attention_heads": 4, "inner_hidden_size": 256}


@dataclass(frozen=True)
class Reference:
    """The training that nobody disturbed.

    curve: step -> loss, gradient norm, examples and tokens seen. weights: digest of the final model.
    checkpoints: step -> digest of the training state after it.
    """

    run: Path
    curve: dict[int, tuple[float, ...]]
    weights: str
    checkpoints: dict[int, str]


class Campaign:
    """Makes what the rows need when the first of them asks for it; everything is under `folder`."""

    def __init__(self, folder: Path, say: Callable[[str], None], place: Place = HERE) -> None:
        """The rows' trainings run in `place`; those that they are held against run here."""
        self.folder = folder
        self._say = say
        self._place = place
        self._numbers = itertools.count(1)

    @cached_property
    def data(self) -> Path:
        """Pairs built from the sample graph."""
        path = self.folder / "数据 pairs.jsonl"
        build_pairs([REPOSITORY / "medsft" / "knowledge" / "sample.jsonl"], path, seed=0)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:NUM_EXAMPLES]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    @cached_property
    def model(self) -> Path:
        """An untrained ChatGLM of a few 100,000 parameters."""
        pairs = [json.loads(line) for line in self.data.read_text(encoding="utf-8").splitlines()]
        tokenizer = self.folder / "tokenizer"
        train_tokenizer((pair["context"] + pair["target"] for pair in pairs), tokenizer, vocab_size=1500)
        write_random_model(self.folder / "toy 模型", tokenizer, overrides=SHAPE, seed=1, dtype="float32")
        return self.folder / "toy 模型"

    @cached_property
    def reference(self) -> Reference:
        """Trained once, with a checkpoint of every step."""
        self._say("training without faults, for comparison")
        run = self.new_run("undisturbed")
        with self.start(run, place=HERE, save_steps=1, save_total_limit=NUM_STEPS) as job:
            assert job.end() == 0, job.text
        assert committed(run) == list(range(1, NUM_STEPS + 1))
        states = {step: state_digest(step_folder(run / "checkpoints", step)) for step in committed(run)}
        return Reference(run, curve(run), weights_digest(run), states)

    @cached_property
    def interrupted(self) -> Path:
        """A run that was killed when it began to save step 16: checkpoints of 8 and 12 are there."""
        self._say("making a run that was killed, to be damaged")
        run = self.new_run("interrupted")
        crash = {"MEDSFT_CRASH_AT": f"begin:{4 * SAVE_STEPS}"}
        with self.start(run, place=HERE, environment=crash) as job:
            assert job.end() == 137, job.text
        assert committed(run) == [2 * SAVE_STEPS, 3 * SAVE_STEPS]
        return run

    def new_run(self, name: str) -> Path:
        """An output folder that is not there yet, with blanks and Chinese characters in its path."""
        return self.folder / "运行 runs" / f"{next(self._numbers):02} {name}"

    def killed_run(self, name: str) -> Path:
        """A copy of `interrupted`."""
        return shutil.copytree(self.interrupted, self.new_run(name))

    @contextmanager
    def start(
        self,
        run: Path,
        ranks: int = 2,
        launcher: str = "launcher",
        launcher_flags: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        inside: Sequence[str] = (),
        seen_at: Path | None = None,
        place: Place | None = None,
        **flags: Any,
    ) -> Iterator[Job]:
        """Starts the training of the campaign in `run`, which this process sees at `seen_at`."""
        settings = {
            "model_name_or_path": self.model,
            "train_file": self.data,
            "output_dir": run,
            "deepspeed": REPOSITORY / "ds_configs" / "zero3_cpu.json",
            "max_source_length": 96,
            "max_target_length": 96,
            "per_device_train_batch_size": 2,
            "global_batch_size": 12,  # for 1, 2 and 3 ranks
            "max_steps": NUM_STEPS,
            "learning_rate": 1e-3,
            "weight_decay": 0.01,
            "logging_steps": 1,
            "save_strategy": "steps",
            "save_steps": SAVE_STEPS,
            "data_cache_dir": self.folder / "data cache",
        } | flags
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        log = self.folder / "logs" / f"{next(self._numbers):03}.log"
        log.parent.mkdir(exist_ok=True)
        with starting(
            arguments,
            seen_at or run,
            log,
            ranks,
            launcher,
            launcher_flags,
            inside,
            environment or {},
            place or self._place,
        ) as job:
            yield job

    def check_checkpoints(self, tally: Tally, run: Path, damaged: Sequence[int] = ()) -> list[int]:
        """Reads all committed checkpoints: `damaged` must be refused, the others be right to the last bit.

        Returns the steps of the good ones, ascending.
        """
        good = []
        for step in committed(run):
            folder = step_folder(RunFolder(run).checkpoints, step)
            try:
                verify(folder)
            except UserError as error:
                tally.check(step in damaged, f"a checkpoint is damaged that nobody has touched: {error}")
                continue
            tally.load(
                step not in damaged and state_digest(folder) == self.reference.checkpoints[step],
                f"{folder} does not hold the state after step {step}, and seems good",
            )
            good.append(step)
        return good

    def check_finished(self, tally: Tally, run: Path) -> None:
        """The run has ended as if nobody had disturbed it: same curve, same weights, nothing left over."""
        folder = RunFolder(run)
        tally.check(folder.done.exists(), f"{folder.done} is not there")
        tally.equal([record["step"] for record in metrics(run)], list(range(1, NUM_STEPS + 1)), "steps told")
        tally.equal(curve(run), self.reference.curve, "loss curve")
        tally.equal(weights_digest(run), self.reference.weights, "digest of the final weights")
        tally.equal(self.check_checkpoints(tally, run)[-1:], [NUM_STEPS], "newest checkpoint")
        tally.equal(read_latest(folder.checkpoints), NUM_STEPS, "pointer")
        tally.equal(leftovers(run), [], "left over in the checkpoints folder")
        self.check_events(tally, run)

    def check_curve(self, tally: Tally, run: Path, most: float) -> None:
        """Every step told once, with the reference's examples, and no loss off by more than `most` of it."""
        tally.equal([record["step"] for record in metrics(run)], list(range(1, NUM_STEPS + 1)), "steps told")
        worst = 0.0
        for step, (loss, _, examples, tokens) in curve(run).items():
            expected = self.reference.curve[step]
            tally.equal((examples, tokens), expected[2:], f"examples and tokens seen after step {step}")
            worst = max(worst, abs(loss / expected[0] - 1))
        tally.check(
            worst <= most, f"a loss differs by {worst:.1e}, relatively, from that of 2 ranks throughout"
        )
        tally.remarks.append(f"largest relative difference of a loss {worst:.1e}")

    def check_events(self, tally: Tally, run: Path) -> None:
        """TensorBoard shows every step once, in order, with the loss that it had."""
        tb_logging.get_logger().setLevel("ERROR")  # it tells of every restart
        events = EventAccumulator(str(RunFolder(run).tensorboard), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            steps = [event.step for event in events.Scalars(tag)]
            tally.check(steps == sorted(set(steps)), f"TensorBoard's steps of {tag} do not rise: {steps}")
        shown = {event.step: event.value for event in events.Scalars("loss/train")}
        told = {step: figures[0] for step, figures in self.reference.curve.items()}
        tally.equal(list(shown), list(told), "steps in TensorBoard")
        off = max(abs(shown[step] / told[step] - 1) for step in told)
        tally.check(off < 1e-6, f"a loss in TensorBoard is off by {off}, more than fp32 can be")

    def finish(self, tally: Tally, run: Path, reached: int, **settings: Any) -> str:
        """Starts the run again, to its end, which must be that of an undisturbed one; returns the log.

        `reached`: the step to which it had come before.
        """
        with self.start(run, **settings) as job:
            recovered_s = job.wait_for_step(min(reached + 1, NUM_STEPS)) - job.started_s
            tally.equal(job.end(), 0, f"exit code of the start that finishes\n{job.text}\n")
            text = job.text
        tally.recovered_s.append(recovered_s)
        tally.steps_lost.append(reached - resumed_step(text))
        self.check_finished(tally, settings.get("seen_at", run))
        return text


def resumed_step(text: str) -> int:
    """The step that a start has gone on from, by its log; the last one where there were several starts."""
    found = re.findall(r"^going on from .*: step (\d+) of", text, re.MULTILINE)
    return int(found[-1]) if found else 0


def leftovers(run: Path) -> list[str]:
    """Names in the checkpoints folder of what is unfinished."""
    folder = RunFolder(run).checkpoints
    return sorted(path.name for path in folder.iterdir() if is_leftover(path.name)) if folder.exists() else []


def curve(run: Path) -> dict[int, tuple[float, ...]]:
    """Step -> loss, gradient norm, examples and tokens seen."""
    names = ("loss", "grad_norm", "examples_seen", "tokens_seen")
    return {record["step"]: tuple(record[name] for name in names) for record in metrics(run)}


def weights_digest(run: Path) -> str:
    """SHA-256 over all tensors of the final model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(RunFolder(run).model / "model.safetensors").items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()


def state_digest(folder: Path) -> str:
    """SHA-256 over what a checkpoint holds of the training: whole tensors, Adam's step, what was seen."""
    checkpoint = open_checkpoint(folder)
    manifest = checkpoint.manifest
    counts = (manifest.step, manifest.adam_step, manifest.examples_seen, manifest.tokens_seen)
    digest = hashlib.sha256(repr(counts).encode())
    for name, parameter in sorted(manifest.parameters.items()):
        for state in STATES:
            values = checkpoint.read_range(name, 0, parameter.num_elements, state)
            digest.update(f"{state} {name}".encode() + values.numpy().tobytes())
    return digest.hexdigest()
