"""One rank of `benchmarks/gpu_full_recipe.py`: train.py, with no more of the GPU's memory than it is told.

    CAP_GIB=32 python benchmarks/gpu_full_recipe_rank.py --model_name_or_path MODEL …

torch then raises what it would raise on a GPU of that size. The memory that CUDA itself and NCCL take is not
torch's and comes on top, so an allowance for it is taken off the cap.
"""

from __future__ import annotations

import os
import sys

import torch

from medsft import train
from medsft.planner.memory import CUDA_CONTEXT_BYTES


def share_of(cap_gib: float, memory_bytes: float) -> float:
    """Share of a GPU's memory that torch may take under a cap, 0 to 1."""
    return min(1.0, max(0.0, cap_gib * 2**30 - CUDA_CONTEXT_BYTES) / memory_bytes)


def main() -> int:
    """Sets the cap and trains."""
    if "CAP_GIB" in os.environ:
        memory_bytes = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share_of(float(os.environ["CAP_GIB"]), memory_bytes), 0)
    return train.main()


if __name__ == "__main__":
    sys.exit(main())
