"""Where a model that answers is held: chat, serve, eval and compare find it here."""

from __future__ import annotations

import torch

from medsft.errors import UserError


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of that name; auto: a GPU if there is one, of several that of `local_rank`, else the CPU.

    More ranks than GPUs take turns on them. Raises `UserError` for a device that is not there.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device {name} is not known; give cpu, cuda, cuda:1 … or auto.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} is not there: {torch.cuda.device_count()} GPUs can be used. Give cpu or auto."
        )
    return device
