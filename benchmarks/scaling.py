"""ZeRO-3 over ranks of this machine's CPU, beside a plain loop of one process: time, its parts, bytes moved.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --preset small --ranks 1 2 4

A step is 16 examples in every line, so more ranks divide the same work; on as many cores they cannot be
faster, and what the table shows is overhead. Weights are given back after each use, as it is with models that
do not fit a rank; DeepSpeed would keep so small ones. Bytes are what a rank receives in the collectives of
one step, counted where torch hands them to its backend, beside `medsft.planner.traffic`'s formula. The parts
of a step are those of rank 0, taken in steps between the others (`blocked.py`): communication is the time in
which it stands still in collectives, waiting for the other ranks included; the other parts are without it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoint import make_tokenizer
from machine import RESULTS, at_least, write_result
from ranks import on_ranks

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
PARTS = ("data", "forward", "backward", "optimiser", "communication")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="60m")
    parser.add_argument("--ranks", type=ranks_that_divide, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=at_least(1), default=3, help="of all lines, taking turns")
    parser.add_argument("--num_steps", type=at_least(1), default=4, help="measured in a round, of each kind")
    parser.add_argument("--num_warmup_steps", type=at_least(0), default=2)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    return parser.parse_args()


def ranks_that_divide(text: str) -> int:
    """A number of ranks among which the examples of a step can be dealt out evenly, for argparse."""
    ranks = at_least(1)(text)
    if EXAMPLES % ranks:
        raise argparse.ArgumentTypeError(f"{ranks} must divide the {EXAMPLES} examples of a step")
    return ranks


def measured(
    num_ranks: int, plain: bool, place: Path, num_steps: int, num_warmup_steps: int
) -> dict[str, Any]:
    """What the ranks found out, all of them sharing this machine's cores."""
    flags = {
        "model": place / "model",
        "folder": place / "run",
        "deepspeed": place / "zero3.json",
        "examples": EXAMPLES,
        "num_steps": num_steps,
        "num_warmup_steps": num_warmup_steps,
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    found = on_ranks(
        RANK_SCRIPT,
        num_ranks,
        *words,
        *(["--plain"] if plain else []),
        OMP_NUM_THREADS=str(threads),
        DS_ACCELERATOR="cpu",
    )
    return found[-1]


def row(
    name: str,
    ranks: int,
    found: Sequence[dict[str, Any]],
    plain: Sequence[dict[str, Any]],
    num_parameters: int,
) -> dict[str, Any]:
    """A line of the table: medians over the rounds of `found`, beside the same rounds of the plain loop."""
    seconds = [statistics.median(one["seconds"]) for one in found]
    ratios = [mine / statistics.median(one["seconds"]) for mine, one in zip(seconds, plain, strict=True)]
    parts = [step for one in found for step in one.get("parts", ())]
    received = found[0].get("received", {})
    return {
        "way": name,
        "ranks": ranks,
        "s a step (median)": round(statistics.median(seconds), 3),
        "min": round(min(seconds), 3),
        "max": round(max(seconds), 3),
        "times the plain loop": round(statistics.median(ratios), 2),
        **{
            f"{part} s": round(statistics.median(step[part] for step in parts), 3) if parts else None
            for part in PARTS
        },
        **{
            f"{kind} MB": round(received.get(operation, 0) / 1e6, 1)
            for kind, operation in (
                ("all-gathered", "all-gather"),
                ("reduce-scattered", "reduce-scatter"),
                ("all-reduced", "all-reduce"),
            )
        },
        "in all MB": round(sum(received.values()) / 1e6, 1),
        "by the formula MB": round(zero3_bytes(num_parameters, BYTES_A_WEIGHT, ranks) / 1e6, 1),
    }


def measure(
    name: str,
    sizes: Mapping[str, int],
    ranks: Sequence[int],
    rounds: int,
    num_steps: int,
    num_warmup_steps: int,
    results: Path,
) -> Path:
    """Measures all lines in turns on a random model of these sizes, and writes the table; its JSON's path."""
    ways = [("plain loop", 1, True), *(("ZeRO-3", count, False) for count in ranks)]
    with tempfile.TemporaryDirectory(prefix="medsft-scaling-") as scratch:
        place = Path(scratch)
        config = write_random_model(
            place / "model", make_tokenizer(place), overrides=sizes, seed=0, dtype="float32"
        )
        ds_config = read_json(DS_CONFIG)
        zero = {**ds_config["zero_optimization"], **GIVEN_BACK}
        write_json(place / "zero3.json", {**ds_config, "zero_optimization": zero})
        found = [
            [measured(count, plain, place, num_steps, num_warmup_steps) for _, count, plain in ways]
            for _ in range(rounds)
        ]
    num_parameters = count_parameters(config)
    table = [
        row(way, count, [one[number] for one in found], [one[0] for one in found], num_parameters)
        for number, (way, count, _) in enumerate(ways)
    ]
    settings = {
        "parameters": f"{num_parameters:,}",
        "examples a step": EXAMPLES,
        "lengths": "published quantiles",
        "compute": "fp32",
        "cores, shared by the ranks": len(os.sched_getaffinity(0)),
        "rounds": rounds,
        "steps a round": num_steps,
    }
    return write_result(name, settings, table, results)


def main() -> None:
    """Measures, and shows the table."""
    options = parse_options()
    path = measure(
        "scaling",
        PRESETS[options.preset],
        options.ranks,
        options.rounds,
        options.num_steps,
        options.num_warmup_steps,
        options.results,
    )
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
