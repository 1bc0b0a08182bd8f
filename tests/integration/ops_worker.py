"""One process that needs compiled ops: ops_worker.py OFFLOAD_DEVICE. Prints what it logs, then "ready"."""

import logging
import sys

from medsft.engine.ops import prepare_ops
from medsft.errors import UserError


def main(device):
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("medsft").setLevel(logging.INFO)
    try:
        prepare_ops({"zero_optimization": {"offload_optimizer": {"device": device}}})
    except UserError as error:
        sys.exit(f"user error: {error}")
    if device == "none":
        return
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    weight = torch.nn.Parameter(torch.ones(8))
    weight.grad = torch.ones(8)
    DeepSpeedCPUAdam([weight], lr=0.5).step()
    print("ready" if weight.max() < 0.6 else "wrong", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
