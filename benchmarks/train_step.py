"""Useful tokens a second: the packed path against the padded path with full fp32 logits, in one run.

    python benchmarks/train_step.py                       # toy of 27M parameters, made-up tokens
    python benchmarks/train_step.py --train_file pairs.jsonl --tokenizer MODEL_FOLDER

All paths do forward, backward and AdamW on the same 16 examples from the same weights, taking turns in a
changing order:
  packed     one padding-free row; the head runs on supervised rows only (what the trainer does);
  padded     2 micro-batches of 8 padded rows, logits of every slot in fp32;
  original   the same with gradient checkpointing, as the original Med-ChatGLM script runs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from machine import write_result
from torch.nn import functional as F

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.data.dataset import Row
from medsft.data.pack import pack, pad
from medsft.planner.lengths import MED_CHATGLM_QUANTILES as QUANTILES
from medsft.planner.lengths import MED_CHATGLM_SUPERVISED_SHARE as SUPERVISED_SHARE

BATCH = 16
MICRO_BATCH = 8
SHAPE = {"hidden_size": 512, "num_layers": 6, "num_attention_heads": 8, "inner_hidden_size": 2048}


def made_up_rows(num_rows: int, config: ChatGLMConfig, seed: int) -> list[Row]:
    """Random tokens in the published lengths."""
    chance = np.random.RandomState(seed)
    shares, lengths = zip(*QUANTILES, strict=True)
    rows = []
    for length in np.interp(chance.rand(num_rows), shares, lengths).astype(int):
        context = max(1, int(length * (1 - SUPERVISED_SHARE)))
        ids = chance.randint(10, config.gmask_token_id - 10, size=length)
        ids[context - 1 : context + 1] = config.gmask_token_id, config.bos_token_id
        ids[-1] = config.eos_token_id
        rows.append(Row(ids, context))
    return rows


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


def packed_loss(
    model: ChatGLMForConditionalGeneration, rows: Sequence[Row], num_targets: int
) -> tuple[float, int]:
    """Forward and backward of the trainer's path; loss and slots."""
    batch = pack(rows, model.config.pad_token_id).to(model.device)
    loss = model(**batch.model_inputs(), num_items_in_batch=num_targets).loss
    loss.backward()
    return float(loss.detach()), batch.num_slots


def padded_loss(
    model: ChatGLMForConditionalGeneration, rows: Sequence[Row], num_targets: int
) -> tuple[float, int]:
    """Forward and backward over padded rows with the logits of every slot; loss and slots."""
    total, num_slots = 0.0, 0
    for start in range(0, len(rows), MICRO_BATCH):
        batch = pad(rows[start : start + MICRO_BATCH], model.config.pad_token_id).to(model.device)
        logits = model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
        ).logits.float()
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / num_targets).backward()
        total += float(loss.detach()) / num_targets
        num_slots += batch.num_slots
    return total, num_slots


PATHS: dict[str, Callable[..., tuple[float, int]]] = {
    "packed": packed_loss,
    "padded": padded_loss,
    "original": padded_loss,
}


def measure(
    models: dict[str, ChatGLMForConditionalGeneration], rows: Sequence[Row], num_warmup_steps: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """Useful tokens/s and share of slots of each step, and the largest relative difference of losses."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}
    rates: dict[str, list[float]] = {name: [] for name in models}
    useful: dict[str, list[float]] = {name: [] for name in models}
    largest_difference = 0.0
    names = list(models)
    for step in range(len(rows) // BATCH):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        num_tokens = sum(len(row.input_ids) for row in batch)
        num_targets = sum(len(row.input_ids) - row.context_length for row in batch)
        losses = {}
        for name in names[step % len(names) :] + names[: step % len(names)]:
            begin_s = time.perf_counter()
            losses[name], num_slots = PATHS[name](models[name], batch, num_targets)
            optimizers[name].step()
            optimizers[name].zero_grad()
            if models[name].device.type == "cuda":
                torch.cuda.synchronize()
            if step >= num_warmup_steps:
                rates[name].append(num_tokens / (time.perf_counter() - begin_s))
                useful[name].append(num_tokens / num_slots)
        spread = max(losses.values()) / min(losses.values()) - 1
        largest_difference = max(largest_difference, spread)
    return rates, useful, largest_difference


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--vocab_size", type=int, default=16_384)
    parser.add_argument("--num_steps", type=int, default=9)
    parser.add_argument("--num_warmup_steps", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def main() -> None:
    """Measures all paths and writes medians."""
    options = parse_options()
    num_rows = BATCH * (options.num_steps + options.num_warmup_steps)
    shape = {name: getattr(options, name) for name in SHAPE}
    if options.tokenizer is not None:
        config = ChatGLMConfig.from_pretrained(options.tokenizer, **shape)
        rows = file_rows(num_rows, options.train_file, options.tokenizer)
    else:
        ids = {"bos_token_id": 4, "eos_token_id": 5, "mask_token_id": 0, "gmask_token_id": 1}
        ids = {name: options.vocab_size - 400 + offset for name, offset in ids.items()}
        config = ChatGLMConfig(vocab_size=options.vocab_size, pad_token_id=3, **shape, **ids)
        rows = made_up_rows(num_rows, config, seed=0)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else torch.float32
    torch.manual_seed(0)
    first = ChatGLMForConditionalGeneration(config).to(options.device, dtype).train()
    models = {name: first if name == "packed" else copy.deepcopy(first) for name in PATHS}
    models["original"].recompute_activations()
    rates, useful, largest_difference = measure(models, rows, options.num_warmup_steps)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    table = [
        {
            "path": name,
            "useful tokens/s (median)": round(medians[name], 1),
            "min": round(min(rates[name]), 1),
            "max": round(max(rates[name]), 1),
            "useful share of slots": round(statistics.mean(useful[name]), 3),
            "times the original": round(medians[name] / medians["original"], 2),
        }
        for name in PATHS
    ]
    settings = {
        "parameters": f"{sum(param.numel() for param in first.parameters()):,}",
        "vocabulary": config.vocab_size,
        "dtype": str(dtype).removeprefix("torch."),
        "steps": options.num_steps,
        "lengths": "file" if options.train_file else "published quantiles",
        "largest relative difference of losses": f"{largest_difference:.1e}",
    }
    print(write_result("train_step", settings, table).with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
