"""Which launch a process belongs to: a restart of the same one goes on with what it has begun.

`--overwrite_output_dir`, `--resume_from_checkpoint none` and a path say how a run begins. The same command,
started again by a launcher after a crash or by Slurm after a requeue, must not begin so once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def launch_names(environment: Mapping[str, str]) -> list[str]:
    """What this launch is called, for run.json: by our launcher, by Slurm, by both; empty outside of them."""
    names = [environment.get("MEDSFT_LAUNCH")]
    if job := environment.get("SLURM_JOB_ID"):
        names.append(f"slurm-{job}")
    return [name for name in names if name]


def is_restart(begun: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Whether the run whose run.json holds `begun` was begun by this launch.

    The number of a Slurm job counts only when Slurm has restarted it: in one allocation people start many
    runs by hand.
    """
    own = launch_names(environment)
    if environment.get("SLURM_RESTART_COUNT", "0") == "0":
        own = [name for name in own if not name.startswith("slurm-")]
    return any(name in begun.get("launch", []) for name in own)
