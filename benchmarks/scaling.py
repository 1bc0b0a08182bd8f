"""ZeRO-3 over ranks of this machine's CPU, beside a plain loop of one process, and the bytes it moves.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --preset small --ranks 1 2 4

A step is 16 examples in every line, so more ranks divide the same work; on as many cores they cannot be
faster, and what the table shows is overhead. Weights are given back after each use, as it is with models that
do not fit a rank; DeepSpeed would keep so small ones. Bytes are what a rank receives in the collectives of
one step, counted where torch hands them to its backend, beside `medsft.planner.traffic`'s formula.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkpoint import make_tokenizer
from machine import RESULTS, write_result

from medsft.chatglm.init import PRESETS, count_parameters, write_random_model
from medsft.engine.deepspeed_config import read_json
from medsft.files import write_json
from medsft.planner.traffic import zero3_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
RANK_SCRIPT = Path(__file__).with_name("scaling_rank.py")
DS_CONFIG = REPOSITORY / "ds_configs" / "zero3_cpu.json"
# Nothing stays gathered between forward and backward pass.
GIVEN_BACK = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_param_persistence_threshold": 0,
}
BYTES_A_WEIGHT = 4
EXAMPLES = 16


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="60m")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3, help="of all lines, taking turns")
    parser.add_argument("--num_steps", type=int, default=5)
    parser.add_argument("--num_warmup_steps", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    return parser.parse_args()


def measured(num_ranks: int, plain: bool, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the ranks found out, all of them sharing this machine's cores."""
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    command = [sys.executable, "-m", "launcher", "run", "--num-gpus", str(num_ranks), str(RANK_SCRIPT)]
    flags = [
        "--model",
        str(model),
        "--folder",
        str(model.parent / "run"),
        "--deepspeed",
        str(model.parent / "zero3.json"),
    ]
    flags += ["--examples", str(EXAMPLES), *(["--plain"] if plain else [])]
    flags += ["--num_steps", str(options.num_steps), "--num_warmup_steps", str(options.num_warmup_steps)]
    done = subprocess.run(
        [*command, *flags],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(next(line for line in done.stdout.splitlines()[::-1] if line.startswith("{")))


def main() -> None:
    """Measures all lines in turns, and writes medians."""
    options = parse_options()
    ways = [("plain loop", 1, True), *(("ZeRO-3", ranks, False) for ranks in options.ranks)]
    with tempfile.TemporaryDirectory(prefix="medsft-scaling-") as scratch:
        place = Path(scratch)
        config = write_random_model(
            place / "model", make_tokenizer(place), options.preset, seed=0, dtype="float32"
        )
        ds_config = read_json(DS_CONFIG)
        zero = {**ds_config["zero_optimization"], **GIVEN_BACK}
        write_json(place / "zero3.json", {**ds_config, "zero_optimization": zero})
        rounds = [
            [measured(ranks, plain, place / "model", options) for _, ranks, plain in ways]
            for _ in range(options.rounds)
        ]
    num_parameters = count_parameters(config)
    table = []
    for number, (name, ranks, _) in enumerate(ways):
        seconds = [statistics.median(one[number]["seconds"]) for one in rounds]
        ratios = [
            mine / statistics.median(one[0]["seconds"]) for mine, one in zip(seconds, rounds, strict=True)
        ]
        received = rounds[0][number]["received"]
        formula = zero3_bytes(num_parameters, BYTES_A_WEIGHT, ranks) if name == "ZeRO-3" else 0.0
        table.append(
            {
                "way": name,
                "ranks": ranks,
                "s a step (median)": round(statistics.median(seconds), 3),
                "min": round(min(seconds), 3),
                "max": round(max(seconds), 3),
                "times the plain loop": round(statistics.median(ratios), 2),
                "all-gathered MB": round(received.get("all-gather", 0) / 1e6, 1),
                "reduce-scattered MB": round(received.get("reduce-scatter", 0) / 1e6, 1),
                "all-reduced MB": round(received.get("all-reduce", 0) / 1e6, 1),
                "in all MB": round(sum(received.values()) / 1e6, 1),
                "by the formula MB": round(formula / 1e6, 1),
            }
        )
    settings = {
        "parameters": f"{num_parameters:,}",
        "examples a step": EXAMPLES,
        "compute": "fp32",
        "rounds": options.rounds,
        "steps a round": options.num_steps - options.num_warmup_steps,
    }
    path = write_result("scaling", settings, table, options.results)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
