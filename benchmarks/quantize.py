"""What int8 and int4 cost and save: memory, loss and answers of a trained model; ways to compute with them.

    python benchmarks/quantize.py                       # trains a toy first, about a minute
    python benchmarks/quantize.py --model MODEL_FOLDER --questions FILE --device cuda

The toy learns the single-relation pairs of the sample graph by heart, as in the demo, and is asked them
again: an answer that is no longer exact is one that quantisation has spoilt. `quantize.json` has what
`medsft eval --quantize` finds with each width; `quantize_kernels.json` the ways that were tried on a layer of
ChatGLM-6B's largest shape, as `medsft chat --quantize` tries them.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import machine
import torch

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.base import open_tokenizer
from medsft.chatglm.init import write_random_model
from medsft.chatglm.quantization import BITS
from medsft.chatglm.quantization.kernels import choose, try_out
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.data.encode import encode_example
from medsft.data.pack import pack
from medsft.data.records import read_files
from medsft.evaluation.evaluate import evaluate_model
from medsft.inference.responder import choose_devices, open_responder
from medsft.knowledge.build import build_pairs

GRAPH = Path(__file__).resolve().parents[1] / "medsft" / "knowledge" / "sample.jsonl"
TEMPLATE = "med-chatglm"
NUM_EPOCHS, BATCH, LONGEST, VOCABULARY = 50, 32, 64, 2000


def train_toy(folder: Path, pairs: Path) -> None:
    """Writes the pairs, and a toy in fp16 that has them by heart."""
    build_pairs([GRAPH], pairs, seed=0, kinds=["single"], num_phrasings=1)
    examples = read_files([pairs]).examples
    tokenizer = folder.with_name("tokenizer")
    train_tokenizer([example.query + example.response for example in examples], tokenizer, VOCABULARY)
    write_random_model(folder, tokenizer, dtype="float32")
    model = ChatGLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    tokens = open_tokenizer(folder)
    encoded = [encode_example(example, tokens, LONGEST, LONGEST, TEMPLATE) for example in examples]
    steps = NUM_EPOCHS * math.ceil(len(encoded) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    chance = torch.Generator().manual_seed(0)
    for _ in range(NUM_EPOCHS):
        for chosen in torch.randperm(len(encoded), generator=chance).split(BATCH):
            batch = pack([encoded[number] for number in chosen], tokens.pad_token_id)
            model(**batch.model_inputs()).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.half().save_pretrained(folder)


@contextmanager
def silently(_: str) -> Iterator[object]:
    """Progress that is not shown."""
    yield lambda done, total: None


def row(
    folder: Path, pairs: Path, results: Path, template: str, dtype: str, device: str, bits: int | None
) -> dict[str, object]:
    """Memory, loss and scores at one width."""
    responder = open_responder(folder, dtype=dtype, device=device, quantize=bits)
    lengths = (LONGEST, LONGEST, BATCH)
    found = evaluate_model(
        folder, [pairs], results, None, True, *lengths, template, dtype, device, bits, silently
    )
    return {
        "weights": "as stored" if bits is None else f"int{bits}",
        "computes in": str(responder.model.dtype).removeprefix("torch."),
        "weights MB": round(responder.weights_gb * 1000, 2),
        "loss (nats)": round(found.loss, 5),
        "perplexity": round(found.perplexity, 5),
        "exact answers %": round(found.scores.exact, 2),
        "ROUGE-L": round(found.scores.rouge_l, 2),
    }


def kernel_rows(device: torch.device) -> list[dict[str, object]]:
    """The ways on ChatGLM-6B's largest layer, in bf16."""
    config, rows = ChatGLMConfig(), []
    for bits in BITS:
        trials = try_out(bits, config.inner_hidden_size, config.hidden_size, torch.bfloat16, device)
        for trial in trials:
            rows.append(
                {
                    "bits": bits,
                    "way": trial.name,
                    "ms for 1 row and 8 rows": round(trial.seconds * 1e3, 2),
                    "times plain torch's speed": round(trials[0].seconds / trial.seconds, 2),
                    "relative error %": round(100 * trial.error, 3),
                    "chosen": "yes" if trial is choose(trials) else trial.fault,
                }
            )
    return rows


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a trained model; default: a toy, trained first")
    parser.add_argument("--questions", type=Path, help="questions with answers; needed with --model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--name", default="quantize", help="of the table; the other is NAME_kernels")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="where the tables go")
    options = parser.parse_args()
    if (options.model is None) != (options.questions is None):
        parser.error("--model and --questions go together")
    return options


def main() -> None:
    """Measures and writes both tables."""
    options = parse_options()
    (device,) = choose_devices(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.model or Path(temporary) / "toy"
        pairs = options.questions or Path(temporary) / "pairs.jsonl"
        if options.model is None:
            train_toy(folder, pairs)
        kinds = [("auto", None), ("bf16", None), *(("auto", bits) for bits in BITS)]
        template = TEMPLATE if options.model is None else "auto"
        rows = [
            row(folder, pairs, Path(temporary) / "out", template, dtype, str(device), bits)
            for dtype, bits in kinds
        ]
        num_examples = len(read_files([pairs]).examples)
    for each in rows:
        change = each["perplexity"] / rows[0]["perplexity"] - 1
        each["perplexity change %"] = round(100 * change, 3)
    settings = {
        "model": "toy" if options.model is None else options.model.name,
        "examples": num_examples,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    written = [machine.write_result(options.name, settings, rows, options.results)]
    layer = {"layer": "16384 x 4096, bf16", "device": str(device), "threads": torch.get_num_threads()}
    written.append(
        machine.write_result(f"{options.name}_kernels", layer, kernel_rows(device), options.results)
    )
    for path in written:
        print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
