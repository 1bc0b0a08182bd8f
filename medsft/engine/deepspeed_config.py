"""The DeepSpeed JSON held against the flags: one owner per value.

The JSON owns ZeRO, precision, offload and buckets. Batch, clipping and AdamW's numbers belong to the
flags: `"auto"` there (or nothing) is filled in, another number is an error that shows both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsft.errors import UserError
from medsft.planner.settings import DS_CONFIGS, auto_elements
from medsft.planner.shape import Shape


@dataclass(frozen=True)
class Batch:
    """How many examples make a step, and how they are cut."""

    global_size: int
    per_device_size: int
    num_micro_batches: int


def resolve_batch(
    world_size: int, per_device_size: int, accumulation_steps: int | None, global_size: int | None
) -> Batch:
    """Settles the three batch flags for a world size.

    The global batch decides the loss curve and must not follow from the number of ranks when it is given;
    then the micro-batches are derived. Raises `UserError` when all are given and do not fit.
    """
    if global_size is None:
        steps = accumulation_steps or 1
        return Batch(world_size * per_device_size * steps, per_device_size, steps)
    if accumulation_steps is None:
        return Batch(global_size, per_device_size, -(-global_size // (world_size * per_device_size)))
    product = world_size * per_device_size * accumulation_steps
    if product != global_size:
        raise UserError(
            f"--global_batch_size {global_size} is not --per_device_train_batch_size {per_device_size} x "
            f"--gradient_accumulation_steps {accumulation_steps} x {world_size} ranks = {product}. Leave "
            "--gradient_accumulation_steps away to have it derived."
        )
    return Batch(global_size, per_device_size, accumulation_steps)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises `UserError` for a missing file and for broken JSON."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"--deepspeed {path} cannot be read ({error.strerror}). Give one of ds_configs/*.json."
        ) from error
    except ValueError as error:
        raise UserError(
            f"--deepspeed {path} is not valid JSON: {error}. ds_configs/ has examples."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"--deepspeed {path} holds a {type(values).__name__}; it must be a JSON object.")
    return values


def default_path(device: torch.device) -> Path:
    """The JSON used without `--deepspeed`."""
    name = "zero3_cpu.json"
    if device.type == "cuda":
        name = "zero3.json" if has_bf16(device) else "zero3_fp16.json"
    return DS_CONFIGS / name


def settle(
    values: Mapping[str, Any],
    source: Path,
    batch: Batch,
    flags: Mapping[str, Any],
    shape: Shape,
    device: torch.device,
) -> dict[str, Any]:
    """The configuration handed to DeepSpeed: JSON and flags made one, buckets made for the model's layers.

    `flags` holds learning_rate, adam_beta1, adam_beta2, adam_epsilon, weight_decay and max_grad_norm. Raises
    one `UserError` with every contradiction, each showing the JSON's value and the flag's.
    """
    max_grad_norm = flags["max_grad_norm"]
    settled = json.loads(json.dumps(values))
    faults = _shape_faults(settled)
    if faults:
        raise UserError(f"--deepspeed {source} does not fit: " + "; ".join(faults) + ".")
    _settle_batch(settled, batch, faults)
    _settle_scalar(settled, "gradient_clipping", "--max_grad_norm", max_grad_norm, faults)
    _settle_optimizer(settled, flags, faults)
    _settle_zero(settled, shape, faults)
    _settle_precision(settled, device, faults)
    _settle_accumulation(settled, faults)
    faults += [f'{path} is "auto", which has no flag to take it from' for path in _autos(settled)]
    if faults:
        raise UserError(f"--deepspeed {source} does not fit: " + "; ".join(faults) + ".")
    # DeepSpeed only needs these to multiply out; examples are counted by the step plan.
    settled.update(
        train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1, gradient_clipping=max_grad_norm
    )
    return settled


def _shape_faults(values: Mapping[str, Any]) -> list[str]:
    """Blocks that are not blocks, and a betas that is not a pair."""
    faults = [
        f"{name} is {json.dumps(values[name])}, but must be an object {{…}}"
        for name in ("zero_optimization", "bf16", "fp16", "optimizer", "scheduler", "data_types")
        if name in values and not isinstance(values[name], dict)
    ]
    for name in ("optimizer", "scheduler"):
        params = (values.get(name) or {}).get("params", {}) if not faults else {}
        if not isinstance(params, dict):
            faults.append(f"{name}.params is {json.dumps(params)}, but must be an object {{…}}")
        elif name == "optimizer" and params.get("betas", "auto") != "auto":
            betas = params["betas"]
            if not isinstance(betas, list) or len(betas) != 2:
                faults.append(f"optimizer.params.betas is {json.dumps(betas)}, but must be two numbers")
    return faults


def _settle_batch(settled: dict[str, Any], batch: Batch, faults: list[str]) -> None:
    owners = {
        "train_batch_size": ("--global_batch_size", batch.global_size),
        "train_micro_batch_size_per_gpu": ("--per_device_train_batch_size", batch.per_device_size),
        "gradient_accumulation_steps": ("--gradient_accumulation_steps", batch.num_micro_batches),
    }
    for key, (flag, value) in owners.items():
        _settle_scalar(settled, key, flag, value, faults)
        del settled[key]


def _settle_scalar(settled: dict[str, Any], key: str, flag: str, value: Any, faults: list[str]) -> None:
    stated = settled.get(key, "auto")
    if stated != "auto" and stated != value:
        faults.append(
            f'{key} is {stated} but {flag} is {value} (write "auto" in the JSON, or change the flag)'
        )
    settled[key] = value


def _settle_optimizer(settled: dict[str, Any], flags: Mapping[str, Any], faults: list[str]) -> None:
    """Optimizer and scheduler blocks may agree with the flags; they never decide, so they are taken out."""
    block = settled.pop("optimizer", None) or {}
    kind = block.get("type", "AdamW")
    if kind not in ("Adam", "AdamW"):
        faults.append(f"optimizer.type is {kind!r}; this trainer runs AdamW (remove the block)")
    params = block.get("params", {})
    betas = params.get("betas", "auto")
    stated = {
        "learning_rate": params.get("lr", "auto"),
        "adam_beta1": betas if betas == "auto" else betas[0],
        "adam_beta2": betas if betas == "auto" else betas[1],
        "adam_epsilon": params.get("eps", "auto"),
        "weight_decay": params.get("weight_decay", "auto"),
    }
    for flag, value in stated.items():
        if value != "auto" and value != flags[flag]:
            faults.append(f'optimizer.params says {value} but --{flag} is {flags[flag]} (write "auto" there)')
    scheduler = (settled.pop("scheduler", None) or {}).get("params", {})
    fixed = sorted(name for name, value in scheduler.items() if value != "auto")
    if fixed:
        faults.append(
            f"scheduler.params sets {', '.join(fixed)}, but --lr_scheduler_type, --warmup_ratio and "
            "--warmup_steps decide the schedule (remove the block)"
        )


def _settle_zero(settled: dict[str, Any], shape: Shape, faults: list[str]) -> None:
    zero = settled.setdefault("zero_optimization", {})
    stage = zero.get("stage")
    if stage != 3:
        faults.append(f"zero_optimization.stage is {stage}, but this trainer shards with stage 3")
    for key, value in auto_elements(shape).items():
        if zero.get(key) == "auto":
            zero[key] = value
    faults += _zero_faults(zero)
    if any(fault.startswith("zero_optimization.offload") for fault in faults):
        return
    if (zero.get("offload_param") or {}).get("device") == "nvme":
        faults.append(
            'zero_optimization.offload_param.device is "nvme"; use "cpu" (optimizer states may be on NVMe)'
        )


def _zero_faults(zero: Mapping[str, Any]) -> list[str]:
    """What DeepSpeed's own description of the block refuses: unknown names, wrong types."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**{name: value for name, value in zero.items() if value != "auto"})
    except ValidationError as error:
        return [
            f"zero_optimization.{'.'.join(map(str, fault['loc']))} is {json.dumps(fault['input'])}: "
            f"{fault['msg'].lower()}"
            for fault in error.errors()
        ]
    return []


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bf16 itself; torch would also count GPUs that only emulate it."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def _settle_precision(settled: dict[str, Any], device: torch.device, faults: list[str]) -> None:
    fp16 = settled.setdefault("fp16", {})
    bf16 = settled.setdefault("bf16", {})
    for name, block in (("fp16", fp16), ("bf16", bf16)):
        if block.setdefault("enabled", False) not in (True, False, "auto"):
            faults.append(
                f'{name}.enabled is {json.dumps(block["enabled"])}, but must be true, false or "auto"'
            )
            block["enabled"] = False
    if bf16.get("enabled") == "auto":
        bf16["enabled"] = has_bf16(device)
    if fp16.get("enabled") == "auto":
        fp16["enabled"] = not bf16["enabled"]
    if fp16.get("enabled") and bf16.get("enabled"):
        faults.append("fp16.enabled and bf16.enabled are both true; choose one")
    if fp16.get("enabled") and device.type == "cpu":
        faults.append(
            "fp16.enabled is true but DeepSpeed has no fp16 training on CPU (use ds_configs/zero3_cpu.json)"
        )
    if bf16.get("enabled") and not has_bf16(device):
        faults.append(
            f"bf16.enabled is true but {torch.cuda.get_device_name()} has no bf16 "
            "(use ds_configs/zero3_fp16.json)"
        )


def _autos(value: Any, path: str = "") -> list[str]:
    """Paths of every "auto" that is left."""
    if isinstance(value, dict):
        return [
            found for key, item in value.items() for found in _autos(item, f"{path}.{key}" if path else key)
        ]
    return [path] if value == "auto" else []


def _settle_accumulation(settled: dict[str, Any], faults: list[str]) -> None:
    """Gradients add up in fp32, or the number of micro-batches would show in the loss curve."""
    types = settled.setdefault("data_types", {})
    stated = types.setdefault("grad_accum_dtype", "fp32")
    if stated not in ("fp32", None):
        faults.append(f'data_types.grad_accum_dtype is "{stated}", but gradients are added up in "fp32" here')
    types["grad_accum_dtype"] = "fp32"


def compute_dtype(ds_config: Mapping[str, Any]) -> torch.dtype:
    """Type of the weights in the forward pass that a settled configuration asks for."""
    if ds_config["fp16"]["enabled"]:
        return torch.float16
    return torch.bfloat16 if ds_config["bf16"]["enabled"] else torch.float32


def offloads_optimizer(ds_config: Mapping[str, Any]) -> bool:
    """Whether Adam's states live on the host or on NVMe."""
    offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"
