"""What a DeepSpeed configuration says about memory and traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medsft.errors import UserError
from medsft.planner.shape import Shape

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
"""The configurations that come with medsft."""

_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# DeepSpeed's own defaults (deepspeed/runtime/zero/config.py), for what the JSON leaves out.
_DEFAULTS = {
    "reduce_bucket_size": 5e8,
    "stage3_param_persistence_threshold": 1e5,
    "stage3_max_live_parameters": 1e9,
    "sub_group_size": 1e9,
}


def auto_elements(shape: Shape) -> dict[str, int]:
    """Elements that stand for "auto" in a configuration, by their names in `zero_optimization`.

    A block is gathered and released as one (a leaf module of ZeRO-3), so the next one is prefetched whole and
    a bucket holds the gradients of one: 201 million elements of ChatGLM-6B. Hugging Face's rule would give
    hidden², a twelfth of that, hence twelve collectives of each block. Biases and LayerNorms, whose sending
    takes longer to begin than to do, stay whole on every rank; the smallest matrix does not.
    """
    return {
        "reduce_bucket_size": shape.layer_parameters,
        "stage3_prefetch_bucket_size": shape.layer_parameters,
        "stage3_param_persistence_threshold": max(3 * shape.hidden_size, shape.inner_hidden_size),
    }


@dataclass(frozen=True)
class ZeroSettings:
    """ZeRO-3 as configured.

    Attributes:
        precision: bf16, fp16 or fp32, of the weights in the forward pass.
        offload_optimizer: none, cpu or nvme: where Adam's states live.
        offload_param: none or cpu: where the slices of the weights live.
        pins_optimizer: its buffers on the host are page-locked.
        pins_param: those of the weights are.
        reduce_bucket, max_live, persistence, sub_group: in elements.
        hpz: ranks that share a further copy of the weights (hpZ); 1: none.
        nvme_buffers: buffers of a sub-group each, through which states come from NVMe.
        overlaps: collectives run beside the computation.
    """

    precision: str
    offload_optimizer: str
    offload_param: str
    pins_optimizer: bool
    pins_param: bool
    reduce_bucket: int
    max_live: int
    persistence: int
    sub_group: int
    hpz: int
    nvme_buffers: int
    overlaps: bool

    @classmethod
    def of(cls, ds_config: Mapping[str, Any], shape: Shape) -> Self:
        """Reads a configuration, settled or not, for a model. Raises `UserError` where it is not ZeRO-3."""
        zero = ds_config.get("zero_optimization") or {}
        if zero.get("stage") != 3:
            raise UserError(
                f"zero_optimization.stage is {zero.get('stage')}, but this trainer shards with stage 3."
            )
        optimizer, param = _offload(zero, "offload_optimizer"), _offload(zero, "offload_param")
        auto = auto_elements(shape)

        def elements(name: str) -> int:
            value = zero.get(name, _DEFAULTS[name])
            value = auto.get(name) if value == "auto" else value
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
                raise UserError(
                    f"zero_optimization.{name} is {zero[name]!r}, must be a number of elements, 0 or more."
                )
            return int(value)

        return cls(
            precision=_precision(ds_config),
            offload_optimizer=optimizer.get("device", "none"),
            offload_param=param.get("device", "none"),
            pins_optimizer=bool(optimizer.get("pin_memory", False)),
            pins_param=bool(param.get("pin_memory", False)),
            reduce_bucket=elements("reduce_bucket_size"),
            max_live=elements("stage3_max_live_parameters"),
            persistence=elements("stage3_param_persistence_threshold"),
            sub_group=elements("sub_group_size"),
            hpz=_count(zero, "zero_hpz_partition_size", 1),
            nvme_buffers=_count(optimizer, "buffer_count", 4),
            overlaps=bool(zero.get("overlap_comm", True)),
        )

    @property
    def bytes_a_weight(self) -> int:
        """Bytes of a weight in the forward pass, and of a gradient that travels."""
        return _BYTES[self.precision]


def _offload(zero: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = zero.get(name) or {}
    if not isinstance(section, Mapping) or section.get("device", "none") not in ("none", "cpu", "nvme"):
        raise UserError(
            f'zero_optimization.{name} is {section!r}, must be an object whose "device" is none, cpu or nvme.'
        )
    return section


def _count(section: Mapping[str, Any], name: str, default: int) -> int:
    value = section.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{name} is {value!r}, must be a whole number, 1 or more.")
    return value


def _precision(ds_config: Mapping[str, Any]) -> str:
    for name in ("bf16", "fp16"):
        enabled = (ds_config.get(name) or {}).get("enabled", False)
        if enabled is True or (enabled == "auto" and name == "bf16"):
            return name
    return "fp32"
