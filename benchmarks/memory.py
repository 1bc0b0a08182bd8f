"""Host memory of a training at its peak, for each DeepSpeed configuration, beside what `medsft plan` says.

    python benchmarks/memory.py
    python benchmarks/memory.py --preset 350m --configs zero3_cpu.json --ranks 1 2 4

Runs the real trainer for three steps with a checkpoint and a model at the end, on CPU ranks, and reads the
private memory of all its ranks (RssAnon in /proc) every 20 ms.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from checkpoint import make_tokenizer
from machine import RESULTS, at_least, write_result
from peak import private_bytes

from medsft.chatglm.base import open_tokenizer
from medsft.chatglm.init import PRESETS, count_parameters, write_random_model
from medsft.data.cache import load_or_build
from medsft.planner.advice import read_configs
from medsft.planner.cluster import Cluster
from medsft.planner.hardware import LINKS
from medsft.planner.lengths import Lengths
from medsft.planner.memory import Stage
from medsft.planner.plan import ONCE_A_NODE, Batch, Plan, plan
from medsft.planner.shape import Shape

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGS = ("zero3.json", "zero3_cpu.json", "zero3_offload_optimizer.json", "zero3_offload_all.json")
RELEASED_ROWS = 130_528
# Of one example, as the trainer's flags have it unless told otherwise.
LONGEST_TOKENS = 512
SAMPLE_S = 0.02
RUN = {
    "global_batch_size": 16,
    "per_device_train_batch_size": 8,
    "max_steps": 3,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 1,
}


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="60m")
    parser.add_argument("--configs", nargs="+", choices=read_configs(), default=CONFIGS)
    parser.add_argument("--ranks", type=at_least(1), nargs="+", default=[1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    return parser.parse_args()


def ranks_of(launcher: psutil.Process) -> list[psutil.Process]:
    """The processes below the launcher that have a rank."""
    found = []
    for process in launcher.children(recursive=True):
        try:
            if "RANK" in process.environ() and "medsft/train.py" in process.cmdline():
                found.append(process)
        except psutil.Error:  # ended meanwhile, or is just being born
            continue
    return found


def run_peak(model: Path, data: Path, config: str, num_ranks: int) -> int:
    """Runs a training; bytes of all its ranks together, at their highest."""
    output = model.parent / f"run-{config}-{num_ranks}"
    flags = RUN | {
        "model_name_or_path": model,
        "train_file": data,
        "output_dir": output,
        "deepspeed": f"ds_configs/{config}",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "launcher", "run", "--num-gpus", str(num_ranks), "medsft/train.py"]
    highest = 0
    with subprocess.Popen(
        [*command, *words],
        cwd=REPOSITORY,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    ) as process:
        launcher = psutil.Process(process.pid)
        ranks: list[psutil.Process] = []
        while process.poll() is None:
            if len(ranks) < num_ranks:
                ranks = ranks_of(launcher)
            total = 0
            for rank in ranks:
                try:
                    total += private_bytes(rank.pid)
                except (OSError, RuntimeError):  # this rank has ended
                    continue
            highest = max(highest, total)
            time.sleep(SAMPLE_S)
    if process.returncode != 0:
        raise RuntimeError(f"{config} on {num_ranks} ranks ended with {process.returncode}")
    return highest


def lengths_of(data: Path, tokenizer: Path, place: Path) -> Lengths:
    """Real lengths of the examples."""
    half = LONGEST_TOKENS // 2
    encoded = load_or_build(
        [data],
        open_tokenizer(tokenizer),
        place / "cache",
        max_source_length=half,
        max_target_length=half,
    )
    return Lengths(tuple(map(int, encoded.lengths)), tuple(map(int, encoded.num_targets)))


def planned(shape: Shape, lengths: Lengths, config: str, num_ranks: int) -> Plan:
    """What the planner says of the same run."""
    examples, per_device = RUN["global_batch_size"], RUN["per_device_train_batch_size"]
    cluster = Cluster(
        gpu=None,
        gpus_per_node=num_ranks,
        nodes=1,
        gpu_memory_bytes=0.0,
        host_memory_bytes=None,
        link=LINKS["pcie4"],
    )
    batch = Batch(
        examples,
        per_device,
        math.ceil(examples / (per_device * num_ranks)),
        max_tokens=per_device * LONGEST_TOKENS,
        max_steps=RUN["max_steps"],
    )
    return plan(shape, lengths, cluster, read_configs()[config], batch)


def components(stage: Stage, num_ranks: int) -> str:
    """What the plan's bytes at a stage are made of, all ranks together, the most first."""
    parts = sorted(stage.host.items(), key=lambda item: -item[1])
    shares = {name: (1 if name == ONCE_A_NODE else num_ranks) * size / 1e9 for name, size in parts}
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items() if share >= 0.005)


def main() -> None:
    """Runs all configurations on all numbers of ranks."""
    options = parse_options()
    table = []
    with tempfile.TemporaryDirectory(prefix="medsft-memory-") as scratch:
        place = Path(scratch)
        config = write_random_model(
            place / "model", make_tokenizer(place), options.preset, {"vocab_size": RELEASED_ROWS}, seed=0
        )
        lengths = lengths_of(place / "pairs.jsonl", place / "model", place)
        for name in options.configs:
            for num_ranks in options.ranks:
                made = planned(Shape.of(config), lengths, name, num_ranks)
                stage = max(made.stages, key=made.node_bytes)
                peak = run_peak(place / "model", place / "pairs.jsonl", name, num_ranks)
                table.append(
                    {
                        "configuration": name,
                        "ranks": num_ranks,
                        "planned GB": round(made.host_bytes / 1e9, 2),
                        "planned at": stage.name,
                        "of it, GB": components(stage, num_ranks),
                        "measured GB": round(peak / 1e9, 2),
                        "planned over measured": f"{made.host_bytes / peak - 1:+.1%}",
                    }
                )
    settings = {"parameters": f"{count_parameters(config):,}", "examples a step": RUN["global_batch_size"]}
    path = write_result("memory", settings, table, options.results)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
