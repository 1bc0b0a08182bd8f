"""Med-ChatGLM's whole recipe on one machine: the real trainer on random weights of ChatGLM-6B's shape.

    python benchmarks/gpu_full_recipe.py                          # 3 epochs, 16 sequences a step
    python benchmarks/gpu_full_recipe.py --steps 50               # a short form
    python benchmarks/gpu_full_recipe.py --steps 10 --cap_gib 32  # what a 32 GB GPU could do, on a larger one
    python benchmarks/gpu_full_recipe.py --train_file pairs.jsonl --tokenizer MODEL_FOLDER
    python benchmarks/gpu_full_recipe.py --preset toy --vocab_size 2048 --steps 3

The planner chooses the configuration of ds_configs, the micro-batch and gradient checkpointing, for the
memory of the GPU or for `--cap_gib` of it, which torch then holds to; `--deepspeed` leaves it one
configuration. Without `--train_file` the examples have the published lengths and the sample graph's words.
Flags that are not its own go to the trainer (`--torch_compile true`). "training s" is the steps' own time,
compilation included, without saves, start and the writing of the model; "whole s" has everything. Medians
leave the first report out, which has the warm-up.
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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from checkpoint import make_tokenizer
from machine import RESULTS, above_zero, at_least, write_result

from medsft.chatglm.base import open_tokenizer
from medsft.chatglm.init import write_random_model
from medsft.errors import UserError
from medsft.planner.advice import Candidate, Job, best, command, read_configs
from medsft.planner.lengths import MED_CHATGLM_EXAMPLES, Lengths
from medsft.planner.memory import Saves
from medsft.planner.plan import Batch
from medsft.planner.shape import Shape
from medsft.shapes import PRESETS, RELEASED_ROWS
from medsft.training.fitting import this_cluster

REPOSITORY = Path(__file__).resolve().parents[1]
RANK_SCRIPT = Path(__file__).with_name("gpu_full_recipe_rank.py")
BATCH = 16
RECIPE = {"learning_rate": 2e-5, "warmup_ratio": 0.1, "prompt_template": "none", "seed": 2023}
# Of an example, besides its text: [gMASK] before the answer, <sop> and <eop> around it.
CONTEXT_TOKENS, ANSWER_TOKENS = 1, 2


def parse_options(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it is the trainer's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="6b")
    parser.add_argument("--vocab_size", type=at_least(1), default=RELEASED_ROWS)
    parser.add_argument("--steps", type=at_least(1), help="of the short form; default: all of 3 epochs")
    parser.add_argument("--cap_gib", type=above_zero, help="use so much of the GPU's memory")
    parser.add_argument("--deepspeed", choices=read_configs(), help="default: the fastest that fits")
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--checkpoints", action="store_true", help="save one at each epoch's end")
    parser.add_argument("--folder", type=Path, help="where model and run go meanwhile; default: /tmp")
    parser.add_argument("--name", default="gpu_full_recipe", help="of the table")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    options, more = parser.parse_known_args(arguments)
    if options.train_file and not options.tokenizer:
        parser.error("--train_file needs the --tokenizer that its lengths are counted with")
    if options.cap_gib is not None and not torch.cuda.is_available():
        parser.error("--cap_gib caps the memory of a GPU, and there is none")
    return options, more


def write_pairs(path: Path, tokenizer_dir: Path, sample: Path, lengths: Lengths) -> None:
    """Pairs of these lengths in tokens, but for one or two, cut out of the texts of `sample`."""
    tokenizer = open_tokenizer(tokenizer_dir)
    records = [json.loads(line) for line in sample.read_text(encoding="utf-8").splitlines()]
    words = tokenizer.encode("".join(r["context"] + r["target"] for r in records), add_special_tokens=False)
    at = 0

    def text(num_tokens: int) -> str:
        nonlocal at
        at = (at + num_tokens) % (len(words) - max(lengths.tokens))
        return tokenizer.decode(words[at : at + max(1, num_tokens)]).strip() or "药"

    with path.open("w", encoding="utf-8") as file:
        for tokens, targets in zip(lengths.tokens, lengths.targets, strict=True):
            pair = {
                "context": text(tokens - targets - CONTEXT_TOKENS),
                "target": text(targets - ANSWER_TOKENS),
            }
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")


def choose(options: argparse.Namespace, shape: Shape, lengths: Lengths) -> Candidate:
    """The fastest configuration that fits this machine, or the one named. Raises `UserError` if none does."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cluster = this_cluster(device, ranks_a_host=1, num_hosts=1)
    if options.cap_gib is not None:
        cap = min(options.cap_gib * 2**30, cluster.gpu_memory_bytes)
        cluster = replace(cluster, gpu_memory_bytes=cap)
    batch = Batch(BATCH, 1, 1, max_steps=options.steps or -1)
    configs = read_configs()
    if options.deepspeed:
        configs = {options.deepspeed: configs[options.deepspeed]}
    try:
        found = best(Job(shape, lengths, batch, Saves(options.checkpoints)), cluster, configs)
    except IndexError as error:
        raise UserError(f"--deepspeed {options.deepspeed} does not suit this device.") from error
    made = found.plan
    if not made.fits:
        raise UserError(
            f"nothing fits; {found.label} lacks {made.gpu_short / 1e9:.1f} GB on the GPU and "
            f"{made.host_short / 1e9:.1f} GB on the host."
        )
    return found


def run(words: Sequence[str], cap_gib: float | None) -> float:
    """Seconds of a whole training, whose console goes through. Raises `CalledProcessError`."""
    environment = {"DS_ACCELERATOR": "cpu"} if not torch.cuda.is_available() else {}
    if cap_gib is not None:
        environment["CAP_GIB"] = str(cap_gib)
    begin_s = time.perf_counter()
    subprocess.run(words, cwd=REPOSITORY, env=os.environ | environment, check=True)
    return time.perf_counter() - begin_s


def figures(found: Candidate, metrics: Sequence[dict[str, Any]], whole_s: float) -> dict[str, Any]:
    """The row of the table: what was measured, and what the plan had said."""
    made, later = found.plan, metrics[1:] or metrics

    def median(name: str, digits: int = 3, scale: float = 1.0) -> float | None:
        values = [line[name] for line in later if line[name] is not None]
        return round(statistics.median(values) * scale, digits) if values else None

    def most(name: str) -> float | None:
        values = [line[name] for line in metrics if line[name] is not None]
        return round(max(values), 2) if values else None

    reported = [0, *(line["step"] for line in metrics)]
    training_s = sum(
        line["step_time_s"] * (line["step"] - before) for line, before in zip(metrics, reported, strict=False)
    )
    planned_s = made.times and made.times.step_s
    return {
        "configuration": found.label,
        "steps": metrics[-1]["step"],
        "training s": round(training_s, 1),
        "whole s": round(whole_s, 1),
        "step s": median("step_time_s"),
        "planned step s": planned_s and round(planned_s, 3),
        "MFU %": median("mfu", 1, 100),
        "useful tokens/s": median("tokens_per_s", 0),
        "packing %": median("packing_efficiency", 1, 100),
        "forward s": median("forward_s"),
        "backward s": median("backward_s"),
        "optimiser s": median("optimizer_s"),
        "data wait s": median("data_wait_s", 4),
        "GPU GB, peak": most("gpu_peak_gb"),
        "planned GPU GB": round(made.gpu_bytes / 1e9, 2) if made.cluster.gpu else None,
        "host GB": most("host_memory_gb"),
        "planned host GB": round(made.host_bytes / 1e9, 2),
        "last loss": round(metrics[-1]["loss"], 4),
    }


def main() -> int:
    """Writes model and data, trains, and tells what it took."""
    options, more = parse_options()
    with tempfile.TemporaryDirectory(prefix="medsft-recipe-", dir=options.folder) as scratch:
        place = Path(scratch)
        own_tokenizer = make_tokenizer(place)  # writes the sample's pairs as well
        tokenizer = options.tokenizer or own_tokenizer
        config = write_random_model(
            place / "model", tokenizer, options.preset, {"vocab_size": options.vocab_size}, seed=0
        )
        lengths = Lengths.from_quantiles()
        data = options.train_file
        if data is None:
            data = place / "recipe.jsonl"
            write_pairs(data, tokenizer, place / "pairs.jsonl", lengths)
        try:
            found = choose(options, Shape.of(config), lengths)
        except UserError as error:
            print(f"gpu_full_recipe: {error}", file=sys.stderr)
            return 2
        words = command(found, str(place / "model"), [str(data)], str(place / "run"))
        words[0], words[words.index("medsft/train.py")] = sys.executable, str(RANK_SCRIPT)
        words += [str(word) for name, value in RECIPE.items() for word in (f"--{name}", value)]
        words += ["--logging_steps", "10" if options.steps is None else "1", *more]
        whole_s = run(words, options.cap_gib)
        lines = (place / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        described = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))
    metrics = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    settings = {
        "parameters": f"{Shape.of(config).num_parameters:,}",
        "examples a step": BATCH,
        "examples": f"{described['num_examples']:,}",
        "lengths": "file" if options.train_file else f"published, {MED_CHATGLM_EXAMPLES:,} examples",
        "cap GiB": options.cap_gib,
        "further flags": " ".join(more) or "none",
    }
    path = write_result(options.name, settings, [figures(found, metrics, whole_s)], options.results)
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
