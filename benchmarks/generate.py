"""Tokens a second of answers: ours, a plain transformers `generate`, and int8 and int4, in one run.

    python benchmarks/generate.py                          # a made-up model of 40M parameters
    python benchmarks/generate.py --model MODEL_FOLDER --device cuda --dtype fp16

The same prompts are answered greedily, `--num_tokens` each, end tokens ignored; the ways take turns in a
changing order:
  generate, single     transformers' generate, one question after the other (what the original code does);
  generate, batch      transformers' generate over left-padded batches, each waiting for its longest;
  side by side         the decoder of `medsft chat` and `medsft serve`, one or BATCH answers at once;
  bf16, int8, int4     the same with other weights; quantised ones compute as `medsft chat --quantize` does.
Memory is that of the weights. What quantisation costs in quality: benchmarks/quantize.py.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import machine
import numpy as np
import torch

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.quantization import use_fastest
from medsft.chatglm.weights import load_model
from medsft.inference.decoding import Decoder
from medsft.inference.sampling import Sampling

BATCH = 8
SHAPE = {"hidden_size": 512, "num_layers": 8, "num_attention_heads": 8, "inner_hidden_size": 2048}
VOCABULARY = 16_384

Model = ChatGLMForConditionalGeneration
Way = Callable[[Model, Sequence[list[int]], Sequence[int]], int]


def write_made_up_model(folder: Path) -> None:
    """Random weights in a model folder."""
    ids = {"bos_token_id": 4, "eos_token_id": 5, "mask_token_id": 0, "gmask_token_id": 1}
    ids = {name: VOCABULARY - 400 + offset for name, offset in ids.items()}
    torch.manual_seed(0)
    config = ChatGLMConfig(vocab_size=VOCABULARY, pad_token_id=3, **SHAPE, **ids)
    ChatGLMForConditionalGeneration(config).half().save_pretrained(folder)


def made_up_prompts(num_prompts: int, config: ChatGLMConfig) -> list[list[int]]:
    """Random tokens in the lengths of medical questions, 10 to 60."""
    chance = np.random.RandomState(0)
    return [
        [
            *chance.randint(10, config.gmask_token_id - 10, size).tolist(),
            config.gmask_token_id,
            config.bos_token_id,
        ]
        for size in chance.randint(10, 60, num_prompts)
    ]


def generate_single(model: Model, prompts: Sequence[list[int]], lengths: Sequence[int]) -> int:
    """One question after the other."""
    for prompt, length in zip(prompts, lengths, strict=True):
        ids = torch.tensor([prompt], device=model.device)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            eos_token_id=None,
            max_new_tokens=length,
        )
    return sum(lengths)


def generate_batch(model: Model, prompts: Sequence[list[int]], lengths: Sequence[int]) -> int:
    """Left-padded batches; each row is generated as far as the longest of its batch."""
    pad = model.config.pad_token_id
    for start in range(0, len(prompts), BATCH):
        rows = prompts[start : start + BATCH]
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            eos_token_id=None,
            max_new_tokens=max(lengths[start : start + BATCH]),
        )
    return sum(lengths)


def side_by_side(num_rows: int) -> Way:
    """Our decoder with so many answers at once."""

    def run(model: Model, prompts: Sequence[list[int]], lengths: Sequence[int]) -> int:
        waiting = list(zip(prompts, lengths, strict=True))
        decoder = Decoder(model)
        while waiting or decoder.rows:
            while waiting and len(decoder.rows) < num_rows:
                prompt, length = waiting.pop(0)
                decoder.add(prompt, Sampling(max_new_tokens=length, greedy=True))
            decoder.step()
        return sum(lengths)

    return run


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument(
        "--device", type=machine.device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--dtype", default=None, help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--num_prompts", type=machine.at_least(1), default=16)
    parser.add_argument(
        "--num_tokens", type=int, default=48, help="longest answer; the shortest has a quarter"
    )
    parser.add_argument("--rounds", type=machine.at_least(1), default=3)
    parser.add_argument("--name", default="generate", help="of the table")
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    options = parser.parse_args()
    return options


def main() -> None:
    """Measures all ways and writes medians."""
    options = parse_options()
    dtype = options.dtype or ("fp16" if options.device.startswith("cuda") else "fp32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary)
        if options.model is None:
            write_made_up_model(folder)
        kinds = {"": (dtype, None), "bf16": ("bf16", None), "int8": ("auto", 8), "int4": ("auto", 4)}
        models = {
            kind: load_model(folder, held, options.device, quantize=bits)
            for kind, (held, bits) in kinds.items()
        }
    told = [use_fastest(model) for model in models.values()]
    for model in models.values():
        model.config.eos_token_id = None
        model.generation_config.eos_token_id = None
    prompts = made_up_prompts(options.num_prompts, models[""].config)
    chance = np.random.RandomState(1)
    lengths = chance.randint(max(1, options.num_tokens // 4), options.num_tokens + 1, len(prompts)).tolist()
    ways: dict[str, tuple[str, Way]] = {
        "generate, single": ("", generate_single),
        f"generate, batch of {BATCH}": ("", generate_batch),
    }
    for num_rows in (1, BATCH):
        for kind in models:
            name = ", ".join(filter(None, (f"side by side, {num_rows} row{'s' * (num_rows > 1)}", kind)))
            ways[name] = (kind, side_by_side(num_rows))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for round_number in range(options.rounds + 1):  # the first warms up
        for name in names[round_number % len(names) :] + names[: round_number % len(names)]:
            kind, way = ways[name]
            begin_s = time.perf_counter()
            num_tokens = way(models[kind], prompts, lengths)
            if options.device.startswith("cuda"):
                torch.cuda.synchronize()
            if round_number:
                rates[name].append(num_tokens / (time.perf_counter() - begin_s))
    baseline = statistics.median(rates["generate, single"])
    table = [
        {
            "way": name,
            "tokens/s (median)": round(statistics.median(rates[name]), 1),
            "min": round(min(rates[name]), 1),
            "max": round(max(rates[name]), 1),
            "times generate, single": round(statistics.median(rates[name]) / baseline, 2),
            "weights MB": round(
                sum(tensor.nbytes for tensor in (*models[kind].parameters(), *models[kind].buffers())) / 1e6,
                1,
            ),
        }
        for name, (kind, _) in ways.items()
    ]
    settings = {
        "model": "made up" if options.model is None else options.model.name,
        "parameters": f"{sum(p.numel() for p in models[''].parameters()):,}",
        "device": options.device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "prompts": len(prompts),
        "answer tokens": f"{min(lengths)} to {max(lengths)}",
        "rounds": options.rounds,
        "quantised": "; ".join(filter(None, told)),
    }
    print(
        machine.write_result(options.name, settings, table, options.results)
        .with_suffix(".md")
        .read_text(encoding="utf-8")
    )


if __name__ == "__main__":
    main()
