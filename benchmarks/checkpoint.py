"""Checkpoints: what training waits, what writing and resuming take, beside DeepSpeed's own in the same run.

    python benchmarks/checkpoint.py                                 # 0.1, 0.3 and 0.5 billion parameters
    python benchmarks/checkpoint.py --params 1e9 --ranks 8 --folder /the/disk/to/measure

Writes three tables into benchmarks/results:
  checkpoint         saves: stall, background write, the same without SHA-256, a plain file copy flushed to
                     the same disk, DeepSpeed's save_checkpoint;
  checkpoint_starts  seconds and peak memory of a start up to its first optimiser step: fresh, resumed on the
                     same and on another number of ranks, from DeepSpeed's checkpoint;
  checkpoint_steps   seconds of a training step beside a save in flight, and without.
Every ratio is the median of ratios within one round. A start finds neither weights nor checkpoint in the page
cache. The host needs about 34 bytes of memory a parameter (on GPUs 12) and 40 bytes of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import machine
import psutil
import torch
from ranks import on_ranks

from medsft.chatglm.init import count_parameters, write_random_model
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.engine.deepspeed_config import default_path, read_json
from medsft.files import sync, write_json
from medsft.knowledge.build import build_pairs

REPOSITORY = Path(__file__).resolve().parents[1]
RANK_SCRIPT = Path(__file__).with_name("checkpoint_rank.py")
VOCABULARY_ROWS = 20_480
HEAD_WIDTH = 64
HIDDEN_PER_LAYER = 64  # hidden size / number of layers: about that of models of this size


def shape_for(num_params: float) -> dict[str, int]:
    """A ChatGLM of about so many parameters: 12 hidden² a layer, and the embedding."""
    hidden = HEAD_WIDTH
    while 12 * hidden**3 / HIDDEN_PER_LAYER + VOCABULARY_ROWS * hidden < num_params:
        hidden += HEAD_WIDTH
    num_layers = round((num_params - VOCABULARY_ROWS * hidden) / (12 * hidden**2))
    return {
        "hidden_size": hidden,
        "num_layers": max(1, num_layers),
        "num_attention_heads": hidden // HEAD_WIDTH,
        "inner_hidden_size": 4 * hidden,
        "vocab_size": VOCABULARY_ROWS,
    }


def make_tokenizer(folder: Path) -> Path:
    """A tokenizer trained on the sample pairs."""
    build_pairs([REPOSITORY / "medsft" / "knowledge" / "sample.jsonl"], folder / "pairs.jsonl", seed=0)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    train_tokenizer((pair["context"] + pair["target"] for pair in pairs), folder / "tokenizer", 1500)
    return folder / "tokenizer"


def write_ds_config(path: Path) -> Path:
    """The DeepSpeed JSON that is the default here, computing in bf16 on any device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    values = read_json(default_path(device))
    write_json(path, {**values, "bf16": {"enabled": True}, "fp16": {"enabled": False}})
    return path


def forget(folder: Path) -> None:
    """Takes the files of a folder out of the page cache, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync(path)
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most, in three digits."""
    found = {"s (median)": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round_off(value) for name, value in found.items()}


def round_off(value: float) -> float:
    """Three digits."""
    return float(f"{value:.3g}")


def millions(num_params: int) -> str:
    """As the tables have it."""
    return f"{num_params / 1e6:.0f} M"


def middle(values: Sequence[float]) -> float | str:
    """The median in three digits; nothing of nothing."""
    return round_off(statistics.median(values)) if values else ""


def ratio(mine: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios of the rounds."""
    return round_off(statistics.median(a / b for a, b in zip(mine, others, strict=True)))


# Name in a round -> what it is called in the table, and whose bytes it moves.
WAYS = {
    "stall": ("training waits", "num_bytes"),
    "write": ("written in the background", "num_bytes"),
    "of it in fsync": ("of it in fsync", "num_bytes"),
    "write without hashing": ("written without SHA-256", "num_bytes"),
    "SHA-256 alone": ("SHA-256 alone, in memory", "num_bytes"),
    "plain file copy": ("plain file copy, flushed", "num_bytes"),
    "DeepSpeed stall": ("DeepSpeed: training waits", "num_bytes_theirs"),
    "DeepSpeed until on the disk": ("DeepSpeed: waits, then flush", "num_bytes_theirs"),
}


def save_rows(num_params: int, num_ranks: int, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What one run of the task `saves` found; the first stalls come from the starts."""
    rounds = {name: [each[name] for each in found["rounds"]] for name in WAYS}
    rows = []
    for name, (way, size) in WAYS.items():
        seconds = rounds[name]
        rows.append(
            {
                "parameters": millions(num_params),
                "ranks": num_ranks,
                "way": way,
                "GB": round_off(found[size] / 1e9),
                **spread(seconds),
                "GB/s": round_off(found[size] / 1e9 / statistics.median(seconds)),
                "times the copy": ratio(seconds, rounds["plain file copy"]),
                "times our wait": ratio(seconds, rounds["stall"]),
                "memory GB": round_off(found["memory"][name] / 1e9) if name in found["memory"] else "",
            }
        )
    return rows


def first_row(rows: Sequence[Mapping[str, Any]], seconds: Sequence[float]) -> dict[str, Any]:
    """The row of the first wait in a process, beside those of the later ones."""
    (later,) = (row for row in rows if row["way"] == WAYS["stall"][0])
    found = spread(seconds)
    return {
        **later,
        "way": "training waits, first save",
        **found,
        "GB/s": round_off(later["GB"] / found["s (median)"]),
        "times the copy": "",
        "times our wait": round_off(found["s (median)"] / later["s (median)"]),
        "memory GB": "",
    }


def start_rows(
    num_params: int, num_ranks: int, starts: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """What the starts found, by what they began with."""
    fresh = starts["fresh"]
    rows = []

    def peak(name: str, found: Sequence[Mapping[str, Any]]) -> float:
        return statistics.median(each[name] for each in found) / 1e9

    for name, found in starts.items():
        timed = [each["seconds"] for each in found]
        ready = [each["ready"] for each in timed]
        stages = {
            stage: middle([each[stage] for each in timed if stage in each])
            for stage in ("verify", "read", "restore")
        }
        rows.append(
            {
                "parameters": millions(num_params),
                "ranks": num_ranks,
                "start": name,
                **{f"{stage} s": seconds for stage, seconds in stages.items()},
                **{key.replace("s (median)", "ready s"): value for key, value in spread(ready).items()},
                "times fresh": ratio(ready, [each["seconds"]["ready"] for each in fresh]),
                "private GB until ready": round_off(peak("private_until_ready", found)),
                "private GB": round_off(peak("private", found)),
                "times fresh's": round_off(peak("private", found) / peak("private", fresh)),
                "resident GB": round_off(peak("resident", found)),
            }
        )
    return rows


def step_row(num_params: int, num_ranks: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """What the task `steps` found; a step that outlasts the save beside it counts whole."""
    pairs = found["pairs"]
    alone = [statistics.median(pair["alone"]) for pair in pairs]
    beside = [statistics.mean(pair["beside"]) for pair in pairs]
    ratios = [with_save / without for with_save, without in zip(beside, alone, strict=True)]
    lost = [
        sum(pair["beside"]) - len(pair["beside"]) * without
        for pair, without in zip(pairs, alone, strict=True)
    ]
    return {
        "parameters": millions(num_params),
        "ranks": num_ranks,
        "saves": len(pairs),
        "steps beside": sum(len(pair["beside"]) for pair in pairs),
        "s a step alone": middle(alone),
        "s a step beside a save": middle(beside),
        "times (median)": middle(ratios),
        "min": round_off(min(ratios)),
        "max": round_off(max(ratios)),
        "write s": middle([pair["write"] for pair in pairs]),
        "lost to slower steps s": middle(lost),
        "stall s": middle([pair["stall"] for pair in pairs]),
    }


def measure_size(
    options: argparse.Namespace, model: Path, ds_config: Path, num_params: int, folder: Path
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of saves and starts of one model, its files removed afterwards."""
    common = ("--model", model, "--deepspeed", ds_config)
    saves, starts = [], []
    saved = {num_ranks: folder / f"saved by {num_ranks}" for num_ranks in options.ranks}
    for num_ranks, run in saved.items():
        tell(f"{millions(num_params)} parameters, {num_ranks} ranks: saves")
        words = ["saves", *common, "--folder", run, "--repetitions", options.repetitions]
        found = on_ranks(RANK_SCRIPT, num_ranks, *words)[-1]
        saves.append(save_rows(num_params, num_ranks, found))
    for number, num_ranks in enumerate(options.ranks):
        tell(f"{millions(num_params)} parameters, {num_ranks} ranks: starts")
        kinds = {"fresh": ("fresh", folder / "nothing")}
        kinds |= {f"resumed, saved by {other}": ("resumed", run) for other, run in saved.items()}
        kinds[f"DeepSpeed, saved by {num_ranks}"] = ("deepspeed", saved[num_ranks])
        found = {name: [] for name in kinds}
        for _ in range(options.starts):
            for name, (mode, run) in kinds.items():
                forget(folder)
                forget(model)
                words = ["start", *common, "--folder", run, "--mode", mode]
                found[name].append(on_ranks(RANK_SCRIPT, num_ranks, *words)[-1])
        starts += start_rows(num_params, num_ranks, found)
        first_s = [each["first_copy"] for each in found["fresh"]]
        saves[number].insert(0, first_row(saves[number], first_s))
    shutil.rmtree(folder)
    return [row for rows in saves for row in rows], starts


def tell(text: str) -> None:
    """Progress, beside the ranks' own output."""
    print(text, file=sys.stderr, flush=True)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=machine.above_zero, nargs="+", default=[0.1e9, 0.3e9, 0.5e9])
    parser.add_argument("--ranks", type=machine.at_least(1), nargs="+", default=[1, 2])
    parser.add_argument(
        "--repetitions", type=machine.at_least(1), default=5, help="rounds of saves, saves beside steps"
    )
    parser.add_argument("--starts", type=machine.at_least(1), default=3, help="timed starts of each kind")
    parser.add_argument(
        "--examples", type=machine.at_least(1), default=4, help="examples a rank in steps beside saves"
    )
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: for temporary files")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="where the tables go")
    return parser.parse_args()


def main() -> None:
    """Measures all sizes and numbers of ranks, and writes the tables."""
    options = parse_options()
    sizes, saves, starts, steps = [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="medsft-benchmark-") as scratch:
        place = Path(scratch)
        tokenizer = make_tokenizer(place)
        ds_config = write_ds_config(place / "zero3.json")
        for number, wanted in enumerate(options.params):
            model = place / "model"
            config = write_random_model(model, tokenizer, overrides=shape_for(wanted), seed=0)
            num_params = count_parameters(config)
            sizes.append(num_params)
            size_saves, size_starts = measure_size(options, model, ds_config, num_params, place / "runs")
            saves += size_saves
            starts += size_starts
            if number == 0:
                for num_ranks in options.ranks:
                    tell(f"{millions(num_params)} parameters, {num_ranks} ranks: steps")
                    found = on_ranks(
                        RANK_SCRIPT, num_ranks, "steps", "--model", model, "--deepspeed", ds_config,
                        "--folder", place / f"steps of {num_ranks}", "--examples", options.examples,
                        "--repetitions", options.repetitions,
                    )  # fmt: skip
                    steps.append(step_row(num_params, num_ranks, found[-1]))
                    shutil.rmtree(place / f"steps of {num_ranks}")
            shutil.rmtree(model)
    settings = {
        "parameters": " / ".join(f"{num_params:,}" for num_params in sizes),
        "compute": "bf16",
        "threads a rank": os.environ.get("OMP_NUM_THREADS", "1"),
        "disk": disk_of(options.folder or Path(tempfile.gettempdir())),
    }
    tables = {
        "checkpoint": ({"rounds": options.repetitions}, saves),
        "checkpoint_starts": ({"starts": options.starts}, starts),
        "checkpoint_steps": ({"saves": options.repetitions, "examples a rank": options.examples}, steps),
    }
    for name, (own, rows) in tables.items():
        path = machine.write_result(name, settings | own, rows, options.results)
        print(path.with_suffix(".md").read_text(encoding="utf-8"))


def disk_of(folder: Path) -> str:
    """File system and device of a folder."""
    above = {str(path) for path in (folder.resolve(), *folder.resolve().parents)}
    mounts = [part for part in psutil.disk_partitions(all=True) if part.mountpoint in above]
    best = max(mounts, key=lambda part: len(part.mountpoint))
    return f"{best.fstype} on {best.device}"


if __name__ == "__main__":
    main()
