"""Memory and bytes of loading base weights into ZeRO-3 partitions, and of writing a model, on 1 and 2 ranks.

    python benchmarks/load_weights.py            # makes a random checkpoint of 2.1 GB in a temporary folder

For each rank: private memory (anonymous pages, which no other process shares) at its peak, above what the
process held before, against the rank's share of the weights in the type it computes in; bytes read; seconds;
and private memory above that while the finished model is written in shards of 500 MB.
Pages of the mapped files are shared between ranks and given back under pressure; they are in the peak of the
resident memory only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from peak import Peak, private_bytes
from ranks import on_ranks

SHAPE = {"hidden_size": 2048, "num_layers": 20, "num_attention_heads": 16, "inner_hidden_size": 8192}
VOCABULARY_FILE_ROWS = 20_480
SHARD_BYTES = 500_000_000


def work(folder: Path) -> None:
    """One rank: loads the model as a training does and prints its figures as a JSON line."""
    from medsft.chatglm import ChatGLMForConditionalGeneration
    from medsft.chatglm.base import open_base_model
    from medsft.checkpoint.export import export_model
    from medsft.config import parse
    from medsft.engine import deepspeed_config
    from medsft.engine.distributed import complete_environment, start
    from medsft.engine.zero import build_partitioned, load_slices
    from medsft.planner.shape import Shape
    from medsft.provenance import Provenance, software_versions

    complete_environment(os.environ)
    world = start(timeout_min=10)
    path = deepspeed_config.default_path(world.device).with_name("zero3.json")
    flags = parse(["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o"]).flags()
    batch = deepspeed_config.resolve_batch(world.size, 1, None, None)
    base = open_base_model(folder)
    ds_config = deepspeed_config.settle(
        deepspeed_config.read_json(path), path, batch, flags, Shape.of(base.config), world.device
    )
    before = private_bytes()
    begin_s = time.perf_counter()
    with Peak() as peak:
        model = build_partitioned(lambda: ChatGLMForConditionalGeneration(base.config), ds_config)
        built_s = time.perf_counter()
        load_slices(model, base.weights, world)
    end_s = time.perf_counter()
    peak_resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = private_bytes()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, Peak() as write_peak:
        provenance = Provenance(str(folder), "none", "none", flags, software_versions())
        export_model(
            model, base.config, base.tokenizer, provenance, Path(scratch) / "model", SHARD_BYTES, world
        )
    written_s = time.perf_counter()
    share = sum(param.ds_tensor.numel() * param.ds_tensor.element_size() for param in model.parameters())
    figures = {
        "ranks": world.size,
        "rank": world.rank,
        "share_gb": round(share / 1e9, 3),
        "peak_private_gb": round((peak.bytes - before) / 1e9, 3),
        "above_share_gib": round((peak.bytes - before - share) / 2**30, 3),
        "peak_resident_gb": round(peak_resident / 1e9, 3),
        "read_gb": round(base.weights.bytes_read / 1e9, 3),
        "build_s": round(built_s - begin_s, 2),
        "load_s": round(end_s - built_s, 2),
        "write_above_gib": round((write_peak.bytes - held) / 2**30, 3),
        "write_s": round(written_s - end_s, 2),
    }
    os.write(1, (json.dumps(figures) + "\n").encode())


def make_checkpoint(folder: Path) -> None:
    """A random ChatGLM of a billion parameters, fp16 .bin shards as released."""
    from checkpoint import make_tokenizer

    from medsft.chatglm.init import write_random_model

    shape = {**SHAPE, "vocab_size": VOCABULARY_FILE_ROWS}
    write_random_model(folder / "model", make_tokenizer(folder), overrides=shape, seed=0)


def main() -> None:
    """Measures 1 and 2 ranks and writes the result."""
    from machine import write_result

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="model folder; default: a random one of 2.1 GB")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.model)
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if model is None:
            make_checkpoint(Path(scratch))
            model = Path(scratch) / "model"
        size_gb = (
            sum(path.stat().st_size for path in model.glob("*") if path.suffix in (".bin", ".safetensors"))
            / 1e9
        )
        for ranks in (1, 2):
            found = on_ranks(Path(__file__), ranks, "--worker", "--model", model)
            rows += sorted(found, key=lambda row: row["rank"])
    path = write_result("load_weights", {"checkpoint_gb": round(size_gb, 2), "compute": "bf16"}, rows)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
