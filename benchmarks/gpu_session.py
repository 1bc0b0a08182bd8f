"""Everything that is to be measured on a GPU, one after the other, in one command.

    python benchmarks/gpu_session.py                  # an hour on one H200, by estimate
    python benchmarks/gpu_session.py --short          # without the whole recipe
    python benchmarks/gpu_session.py --preset toy     # a rehearsal anywhere, its figures mean nothing

Each line of the session is a benchmark of its own, writes its own table, and may fail without ending the
others; `gpu_session.md` says what ran, how long, and with which exit code. A configuration that does not fit
ends with 2, which is an answer too.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from machine import RESULTS, write_result

from medsft.planner.advice import read_configs
from medsft.shapes import PRESETS

REPOSITORY = Path(__file__).resolve().parents[1]
CAP_GIB = 32
SHORT_STEPS, MEMORY_STEPS = 50, 10


def session(preset: str, has_gpu: bool, short: bool) -> Mapping[str, list[str]]:
    """Name of each table -> the words of its command, without the interpreter, the quickest first."""
    recipe = ["benchmarks/gpu_full_recipe.py", "--preset", preset]
    if preset != "6b":
        recipe += ["--vocab_size", "2048"]
    lines = {
        "gpu_train_step": ["benchmarks/train_step.py", "--preset", preset, "--one_at_a_time"],
        "gpu_generate": ["benchmarks/generate.py"],
        "gpu_quantize": ["benchmarks/quantize.py"],
        "gpu_recipe_short": [*recipe, "--steps", str(SHORT_STEPS)],
        "gpu_recipe_compiled": [*recipe, "--steps", str(SHORT_STEPS), "--torch_compile", "true"],
    }
    for name in read_configs():
        stem = name.removesuffix(".json")
        lines[f"gpu_memory_{stem}"] = [*recipe, "--steps", str(MEMORY_STEPS), "--deepspeed", name]
    if has_gpu:
        lines["gpu_recipe_32gib"] = [*recipe, "--steps", str(MEMORY_STEPS), "--cap_gib", str(CAP_GIB)]
    if not short:
        lines["gpu_full_recipe"] = recipe
    return {name: [*words, "--name", name] for name, words in lines.items()}


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="6b")
    parser.add_argument("--short", action="store_true", help="leave the whole recipe out")
    parser.add_argument("--only", nargs="+", metavar="TABLE", help="of these tables alone; default: all")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables go")
    return parser.parse_args(arguments)


def main() -> int:
    """Runs the lines; 1 if one failed otherwise than by not fitting."""
    options = parse_options()
    lines = session(options.preset, torch.cuda.is_available(), options.short)
    strangers = set(options.only or ()) - set(lines)
    if strangers:
        print(f"gpu_session: --only {', '.join(sorted(strangers))}: choose of {', '.join(lines)}")
        return 2
    table = []
    for name, words in lines.items():
        if options.only and name not in options.only:
            continue
        print(f"{name}: python {shlex.join(words)}", flush=True)
        if options.list:
            continue
        begin_s = time.perf_counter()
        code = subprocess.run(
            [sys.executable, *words, "--results", str(options.results)], cwd=REPOSITORY, check=False
        ).returncode
        took_s = round(time.perf_counter() - begin_s, 1)
        table.append({"table": name, "command": f"`{shlex.join(words)}`", "exit code": code, "s": took_s})
        # After each line: a session that is cut off has told of what it did.
        write_result("gpu_session", {"preset": options.preset}, table, options.results)
    return 1 if any(row["exit code"] not in (0, 2) for row in table) else 0


if __name__ == "__main__":
    sys.exit(main())
