"""How many ranks this machine takes: one for each GPU, or as many as asked for on CPU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping

from launcher.errors import LauncherError

_NVIDIA_SMI_TIMEOUT_S = 60


def count_slots(requested: int | None, environment: Mapping[str, str], list_gpus: Callable[[], int]) -> int:
    """Number of ranks to start on this machine.

    `requested` is --num-gpus; without it every visible GPU gets a rank, and a machine without GPUs one.
    CUDA_VISIBLE_DEVICES hides GPUs as CUDA itself has it; with DS_ACCELERATOR=cpu none is looked for.
    Raises `LauncherError` for a number below 1 and for more ranks than visible GPUs, and what
    `list_gpus` raises.
    """
    if requested is not None and requested < 1:
        raise LauncherError(
            f"--num-gpus {requested} starts no rank at all. Give 1 or more, or leave it out for one rank on "
            "each visible GPU (on a machine without GPUs: one rank on the CPU)."
        )
    num_gpus = 0 if environment.get("DS_ACCELERATOR") == "cpu" else _visible_gpus(environment, list_gpus)
    if requested is None:
        return max(1, num_gpus)
    if 0 < num_gpus < requested:
        raise LauncherError(
            f"--num-gpus {requested} is more than the {num_gpus} GPUs that can be seen here "
            f"(CUDA_VISIBLE_DEVICES={environment.get('CUDA_VISIBLE_DEVICES', 'is not set')}). Give "
            f"{num_gpus} or less, or set DS_ACCELERATOR=cpu to run the ranks on the CPU."
        )
    return requested


def _visible_gpus(environment: Mapping[str, str], list_gpus: Callable[[], int]) -> int:
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    return list_gpus() if visible is None else len(visible_devices(visible))


def visible_devices(value: str) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES names, by number or UUID, in the order of their slots."""
    names = []
    for name in value.split(","):
        # CUDA ignores everything from the first invalid entry on; -1 is the usual way to hide all.
        if name.strip() in ("", "-1"):
            break
        names.append(name.strip())
    return names


def list_nvidia_gpus() -> int:
    """Number of GPUs that nvidia-smi lists; 0 where there is no nvidia-smi.

    Raises `LauncherError` when it fails or hangs: a machine whose driver is dead is none without GPUs.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listed = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LauncherError(
            f"{program} -L gave no answer for {_NVIDIA_SMI_TIMEOUT_S} s, so the GPUs could not be counted: "
            "the driver hangs (see dmesg). To go on without asking it, set CUDA_VISIBLE_DEVICES."
        ) from error
    if listed.returncode != 0:
        said = " ".join((listed.stdout + listed.stderr).split()).rstrip(".")
        raise LauncherError(
            f"{program} -L failed with code {listed.returncode}, so the GPUs could not be counted: {said}. "
            "Mend the driver (see dmesg), or set DS_ACCELERATOR=cpu to run the ranks on the CPU."
        )
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
