"""Which environment variables travel with a job to every host."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.job import OWNED_VARIABLES

_PREFIXES = ("NCCL_", "GLOO_", "HF_", "OMP_", "CUDA_", "PYTHON", "DS_", "TORCH_", "MEDSFT_")
# Each host's scheduler has its own idea of the GPUs it gives; --env sends one nevertheless. The other two
# belong to a single process.
_STAY = frozenset(["CUDA_VISIBLE_DEVICES", "MEDSFT_HEARTBEAT", "MEDSFT_AGENT"])


def travelling(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables of `environment` that each rank is given on each host, by name."""
    return tuple(
        (name, environment[name])
        for name in sorted(environment)
        if name.startswith(_PREFIXES) and name not in _STAY | OWNED_VARIABLES
    )
