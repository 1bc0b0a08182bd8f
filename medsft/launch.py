"""Which launch a process belongs to: a restart of the same one goes on with what it has begun.

`--overwrite_output_dir`, `--resume_from_checkpoint none` and a path say how a run begins. The same command,
started again by a launcher after a crash or by Slurm after a requeue, must not begin so once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def launch_names(environment: Mapping[str, str]) -> list[str]:
    """What this launch is called, for run.json: by our launcher, by Slurm, by both; empty outside of them."""
    names = [environment.get("MEDSFT_LAUNCH")]
    if job := environment.get("SLURM_JOB_ID"):
        names.append(f"slurm-{job}")
    return [name for name in names if name]


def is_restart(description: Path, environment: Mapping[str, str]) -> bool:
    """Whether the run that run.json tells of was begun by this launch.

    The number of a Slurm job counts only when Slurm has restarted it: in one allocation people start many
    runs by hand.
    """
    begun = read_description(description).get("launch", [])
    own = launch_names(environment)
    if environment.get("SLURM_RESTART_COUNT", "0") == "0":
        own = [name for name in own if not name.startswith("slurm-")]
    return any(name in begun for name in own)


def read_description(description: Path) -> dict[str, Any]:
    """The content of run.json; empty where it is missing or damaged."""
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
