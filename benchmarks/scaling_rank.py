"""One rank of `benchmarks/scaling.py`: prints seconds of its steps and bytes of its collectives as JSON.

    python -m launcher run --num-gpus 2 benchmarks/scaling_rank.py --model MODEL --folder F --deepspeed JSON

With --plain it is a loop of torch alone, without DeepSpeed: what ZeRO-3 is compared with.
"""

from __future__ import annotations

import argparse
import json

import torch
from rank_run import do_step, open_run, timed
from traffic import Traffic
from train_step import made_up_rows

from medsft import assembly
from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.data.pack import pack


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--deepspeed", required=True)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--examples", type=int, required=True, help="of a step, over all ranks")
    parser.add_argument("--num_steps", type=int, required=True)
    parser.add_argument("--num_warmup_steps", type=int, required=True)
    return parser.parse_args()


def plain_seconds(options: argparse.Namespace) -> list[float]:
    """Steps of the bare model: one packed row, fused AdamW."""
    run = open_run(options)
    model = ChatGLMForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(number: int) -> None:
        rows = made_up_rows(options.examples, run.base.config, seed=number)
        num_targets = sum(len(row.input_ids) - row.context_length for row in rows)
        inputs = pack(rows, run.base.pad_token_id).model_inputs()
        model(**inputs, num_items_in_batch=num_targets, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return [timed(run.world, lambda number=number: step(number)) for number in range(options.num_steps)]


def main() -> None:
    """Measures, and counts in one step more, in which the counting may take its time."""
    options = parse_options()
    if options.plain:
        print(json.dumps({"seconds": plain_seconds(options)[options.num_warmup_steps :], "received": {}}))
        return
    run = open_run(options)
    engine = assembly.start_model(run.config, run.base, None, run.ds_config, run.world, False)
    step = run.train_step(engine)
    num_examples = options.examples // run.world.size
    seconds = [
        timed(run.world, lambda number=number: do_step(run, step, number, num_examples))
        for number in range(options.num_steps)
    ]
    with Traffic(run.world.size) as traffic:
        do_step(run, step, options.num_steps, num_examples)
    if run.world.is_main:
        found = {"received": traffic.received, "others": traffic.others}
        print(json.dumps({"seconds": seconds[options.num_warmup_steps :], **found}), flush=True)


if __name__ == "__main__":
    main()
