"""Where a model that answers is held: chat, serve, eval and compare find it here."""

from __future__ import annotations

import torch

from medsft.errors import UserError
from medsft.gpus import check_architecture, check_gpus


def choose_devices(name: str, local_rank: int = 0) -> list[torch.device]:
    """The devices that a model goes to, in this order: one, or several that share its blocks.

    name: of one device, several of one kind with commas between, "all" for all GPUs, or "auto" as of
    `choose_device`. Raises `UserError` for what is not there.
    """
    if name == "all":
        name = ",".join(f"cuda:{index}" for index in range(torch.cuda.device_count())) or "auto"
    devices = [choose_device(part.strip(), local_rank) for part in name.split(",")]
    if len({device.type for device in devices}) > 1:
        raise UserError(f"--device {name} mixes kinds of devices; give several GPUs, or one device.")
    return devices


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; auto: a GPU if there is one, of several that of `local_rank`, else the CPU.

    More ranks than GPUs take turns on them. Raises `UserError` for a device that is not there, and for GPUs
    that torch cannot use.
    """
    if name != "cpu":
        check_gpus("--device cpu computes on the CPU.")
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(
            f"--device {name} is not known; give cpu, cuda, cuda:1 …, several with commas, all, or auto."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} is not there: {torch.cuda.device_count()} GPUs can be used. Give cpu or auto."
        )
    if device.type == "cuda":
        check_architecture(device)
    return device
