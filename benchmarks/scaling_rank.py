"""One rank of `benchmarks/scaling.py`: prints seconds of its steps, their parts, and bytes moved as JSON.

    python -m launcher run --num-gpus 2 benchmarks/scaling_rank.py --model MODEL --folder F --deepspeed JSON

With --plain it is a loop of torch alone, without DeepSpeed: what ZeRO-3 is compared with.
"""

from __future__ import annotations

import argparse
import json

import torch
from blocked import Blocked, WorkingWatch
from made_up import made_up_rows
from rank_run import Run, do_step, open_run, timed
from traffic import Traffic

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.data.pack import pack
from medsft.engine.step import TrainStep
from medsft.engine.stopwatch import Stopwatch
from medsft.training import assembly


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--deepspeed", required=True)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--examples", type=int, required=True, help="of a step, over all ranks")
    parser.add_argument("--num_steps", type=int, required=True, help="that are measured, of each kind")
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

    return [
        timed(run.world, lambda number=number: step(number))
        for number in range(options.num_warmup_steps + options.num_steps)
    ]


def taken_apart(
    run: Run, step: TrainStep, blocked: Blocked, number: int, num_examples: int
) -> dict[str, float]:
    """Seconds of the parts of a step, of which the others leave the communication out."""
    step.state()  # what plain steps took
    before_s = blocked.seconds
    with blocked:
        data_s = do_step(run, step, number, num_examples)
    state = step.state()
    return {
        "data": data_s,
        "forward": state.forward_s,
        "backward": state.backward_s,
        "optimiser": state.optimizer_s,
        "communication": blocked.seconds - before_s,
    }


def main() -> None:
    """Measures, and counts in one step more, in which the counting may take its time.

    Plain steps, whose time is the table's, take turns with those that are taken apart, on the same examples.
    """
    options = parse_options()
    if options.plain:
        print(json.dumps({"seconds": plain_seconds(options)[options.num_warmup_steps :]}))
        return
    run = open_run(options)
    engine = assembly.start_model(run.config, run.base, None, run.ds_config, run.world, False)
    blocked = Blocked()
    step = run.train_step(engine, Stopwatch(WorkingWatch(blocked)))
    num_examples = options.examples // run.world.size
    seconds, parts = [], []
    for number in range(options.num_warmup_steps + options.num_steps):
        seconds.append(timed(run.world, lambda number=number: do_step(run, step, number, num_examples)))
        parts.append(taken_apart(run, step, blocked, number, num_examples))
    with Traffic(run.world.size) as traffic:
        do_step(run, step, number + 1, num_examples)
    if run.world.is_main:
        found = {
            "seconds": seconds[options.num_warmup_steps :],
            "parts": parts[options.num_warmup_steps :],
            "received": traffic.received,
            "others": traffic.others,
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
