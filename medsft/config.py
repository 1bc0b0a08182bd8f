"""A run's settings: one field is one command line flag, with its unit and its help.

The flags own data, paths, batch, learning rate and steps; the DeepSpeed JSON owns ZeRO, precision,
offload and buckets (`medsft.engine.deepspeed_config` holds the two against each other). Names follow
THUDM's ChatGLM-6B scripts and Hugging Face. A YAML file given by `--config` holds the same names; the
command line wins.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml

from medsft.errors import UserError

if TYPE_CHECKING:
    from transformers import HfArgumentParser


def _flag(default: Any, text: str, **more: Any) -> Any:
    """A field; `more` goes to argparse's `add_argument`."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text, **more})
    return field(default=default, metadata={"help": text, **more})


_SWITCH: Mapping[str, bool | None] = {"auto": None, "true": True, "false": False}


@dataclass(frozen=True)
class ModelConfig:
    """The model that is tuned."""

    _argument_group_name = "model"

    model_name_or_path: str = _flag(
        "", "Folder of a ChatGLM in the released layout: config.json, tokenizer, .bin or safetensors weights."
    )
    gradient_checkpointing: str = _flag(
        "auto",
        "true: compute activations again in the backward pass, a third more work for far less memory; false; "
        "auto: only where the plan does not fit without, with a tenth to spare.",
        nargs="?",
        const="true",
        metavar="{auto,true,false}",
    )
    torch_compile: bool = _flag(
        False, "Compile the blocks (torch.compile) at the start, which pays for long runs on a GPU."
    )

    @property
    def recomputes(self) -> bool | None:
        """Whether activations are computed again; None: for the plan to decide."""
        return _SWITCH[self.gradient_checkpointing.lower()]


@dataclass(frozen=True)
class DataConfig:
    """What it is tuned on."""

    _argument_group_name = "data"

    train_file: list[str] = _flag([], "Instruction files (.jsonl .json .csv .txt), in this order.")
    validation_file: list[str] = _flag([], "Files for the validation loss, at each epoch's end.")
    prompt_column: str | None = _flag(None, "Column of the question; found by itself when not given.")
    response_column: str | None = _flag(None, "Column of the answer; found by itself when not given.")
    history_column: str | None = _flag(None, "Column of earlier rounds, a list of [question, answer].")
    prompt_template: Literal["auto", "none", "chatglm", "med-chatglm"] = _flag(
        "auto",
        "How a question is written for the model. auto: med-chatglm (问题：…\\n回答: ) if the file is "
        "written so, else chatglm.",
    )
    max_source_length: int = _flag(256, "Context limit in tokens, [gMASK] included; the oldest text is cut.")
    max_target_length: int = _flag(256, "Answer limit in tokens, <sop> and <eop> included; its end is cut.")
    max_train_samples: int | None = _flag(None, "Use only the first N training examples.")
    max_bad_share: float = _flag(0.01, "Stop if more than this share (0 to 1) of the lines is unusable.")
    data_cache_dir: str | None = _flag(
        None, "Folder for tokenised data, shared by all hosts (default: data_cache in the output folder)."
    )
    preprocessing_num_workers: int = _flag(1, "Processes that tokenise.")


@dataclass(frozen=True)
class OptimizationConfig:
    """Batch, learning rate and steps."""

    _argument_group_name = "optimization"

    per_device_train_batch_size: int = _flag(
        8, "Examples in one micro-batch of one rank (packed: on average)."
    )
    gradient_accumulation_steps: int | None = _flag(
        None, "Micro-batches a rank adds up to one step (default 1, or what --global_batch_size asks for)."
    )
    global_batch_size: int | None = _flag(
        None, "Examples in one optimiser step over all ranks (default: the product of the two and the ranks)."
    )
    packing: bool = _flag(True, "One padding-free row a micro-batch; false: padded rows.")
    micro_batch_tokens: int | None = _flag(
        None, "Most tokens in one packed micro-batch (default: batch size x both length limits)."
    )
    learning_rate: float = _flag(5e-5, "Peak learning rate.")
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = _flag(
        "linear", "Shape of the learning rate after warm-up; linear and cosine end at zero."
    )
    warmup_ratio: float = _flag(0.1, "Share of all steps (0 to 1) that warms up.")
    warmup_steps: int | None = _flag(None, "Steps of warm-up; replaces the ratio.")
    weight_decay: float = _flag(0.0, "AdamW's weight decay (not on biases and LayerNorms).")
    adam_beta1: float = _flag(0.9, "AdamW's beta1.")
    adam_beta2: float = _flag(0.999, "AdamW's beta2.")
    adam_epsilon: float = _flag(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = _flag(1.0, "Gradients are clipped to this global norm; 0: not at all.")
    num_train_epochs: float = _flag(3.0, "Passes over the training data.")
    max_steps: int = _flag(-1, "Optimiser steps; above 0 it replaces the epochs.")
    max_nonfinite_steps: int = _flag(
        10, "Stop after this many steps in a row with NaN or infinite gradients (each one is skipped)."
    )
    seed: int = _flag(42, "Decides the order of the examples.")


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives and what it reports."""

    _argument_group_name = "run"

    output_dir: str = _flag(
        "", "Folder of the run: metrics, TensorBoard, checkpoints, the final model, DONE."
    )
    overwrite_output_dir: bool = _flag(
        False, "Start over in a folder that holds a run; the old one is moved to previous-N inside it."
    )
    resume_from_checkpoint: str = _flag(
        "auto",
        "auto: go on from the newest good checkpoint in the output folder, if there is one; latest: the "
        "same, but there must be one; none: begin at step 0; or the path of a checkpoint, of any run.",
    )
    allow_changed: list[str] = _flag(
        [],
        "Resume although these differ from the checkpoint: data, tokenizer, seed, global_batch_size, model.",
    )
    deepspeed: str | None = _flag(
        None,
        "DeepSpeed JSON (default: in ds_configs, zero3.json; zero3_fp16.json on GPUs without bf16; "
        "zero3_cpu.json without a GPU).",
    )
    allow_low_memory: bool = _flag(
        False, "Start although the plan says that the memory of GPU or host cannot suffice."
    )
    logging_steps: int = _flag(10, "Report every N steps.")
    report_to: list[str] = _flag(
        [], "Trackers to report to besides TensorBoard and metrics.jsonl: wandb, mlflow; if installed."
    )
    sample_steps: int | None = _flag(
        None, "Let the model answer a few fixed questions every N steps (default: never)."
    )
    save_strategy: Literal["no", "steps", "epoch", "time"] = _flag(
        "epoch",
        "When to save a checkpoint that training can resume from; unless no, one more at the end. A stopped "
        "run saves one in any case.",
    )
    save_steps: int | None = _flag(
        None, "Steps between checkpoints with --save_strategy steps (default 500)."
    )
    save_minutes: float | None = _flag(
        None, "Minutes between checkpoints with --save_strategy time (default 30)."
    )
    save_total_limit: int = _flag(2, "Keep this many of the newest checkpoints.")
    keep_every_steps: int | None = _flag(
        None, "Keep for good the checkpoints of steps that this number divides, too."
    )
    keep_best: bool = _flag(
        True, "Keep the checkpoint with the lowest validation loss measured at its step, too."
    )
    on_save_failure: Literal["stop", "continue"] = _flag(
        "stop", "When a checkpoint cannot be saved (a full disk): end the run, or go on without it."
    )
    max_shard_size: str = _flag(
        "2GB", "Largest file of a written model; rank 0 needs twice as much host memory."
    )
    eval_steps: int | None = _flag(None, "Steps between validation losses (default: at each epoch's end).")
    early_stopping_patience: int | None = _flag(
        None, "End the run after so many validations in a row without a lower loss (default: never)."
    )
    early_stopping_threshold: float = _flag(
        0.0, "A validation loss counts as lower if it is by more than this, in nats."
    )
    per_device_eval_batch_size: int = _flag(8, "Examples in one validation micro-batch of one rank.")
    distributed_timeout_min: int = _flag(
        30, "Give up when ranks have waited for each other this long, in min."
    )
    local_rank: int = _flag(-1, "Given by DeepSpeed's launcher; the environment is what counts.")


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    model: ModelConfig
    data: DataConfig
    optimization: OptimizationConfig
    run: RunConfig

    def flags(self) -> dict[str, Any]:
        """Every flag with its value, in the order of the help, as model card and run.json show them."""
        groups = (self.model, self.data, self.optimization, self.run)
        return {f.name: getattr(group, f.name) for group in groups for f in fields(group)}


CHANGEABLE = ("data", "tokenizer", "seed", "global_batch_size", "model")
"""What --allow_changed may name: the fields of `medsft.checkpoint.manifest.Identity`."""

TRACKERS = ("wandb", "mlflow")
"""What --report_to may name: the keys of `medsft.monitor.trackers.TRACKERS`."""

_GROUPS = (ModelConfig, DataConfig, OptimizationConfig, RunConfig)
_NAMES = tuple(f.name for group in _GROUPS for f in fields(group))


def _parser() -> HfArgumentParser:
    """Parser of all flags, whose complaints are a `UserError`, not a page of usage."""
    from transformers import HfArgumentParser  # seconds, which those who only read settings do not spend

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(f"{message}. `medsft train --help` lists every flag.")

    parser = Parser(
        list(_GROUPS), prog="train.py", description="Fine-tune ChatGLM-6B.", add_help=True, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these flags; flags win.")
    return parser


def parse(arguments: Sequence[str]) -> Config:
    """Reads flags, and the YAML file of `--config` below them.

    Raises `UserError` for unknown names and for values outside their range; all faults in one message.
    """
    parser = _parser()
    arguments = list(arguments)
    known, _ = parser.parse_known_args(arguments)
    if known.config is not None:
        arguments = _yaml_arguments(Path(known.config)) + arguments
    *groups, _, unknown = parser.parse_args_into_dataclasses(
        arguments, return_remaining_strings=True, look_for_args_file=False
    )
    strangers = [_with_guess(item) for item in unknown if item.startswith("-")] or unknown
    if strangers:
        raise UserError(
            f"unknown flags: {', '.join(strangers)}. `medsft train --help` lists those there are."
        )
    config = Config(*groups)
    faults = _faults(config)
    if faults:
        raise UserError("wrong settings: " + "; ".join(faults) + ".")
    return config


def _yaml_arguments(path: Path) -> list[str]:
    """A YAML mapping as command line arguments."""
    try:
        # Every value as it was typed: YAML would read `no`, a value of --save_strategy, as false.
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"--config {path} cannot be read as YAML: {error}. Give a file of `flag: value`."
        ) from error
    if not values:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds a {type(values).__name__}; it must hold `flag: value` lines.")
    arguments: list[str] = []
    for name, value in values.items():
        if name not in _NAMES:
            raise UserError(f"--config {path}: unknown name {_with_guess(str(name))}.")
        if value in ("", "null", "~"):
            continue
        arguments += [f"--{name}", *(value if isinstance(value, list) else [value])]
    return arguments


def _with_guess(name: str) -> str:
    plain = name.lstrip("-").split("=")[0]
    near = difflib.get_close_matches(plain, _NAMES, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name


def _faults(config: Config) -> list[str]:
    """Everything that is wrong with the values, each a clause that names flag, value and range."""
    data = config.data
    required = {
        "--model_name_or_path": config.model.model_name_or_path,
        "--train_file": data.train_file,
        "--output_dir": config.run.output_dir,
    }
    faults = [f"{flag} is missing" for flag, value in required.items() if not value]
    flags = config.flags()

    def check(names: Sequence[str], allowed: str, fits: Any) -> None:
        for name in names:
            value = flags[name]
            if value is not None and not fits(value):
                faults.append(f"--{name} {value} must be {allowed}")

    check(
        [
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "global_batch_size",
            "micro_batch_tokens",
            "max_nonfinite_steps",
            "logging_steps",
            "save_steps",
            "save_total_limit",
            "keep_every_steps",
            "eval_steps",
            "sample_steps",
            "early_stopping_patience",
            "per_device_eval_batch_size",
            "distributed_timeout_min",
            "max_train_samples",
            "preprocessing_num_workers",
        ],
        "1 or more",
        lambda value: value >= 1,
    )
    check(["max_source_length"], "2 or more ([gMASK] and text)", lambda value: value >= 2)
    check(["max_target_length"], "3 or more (<sop>, text and <eop>)", lambda value: value >= 3)
    check(
        ["learning_rate", "num_train_epochs", "adam_epsilon", "save_minutes"],
        "above 0",
        lambda value: value > 0,
    )
    check(
        ["weight_decay", "max_grad_norm", "seed", "warmup_steps", "early_stopping_threshold"],
        "0 or more",
        lambda value: value >= 0,
    )
    check(["warmup_ratio", "max_bad_share"], "between 0 and 1", lambda value: 0 <= value <= 1)
    check(["adam_beta1", "adam_beta2"], "at least 0 and below 1", lambda value: 0 <= value < 1)
    check(["max_steps"], "above 0, or -1 for whole epochs", lambda value: value == -1 or value > 0)
    check(["gradient_checkpointing"], "auto, true or false", lambda value: value.lower() in _SWITCH)
    faults += [
        f"--{name} {value} must be a finite number"
        for name, value in flags.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if config.run.save_steps is not None and config.run.save_strategy != "steps":
        faults.append(f"--save_steps {config.run.save_steps} needs --save_strategy steps")
    if config.run.save_minutes is not None and config.run.save_strategy != "time":
        faults.append(f"--save_minutes {config.run.save_minutes} needs --save_strategy time")
    strangers = [name for name in config.run.allow_changed if name not in CHANGEABLE]
    if strangers:
        faults.append(f"--allow_changed {' '.join(strangers)} must be of {', '.join(CHANGEABLE)}")
    strangers = [name for name in config.run.report_to if name not in TRACKERS]
    if strangers:
        faults.append(f"--report_to {' '.join(strangers)} must be of {', '.join(TRACKERS)}")
    if not config.run.resume_from_checkpoint:
        faults.append("--resume_from_checkpoint must be auto, latest, none or a path")
    if config.run.eval_steps is not None and not data.validation_file:
        faults.append(f"--eval_steps {config.run.eval_steps} needs --validation_file")
    patience = config.run.early_stopping_patience
    if patience is not None and not data.validation_file:
        faults.append(f"--early_stopping_patience {patience} needs --validation_file")
    if config.run.early_stopping_threshold and patience is None:
        threshold = config.run.early_stopping_threshold
        faults.append(f"--early_stopping_threshold {threshold} needs --early_stopping_patience")
    if config.optimization.micro_batch_tokens is not None and not config.optimization.packing:
        faults.append(f"--micro_batch_tokens {config.optimization.micro_batch_tokens} needs --packing true")
    if data.history_column is not None and data.prompt_column is None:
        faults.append(f"--history_column {data.history_column} needs --prompt_column and --response_column")
    if (data.prompt_column is None) != (data.response_column is None):
        faults.append("--prompt_column and --response_column go together")
    return faults
