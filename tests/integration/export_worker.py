"""One rank: export_worker.py MODEL CHECKPOINT OUTPUT SHARD_BYTES. Exports its partitioned copy of a model."""

import os
import sys
from pathlib import Path

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.chatglm.base import open_base_model
from medsft.checkpoint.export import export_model
from medsft.checkpoint.reader import open_checkpoint
from medsft.checkpoint.release import provenance_of
from medsft.engine.distributed import complete_environment, start
from medsft.engine.zero import build_partitioned, load_slices

DS_CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3},
    "bf16": {"enabled": True},
    "fp16": {"enabled": False},
}


def main(model_dir, checkpoint, output, max_shard_bytes):
    """The weights are those of `model_dir`, what is told of them the checkpoint's."""
    complete_environment(os.environ)
    world = start(timeout_min=2)
    base = open_base_model(Path(model_dir))
    model = build_partitioned(lambda: ChatGLMForConditionalGeneration(base.config), DS_CONFIG)
    load_slices(model, base.weights, world)
    provenance = provenance_of(open_checkpoint(Path(checkpoint)).manifest)
    size = int(max_shard_bytes)
    for _ in range(2):  # the second time in place of the first: a run may have died behind it
        export_model(model, base.config, base.tokenizer, provenance, Path(output), size, world)


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # as ranks do: tidying up, the process group's threads may turn the exit code into an abort
