"""Useful tokens a second of a training step, beside two ways of others, in one run.

    python benchmarks/train_step.py                                   # 64M-parameter body, 130,528 rows, CPU
    python benchmarks/train_step.py --train_file pairs.jsonl --tokenizer MODEL_FOLDER
    python benchmarks/train_step.py --preset 1b --device cuda --one_at_a_time
    python benchmarks/train_step.py --preset small --num_steps 60 --name train_step_growth
    python benchmarks/train_step.py --ranks 1 2    # the trainer's step on ranks as well, with communication

All ways do forward, backward and AdamW on the same 16 examples from the same weights:
  packed        one padding-free row, the head on supervised rows only, AdamW in one pass: the trainer's;
  transformers  2 micro-batches of 8 padded rows, logits of every slot in fp32, AdamW as torch has it: the
                usual loop;
  original      the same with gradient checkpointing, as the original Med-ChatGLM script runs.

They take turns in a changing order, step by step; with --one_at_a_time one runs after the other, for models
that do not fit into memory three times. What arithmetic alone would give stands beside what was measured.
"in use, grown" is what a step leaves allocated, in the second half of 40 steps or more: by torch's allocator
on a GPU, by the C library on the CPU. The ways are single processes, which communicate with nobody; with
--ranks a second table has the trainer's step over CPU ranks, each part without the communication, which is
one more.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scaling
import torch
from machine import RESULTS, at_least, device, write_result
from made_up import made_up_rows
from peak import in_use_bytes
from torch.nn import functional as F

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.init import PRESETS
from medsft.data.dataset import Row
from medsft.data.pack import MicroBatch, pack, pad
from medsft.planner.flops import Flops, mfu, step_flops, visible_pairs
from medsft.planner.shape import Shape

BATCH = 16
MICRO_BATCH = 8
SHAPE = {"hidden_size": 768, "num_layers": 9, "num_attention_heads": 12, "inner_hidden_size": 3072}
PARTS = ("data", "forward", "backward", "optimiser")
WAYS = ("packed", "transformers", "original")
# Sides of the square matrices whose product stands for what the device can do at best.
PEAK_SIDES = (1024, 2048, 4096)
SHORTEST_SERIES = 40  # steps in which growth can be told from rows of changing lengths


def file_rows(num_rows: int, train_file: Path, tokenizer_dir: Path) -> list[Row]:
    """The first examples of an instruction file."""
    from transformers import AutoTokenizer

    import medsft  # noqa: F401  registers the tokenizer
    from medsft.data.encode import encode_example
    from medsft.data.records import read_files

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    examples = read_files([train_file]).examples[:num_rows]
    encoded = [encode_example(example, tokenizer, 256, 256, "none") for example in examples]
    return [Row(np.array(item.input_ids), item.context_length) for item in encoded]


def packed_loss(model: ChatGLMForConditionalGeneration, batch: MicroBatch, num_targets: int) -> torch.Tensor:
    """The trainer's."""
    return model(**batch.model_inputs(), num_items_in_batch=num_targets).loss


def padded_loss(model: ChatGLMForConditionalGeneration, batch: MicroBatch, num_targets: int) -> torch.Tensor:
    """Cross-entropy over the fp32 logits of every slot."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    logits = model(**inputs, attention_mask=batch.attention_mask, use_cache=False).logits.float()
    labels = batch.labels[:, 1:].flatten()
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum")
    return total / num_targets


@dataclass
class Figures:
    """What the steps of one way took, warm-up included.

    Attributes:
        seconds: by part of a step, for each step.
        slots: computed in each step.
        losses: of each step.
        memory: bytes in use after each step.
    """

    name: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    slots: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


class Way:
    """One way to do a step, with a model and an optimiser of its own."""

    def __init__(self, name: str, model: ChatGLMForConditionalGeneration):
        self.name = name
        self.model = model
        fused = True if name == "packed" else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)
        self.figures = Figures(name)
        if name == "original":
            model.recompute_activations()

    def step(self, rows: Sequence[Row]) -> None:
        """Forward, backward and update with these examples."""
        pad_token_id, device = self.model.config.pad_token_id, self.model.device
        num_targets = sum(len(row.input_ids) - row.context_length for row in rows)
        took = dict.fromkeys(PARTS, 0.0)
        loss_of: Callable[..., torch.Tensor]
        with self._timed(took, "data"):
            if self.name == "packed":
                batches, loss_of = [pack(rows, pad_token_id)], packed_loss
            else:
                starts = range(0, len(rows), MICRO_BATCH)
                batches = [pad(rows[start : start + MICRO_BATCH], pad_token_id) for start in starts]
                loss_of = padded_loss
        total = 0.0
        for batch in batches:
            with self._timed(took, "data"):
                on_device = batch.to(device)
            with self._timed(took, "forward"):
                loss = loss_of(self.model, on_device, num_targets)
            with self._timed(took, "backward"):
                loss.backward()
            total += float(loss.detach())
        with self._timed(took, "optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        for part, seconds in took.items():
            self.figures.seconds[part].append(seconds)
        self.figures.slots.append(sum(batch.num_slots for batch in batches))
        self.figures.losses.append(total)

    @contextmanager
    def _timed(self, took: dict[str, float], part: str) -> Iterator[None]:
        begin_s = time.perf_counter()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        took[part] += time.perf_counter() - begin_s


def used_bytes(device: torch.device) -> int:
    """Held by this process on the device, what the allocators keep for later left out."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else in_use_bytes()


def grown_kb(memory: Sequence[int]) -> float | None:
    """KB a step by which `memory`, in bytes after each step, still rises in its second half.

    Between the medians of its last two quarters, as rows of changing lengths make it go up and down; None for
    fewer than SHORTEST_SERIES steps.
    """
    if len(memory) < SHORTEST_SERIES:
        return None
    quarter = len(memory) // 4
    before, last = memory[-2 * quarter : -quarter], memory[-quarter:]
    return round((statistics.median(last) - statistics.median(before)) / quarter / 1e3, 1)


def take_step(way: Way, batch: Sequence[Row]) -> None:
    """A step, and what is in use when it has let go of its batch."""
    way.step(batch)
    way.figures.memory.append(used_bytes(way.model.device))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of a few matrix products on this device, now."""
    best = 0.0
    for side in PEAK_SIDES:
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        for _ in range(4):
            begin_s = time.perf_counter()
            left @ right
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * side**3 / (time.perf_counter() - begin_s))
    return best


def batches_of(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The examples of each step."""
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def flops_of(name: str, shape: Shape, rows: Sequence[Row]) -> Flops:
    """What a way computes for the examples of one step; every pair of a row is computed, masked or not."""
    if name == "packed":
        slots = sum(len(row.input_ids) for row in rows)
        targets = sum(len(row.input_ids) - row.context_length for row in rows)
        return step_flops(shape, slots, targets, slots**2)
    lengths = [
        (len(part), max(len(row.input_ids) for row in part))
        for start in range(0, len(rows), MICRO_BATCH)
        if (part := rows[start : start + MICRO_BATCH])
    ]
    slots = sum(count * longest for count, longest in lengths)
    pairs = sum(count * longest**2 for count, longest in lengths)
    return step_flops(shape, slots, slots, pairs, checkpointing=name == "original")


def necessary_flops(shape: Shape, rows: Sequence[Row]) -> float:
    """What the examples of one step ask for."""
    examples = [(len(row.input_ids), len(row.input_ids) - row.context_length) for row in rows]
    tokens, targets = map(sum, zip(*examples, strict=True))
    return step_flops(shape, tokens, targets, sum(visible_pairs(*one) for one in examples)).necessary


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", choices=PRESETS, help="a shape of `medsft init`; default: 768 wide, 9 layers"
    )
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--vocab_size", type=at_least(1000), default=130_528)
    parser.add_argument("--num_steps", type=at_least(1), default=8)
    parser.add_argument("--num_warmup_steps", type=at_least(0), default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--one_at_a_time", action="store_true")
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--name", default="train_step", help="of the table")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    parser.add_argument("--ranks", type=scaling.ranks_that_divide, nargs="+", help="of the second table")
    options = parser.parse_args()
    if (options.train_file is None) != (options.tokenizer is None):
        parser.error("--train_file and --tokenizer go together")
    return options


def measure(options: argparse.Namespace, config: ChatGLMConfig, rows: Sequence[Row]) -> list[Figures]:
    """Every way's steps."""
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32

    def new_way(name: str) -> Way:
        torch.manual_seed(0)
        return Way(name, ChatGLMForConditionalGeneration(config).to(options.device, dtype).train())

    if not options.one_at_a_time:
        ways = [new_way(name) for name in options.ways]
        for step, batch in enumerate(batches_of(rows)):
            for number in range(len(ways)):
                take_step(ways[(step + number) % len(ways)], batch)
        return [way.figures for way in ways]
    found = []
    for name in options.ways:
        way = new_way(name)
        for batch in batches_of(rows):
            take_step(way, batch)
        found.append(way.figures)
        del way
        gc.collect()
    return found


def main() -> None:
    """Measures all ways and writes medians."""
    options = parse_options()
    warm_up = options.num_warmup_steps
    num_rows = BATCH * (options.num_steps + warm_up)
    sizes = PRESETS[options.preset] if options.preset else SHAPE
    if options.tokenizer is not None:
        config = ChatGLMConfig.from_pretrained(options.tokenizer, **sizes)
        rows = file_rows(num_rows, options.train_file, options.tokenizer)
    else:
        ids = {"bos_token_id": 4, "eos_token_id": 5, "mask_token_id": 0, "gmask_token_id": 1}
        ids = {name: options.vocab_size - 400 + offset for name, offset in ids.items()}
        config = ChatGLMConfig(vocab_size=options.vocab_size, pad_token_id=3, **sizes, **ids)
        rows = made_up_rows(num_rows, config, seed=0)
    shape = Shape.of(config)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    peak = peak_flops(torch.device(options.device), dtype)
    ways = measure(options, config, rows)

    steps = list(batches_of(rows))[warm_up:]
    tokens = [sum(len(row.input_ids) for row in batch) for batch in steps]
    targets = [sum(len(row.input_ids) - row.context_length for row in batch) for batch in steps]
    needed = [necessary_flops(shape, batch) for batch in steps]
    computed = {way.name: sum(flops_of(way.name, shape, batch).total for batch in steps) for way in ways}
    took = {
        way.name: [sum(parts) for parts in zip(*(way.seconds[part][warm_up:] for part in PARTS), strict=True)]
        for way in ways
    }
    slowest = ways[-1].name
    table = []
    for way in ways:
        seconds = took[way.name]
        rates = [count / second for count, second in zip(tokens, seconds, strict=True)]
        ratios = [theirs / mine for mine, theirs in zip(seconds, took[slowest], strict=True)]
        table.append(
            {
                "way": way.name,
                "useful tokens/s": round(statistics.median(rates), 1),
                "min": round(min(rates), 1),
                "max": round(max(rates), 1),
                "supervised tokens/s": round(statistics.median(map(_ratio, targets, seconds)), 1),
                f"times {slowest}": round(statistics.median(ratios), 2),
                "by arithmetic alone": round(computed[slowest] / computed[way.name], 2),
                "share of the peak": round(
                    statistics.median(
                        mfu(flops, second, 1, peak) for flops, second in zip(needed, seconds, strict=True)
                    ),
                    3,
                ),
                "useful share of slots": round(sum(tokens) / sum(way.slots[warm_up:]), 3),
                **{f"{part} s": round(statistics.median(way.seconds[part][warm_up:]), 3) for part in PARTS},
                "in use, grown KB a step": grown_kb(way.memory[warm_up:]),
            }
        )
    apart = max(max(losses) / min(losses) - 1 for losses in zip(*(way.losses for way in ways), strict=True))
    settings = {
        "parameters": f"{shape.num_parameters:,}",
        "of them body": f"{shape.body_parameters:,}",
        "vocabulary": config.vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "steps": options.num_steps,
        "lengths": "file" if options.train_file else "published quantiles",
        "peak, a matrix product's": f"{peak / 1e9:,.0f} GFLOP/s",
        "largest relative difference of losses": f"{apart:.1e}",
    }
    written = [write_result(options.name, settings, table, options.results)]
    if options.ranks:
        written.append(
            scaling.measure(
                f"{options.name}_ranks",
                {**sizes, "vocab_size": config.vocab_size},
                options.ranks,
                1,
                options.num_steps,
                warm_up,
                options.results,
            )
        )
    for path in written:
        print(path.with_suffix(".md").read_text(encoding="utf-8"))


def _ratio(count: float, seconds: float) -> float:
    return count / seconds


if __name__ == "__main__":
    main()
