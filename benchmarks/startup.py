"""Seconds from the command to the end of the first training step, by part, on this machine.

    python benchmarks/startup.py
    python benchmarks/startup.py --preset 1b --ranks 8

Nothing is in the token cache at the first start of each way; the file system's cache is as it is. "in
between" is what no part accounts for: settings, the plan, the run's folder, the wait for other ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoint import make_tokenizer
from machine import RESULTS, at_least, write_result

from medsft.chatglm.init import PRESETS, count_parameters, write_random_model

REPOSITORY = Path(__file__).resolve().parents[1]
RANK_SCRIPT = Path(__file__).with_name("startup_rank.py")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="60m")
    parser.add_argument("--ranks", type=at_least(1), nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    return parser.parse_args()


def start(num_ranks: int, place: Path, number: int) -> dict[str, float]:
    """Seconds of each part of one start, in order, and of all of it."""
    marks = place / f"marks-{num_ranks}-{number}.json"
    flags = {
        "model_name_or_path": place / "model",
        "train_file": place / "pairs.jsonl",
        "output_dir": place / f"run-{num_ranks}-{number}",
        "global_batch_size": 16,
        "max_steps": 1,
        "save_strategy": "no",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "launcher", "run", "--num-gpus", str(num_ranks), str(RANK_SCRIPT)]
    begin_s = time.time()
    subprocess.run(
        [*command, *words],
        cwd=REPOSITORY,
        env=os.environ | {"MARKS": str(marks), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    found = json.loads(marks.read_text(encoding="utf-8"))
    parts = {"launcher, with its check": found["began"] - begin_s, **found["seconds"]}
    whole = found["ended"] - begin_s
    return {**parts, "in between": whole - sum(parts.values()), "in all": whole}


def main() -> None:
    """Measures all numbers of ranks in turns and writes medians."""
    options = parse_options()
    with tempfile.TemporaryDirectory(prefix="medsft-startup-") as scratch:
        place = Path(scratch)
        config = write_random_model(place / "model", make_tokenizer(place), options.preset, seed=0)
        found = {ranks: [] for ranks in options.ranks}
        for number in range(options.rounds):
            for ranks, rounds in found.items():
                rounds.append(start(ranks, place, number))
    table = []
    for ranks, rounds in found.items():
        for part in rounds[0]:
            seconds = [one[part] for one in rounds]
            table.append(
                {
                    "ranks": ranks,
                    "part": part,
                    "s (median)": round(statistics.median(seconds), 2),
                    "min": round(min(seconds), 2),
                    "max": round(max(seconds), 2),
                }
            )
    settings = {"parameters": f"{count_parameters(config):,}", "rounds": options.rounds}
    path = write_result("startup", settings, table, options.results)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
