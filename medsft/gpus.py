"""GPUs that a process was given but torch cannot use: an old driver must not send a run to the CPU unseen."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from medsft.errors import UserError

_DEVICES = Path("/dev")
# What a variable that hides all GPUs does not begin with: numbers, and names as nvidia-smi has them.
_NAMES_A_GPU = re.compile(r"\d|GPU-|MIG-")
# PyTorch's RELEASE.md, "CUDA Support Matrix": CUDA 13 asks for driver 580 and knows Turing and later; the
# builds for CUDA 12.6, of torch up to 2.14, run from driver 525 on and know Volta too.
_OLDER = (
    "Builds for CUDA 13 need driver 580 and a GPU of Turing or later. An older one of either needs a build "
    'for CUDA 12.6: `python -m pip install -c constraints.txt "torch==2.13.0+cu126" --index-url '
    "https://download.pytorch.org/whl/cu126`."
)

_WITHOUT_CUDA = "This torch is built without CUDA; the README's first step installs one with it."


def check_gpus(advice: str, devices: Path = _DEVICES) -> None:
    """Raises `UserError` where NVIDIA GPUs were given to this process and torch finds none.

    advice: how to compute on the CPU all the same. devices: folder of the device files; one that cannot be
    opened was not given (Slurm and containers hide them so).
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip()
    if torch.cuda.is_available() or not _NAMES_A_GPU.match(visible):
        return
    given = [path.name for path in sorted(devices.glob("nvidia[0-9]*")) if _can_be_opened(path)]
    if given:
        raise UserError(
            f"this host has NVIDIA GPUs ({', '.join(given)}) that torch {torch.__version__} cannot use: "
            f"{_reason()}. {_OLDER if torch.version.cuda else _WITHOUT_CUDA} {advice}"
        )


def check_architecture(device: torch.device) -> None:
    """Raises `UserError` for a GPU for which this build of torch has no code."""
    built = torch.cuda.get_arch_list() if torch.version.cuda else []
    capability = torch.cuda.get_device_capability(device) if built else (0, 0)
    if built and not _has_code(capability, built):
        raise UserError(
            f"{device} ({torch.cuda.get_device_name(device)}) is of compute capability "
            f"{capability[0]}.{capability[1]}, for which torch {torch.__version__} has no code; it has "
            f"{', '.join(built)}. {_OLDER}"
        )


def _has_code(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Binaries (sm_…) run from their minor version on within the major one, PTX (compute_…) on all later."""
    for name in built:
        if found := re.match(r"(sm|compute)_(\d+)(\d)", name):
            of = (int(found[2]), int(found[3]))
            if of <= capability and (found[1] == "compute" or of[0] == capability[0]):
                return True
    return False


def _can_be_opened(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _reason() -> str:
    """What torch says of it, on one line."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split()).rstrip(".")
    return "it finds no device"
