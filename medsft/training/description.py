"""What a run is, told at its start: run.json, the model's provenance, texts for TensorBoard and its like."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import partial
from textwrap import indent

from medsft.data.encode import describe_example
from medsft.engine.distributed import World, together
from medsft.files import write_json
from medsft.launch import launch_names
from medsft.monitor.health import ModelFacts
from medsft.monitor.metrics import Start
from medsft.monitor.reporter import Reporter, open_reporter
from medsft.planner.shape import Shape
from medsft.provenance import Provenance, software_versions
from medsft.run_folder import RunFolder, writing
from medsft.training.preparation import Prepared
from medsft.training.saving import make_room

NUM_SHOWN = 8
"""Examples of the first step that are shown decoded."""


def describe_run(prepared: Prepared, folder: RunFolder, world: World) -> Provenance:
    """Makes room in the folder, writes run.json, and begins the model's provenance.

    A run that begins at step 0 leaves nothing of an earlier one in place; one that goes on from a checkpoint
    of this folder moves only what is newer.
    """
    data, validation_data, plan = prepared.data, prepared.validation_data, prepared.plan
    provenance = Provenance(
        base_model=str(prepared.base.folder),
        data_fingerprint=data.fingerprint,
        prompt_template=data.summary.template,
        flags=prepared.config.flags(),
        versions=software_versions(),
    )
    with together(world), writing(folder.path):
        if world.is_main:
            make_room(folder, prepared.checkpoint)
            facts = {
                "launch": launch_names(os.environ),
                "world_size": world.size,
                "start_step": prepared.start_step,
                "num_steps": plan.num_steps,
                "global_batch_size": plan.global_batch_size,
                "num_examples": len(data),
                "data": data.summary.facts(),
                "validation_data": validation_data and validation_data.summary.facts(),
                "plan": prepared.fit.text,
                "gradient_checkpointing": prepared.fit.recomputes,
                "deepspeed": prepared.ds_config,
            }
            write_json(folder.description, {**provenance.origin(), **facts})
    return provenance


def start_reporter(prepared: Prepared, folder: RunFolder, hosts: Sequence[str], world: World) -> Reporter:
    """Opens everything that the run reports to, and tells what it is. `hosts`: that of each rank."""
    config, start_step = prepared.config, prepared.start_step
    num_parameters = Shape.of(prepared.base.config).num_parameters
    model = ModelFacts(num_parameters, config.optimization.learning_rate)
    num_steps, trackers = prepared.plan.num_steps, config.run.report_to
    reporter = open_reporter(folder, num_steps, world.is_main, start_step, model, trackers, config.flags())
    reporter.start(Start(start_step, world.size, tuple(dict.fromkeys(hosts))))
    reporter.texts(partial(texts, prepared, hosts))
    return reporter


def texts(prepared: Prepared, hosts: Sequence[str]) -> dict[str, str]:
    """What the run is, as Markdown under names: settings, plan, and what the first step learns from.

    `hosts`: that of each rank.
    """
    data, plan = prepared.data, prepared.plan
    examples = plan.examples(0)
    # Indented by four: Markdown shows it letter by letter.
    shown = "\n\n".join(
        f"{data.source(int(number))}\n\n"
        + indent(describe_example(data[int(number)], prepared.base.tokenizer), " " * 4)
        for number in examples[:NUM_SHOWN]
    )
    flags = "\n".join(f"| `{name}` | `{value}` |" for name, value in prepared.config.flags().items())
    ranks = "\n".join(f"| {rank} | {host} |" for rank, host in enumerate(hosts))
    steps = f"{plan.num_steps:,} steps of {plan.global_batch_size} examples"
    return {
        "run/flags": f"| flag | value |\n| --- | --- |\n{flags}",
        "run/deepspeed": indent(json.dumps(prepared.ds_config, indent=2), " " * 4),
        "run/ranks": f"| rank | host |\n| --- | --- |\n{ranks}",
        "run/plan": f"{steps}; {prepared.fit.text}",
        "data/summary": data.summary.describe(),
        "data/first batch": f"{min(NUM_SHOWN, len(examples))} of {len(examples)} examples\n\n{shown}",
    }
