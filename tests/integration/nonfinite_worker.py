"""Two ranks, five steps; rank 1 alone meets an infinity in steps 1 and 3. Prints a JSON line for each rank.

Usage: nonfinite_worker.py MODEL DATA CACHE DS_CONFIG MAX_IN_A_ROW
"""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.chatglm.base import open_base_model
from medsft.chatglm.block import ChatGLMBlock
from medsft.config import parse
from medsft.data.cache import load_or_build
from medsft.data.loader import StepBatches
from medsft.data.plan import StepPlan, split
from medsft.engine import deepspeed_config
from medsft.engine.deepspeed_config import Batch
from medsft.engine.distributed import complete_environment, start
from medsft.engine.optimizer import build_optimizer
from medsft.engine.step import DivergedError, TrainStep, start_engine
from medsft.engine.zero import build_partitioned, gathered, load_slices
from medsft.planner.shape import Shape


def digest(model, world):
    """SHA-256 of all weights on rank 0, of nothing elsewhere."""
    total = hashlib.sha256()
    for name, tensor in gathered(model, world):
        if tensor is not None:
            total.update(name.encode())
            total.update(tensor.float().numpy().tobytes())
    return total.hexdigest()


def main(model_dir, data_file, cache, ds_file, max_in_a_row):
    complete_environment(os.environ)
    world = start(timeout_min=2)
    base = open_base_model(Path(model_dir))
    data = load_or_build([data_file], base.tokenizer, cache, max_source_length=96, max_target_length=96)
    flags = parse(["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o"]).flags()
    ds_config = deepspeed_config.settle(
        deepspeed_config.read_json(Path(ds_file)),
        Path(ds_file),
        Batch(8, 4, 1),
        flags,
        Shape.of(base.config),
        world.device,
    )
    dtype = deepspeed_config.compute_dtype(ds_config)
    model = build_partitioned(lambda: ChatGLMForConditionalGeneration(base.config), ds_config)
    load_slices(model, base.weights, world)
    optimizer = build_optimizer(model, ds_config, 1e-3, (0.9, 0.999), 1e-8, 0.0)
    engine = start_engine(model, optimizer, ds_config, leaves=[ChatGLMBlock])
    step = TrainStep(engine, world, lambda _: 1e-3, int(max_in_a_row))
    poisoned = {"now": False}

    def poison(module, arguments, output):
        return output * float("inf") if poisoned["now"] else output

    engine.module.transformer.final_layernorm.register_forward_hook(poison)
    report = {
        "rank": world.rank,
        "dtype": str(dtype),
        "applied": [],
        "digests": [digest(engine.module, world)],
    }
    plan = StepPlan(len(data), data.fingerprint, 8, 0, 5)
    share = partial(split, world_size=world.size, num_micro_batches=1)
    with StepBatches(data, plan, share, world.rank, base.pad_token_id) as batches:
        for info, micro_batches in batches:
            poisoned["now"] = world.rank == 1 and info.step in (1, 3)
            try:
                report["applied"].append(step(info.step, micro_batches, info.num_targets).applied)
            except DivergedError as error:
                report["diverged"] = str(error)
                break
            report["digests"].append(digest(engine.module, world))
    report["num_skipped"] = step.num_skipped
    # One write a rank, so that lines of two ranks do not mix.
    os.write(1, (json.dumps(report) + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # as ranks do: tidying up, the process group's threads may turn the exit code into an abort
