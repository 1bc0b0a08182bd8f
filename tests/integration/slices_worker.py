"""One rank: slices_worker.py MODEL. Prints whether its slices are the files' ranges, and what it read."""

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.chatglm.base import open_base_model
from medsft.chatglm.weights import open_weights
from medsft.engine.distributed import complete_environment, start
from medsft.engine.zero import build_partitioned, gathered, load_slices

DS_CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3},
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
}


def main(model_dir):
    complete_environment(os.environ)
    world = start(timeout_min=2)
    base = open_base_model(Path(model_dir))
    before = base.weights.bytes_read
    model = build_partitioned(lambda: ChatGLMForConditionalGeneration(base.config), DS_CONFIG)
    load_slices(model, base.weights, world)
    num_read = base.weights.bytes_read - before
    whole = open_weights(Path(model_dir))
    equal, elements_held = [], 0
    for name, param in model.named_parameters():
        flat = whole.read(name).reshape(-1).float()
        size = -(-flat.numel() // world.size)
        mine = flat[world.rank * size : (world.rank + 1) * size]
        equal.append(torch.equal(param.ds_tensor[: mine.numel()], mine))
        equal.append(not param.ds_tensor[mine.numel() :].any())
        elements_held += param.ds_tensor.numel()
    gatherings = []

    class CountingGather(deepspeed.zero.GatheredParameters):
        def __init__(self, params, *arguments, **more):
            gatherings.append(len(params))
            super().__init__(params, *arguments, **more)

    deepspeed.zero.GatheredParameters = CountingGather
    one_at_a_time = True
    for number, (name, tensor) in enumerate(gathered(model, world), start=1):
        # One call for each parameter yielded so far, of one parameter, which has been given back.
        live = sum(param.numel() for param in model.parameters())
        one_at_a_time &= gatherings == [1] * number and live == 0
        if tensor is not None:
            equal.append(torch.equal(tensor, whole.read(name).float()))
    report = {
        "rank": world.rank,
        "all_equal": all(equal),
        "bytes_read": num_read,
        "elements_held": elements_held,
        "elements_in_all": sum(param.ds_numel for param in model.parameters()),
        "one_at_a_time": one_at_a_time,
    }
    os.write(1, (json.dumps(report) + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # as ranks do: tidying up, the process group's threads may turn the exit code into an abort
