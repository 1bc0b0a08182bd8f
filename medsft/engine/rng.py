"""States of the random number generators of this process, as text for a manifest.

Nothing in a training step draws a random number today (no dropout, the step plan has its own generator);
they are kept so that what does tomorrow resumes exactly, too.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping

import numpy as np
import torch


def rng_states() -> dict[str, str]:
    """Generator -> base64 of its state: torch's of CPU and GPU as they are, the others' as JSON."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    states = {
        "torch_cpu": torch.get_rng_state().numpy().tobytes(),
        "python": json.dumps([version, words, gauss]).encode(),
        "numpy": json.dumps([kind, keys.tolist(), *rest]).encode(),
    }
    if torch.cuda.is_available():
        states["torch_cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return {name: base64.b64encode(state).decode("ascii") for name, state in states.items()}


def restore_rng_states(states: Mapping[str, str]) -> None:
    """Puts back what `rng_states` gave; a GPU's state is left out on a machine without one."""
    raw = {name: base64.b64decode(text, validate=True) for name, text in states.items()}
    torch.set_rng_state(_as_tensor(raw["torch_cpu"]))
    version, words, gauss = json.loads(raw["python"])
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = json.loads(raw["numpy"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if "torch_cuda" in raw and torch.cuda.is_available():
        torch.cuda.set_rng_state(_as_tensor(raw["torch_cuda"]))


def _as_tensor(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)
