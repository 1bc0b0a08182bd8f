"""`medsft plan`, and the plan with which a training starts."""

from __future__ import annotations

import json
import logging
import math
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from launcher import options
from medsft.chatglm import ChatGLMConfig
from medsft.cli import app
from medsft.cli.planning import _LENGTH_LIMIT
from medsft.config import parse
from medsft.data.plan import StepPlan
from medsft.engine.deepspeed_config import resolve_batch
from medsft.engine.distributed import World
from medsft.errors import UserError
from medsft.host_memory import host_memory_bytes
from medsft.planner.advice import read_configs
from medsft.planner.cluster import Cluster
from medsft.planner.hardware import GPUS, LINKS
from medsft.planner.lengths import Lengths
from medsft.planner.memory import Stage
from medsft.planner.plan import Batch, Plan, plan
from medsft.planner.shape import Shape
from medsft.training import fitting

CHATGLM_6B = Shape(130_528, 4096, 28, 32, 16_384)


def run(*arguments: str | Path) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, ["plan", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_names_what_matters():
    shown = run("--gpu", "A100-80", "--price_per_gpu_hour", "2")
    for text in (
        "6,173,286,400 parameters",
        "zero3.json",
        "collectives inside a host",
        "optimiser step",
        "cost",
    ):
        assert text in shown
    assert "More GPUs will not help at 16 examples a step" in shown
    # Three checkpoints of 12 bytes a parameter and a model of two are 219 GiB.
    start = "python -m launcher run --num-gpus 8 --needs-memory 101 --needs-disk 219 --needs-gpu-memory 20"
    assert f"{start} medsft/train.py --deepspeed ds_configs/zero3.json" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        (
            "--global_batch_size 24 --per_device_train_batch_size 2 --num_train_epochs 2",
            {"global_batch_size": 24, "per_device_train_batch_size": 2, "num_train_epochs": 2.0},
        ),
        (
            "--max_source_length 512 --max_target_length 300 --no-packing --no-checkpoints",
            {
                "max_source_length": 512,
                "max_target_length": 300,
                "packing": False,
                "save_strategy": "no",
            },
        ),
    ],
)
def test_the_plan_is_that_of_its_command(arguments, expected):
    """Sixteen examples a step without a flag, where the trainer alone would take eight for each GPU."""
    planned = json.loads(run(*arguments.split(), "--json"))
    (line,) = [line for line in run(*arguments.split()).splitlines() if line.startswith("python -m launcher")]
    taken = parse(options.parse(shlex.split(line)[3:]).script[1:]).flags()
    expected = {
        "global_batch_size": 16,
        "per_device_train_batch_size": planned["configurations"][0]["per_device_train_batch_size"],
        "gradient_accumulation_steps": None,
        "micro_batch_tokens": None,
        "max_source_length": _LENGTH_LIMIT,
        "max_target_length": _LENGTH_LIMIT,
        "num_train_epochs": 3.0,
        "packing": True,
        "save_strategy": "epoch",
    } | expected
    assert {name: taken[name] for name in expected} == expected
    num_steps = math.ceil(taken["num_train_epochs"] * 7622 / taken["global_batch_size"])
    assert planned["num_steps"] == num_steps


def test_what_does_not_fit_is_said():
    shown = run("--gpu", "4090", "--gpus_per_node", "1", "--host_memory_gib", "32")
    assert "Nothing fits" in shown and "GB short on each host" in shown
    assert "It fits on" in shown


def test_json_of_a_folder_with_real_lengths(tmp_path):
    from medsft.chatglm import ChatGLMConfig
    from medsft.chatglm.init import count_parameters
    from medsft.chatglm.tokenizer_training import train_tokenizer

    folder = tmp_path / "模型 1"
    data = folder / "数据 1.jsonl"
    folder.mkdir()
    pairs = [
        {"prompt": f"偏头痛第{n}次要挂什么科？", "response": "应到神经内科就诊。" * (n % 5 + 1)}
        for n in range(60)
    ]
    data.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
    train_tokenizer((pair["prompt"] + pair["response"] for pair in pairs), folder, 420)
    config = ChatGLMConfig(
        vocab_size=448, bos_token_id=440, eos_token_id=441,
        hidden_size=64, num_layers=3, num_attention_heads=4, inner_hidden_size=256,
    )  # fmt: skip
    config.save_pretrained(folder)
    shown = json.loads(
        run(
            "--model_name_or_path",
            folder,
            "--train_file",
            data,
            "--gpu",
            "cpu",
            "--gpus_per_node",
            "2",
            "--json",
        )
    )
    assert shown["parameters"] == count_parameters(config)
    assert shown["num_steps"] == 12  # 3 x 60 / 16, rounded up
    assert shown["recommended"] == "zero3_cpu.json"
    (only,) = shown["configurations"]
    assert only["step"] is None and only["fits"]
    assert {stage["name"] for stage in only["stages"]} == {
        "load", "forward and backward", "optimiser step", "save", "resume",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0"], "--nodes 0 must be 1 or more"),
        (["--gpus_per_node", "0"], "--gpus_per_node 0 must be 1 or more"),
        (["--gpu", "B9000"], "--gpu B9000 is not known.*A100-80"),
        (["--gpu", "custom"], "--gpu custom needs --gpu_memory_gib, --gpu_tflops, --gpu_bandwidth_gbs"),
        (["--gpu_memory_gib", "-1"], "--gpu_memory_gib -1.0 must be above 0"),
        (["--gpu_tflops", "nan"], "--gpu_tflops nan must be above 0"),
        (["--preset", "9000b"], "no preset '9000b'; choose one of chatglm-6b"),
        (["--network", "smoke"], "--network smoke is not known.*100g"),
        (["--interconnect", "string"], "--interconnect string is not known.*nvlink3"),
        (["--lengths", "short"], "--lengths 'short' must be share:tokens"),
        (["--global_batch_size", "0"], "--global_batch_size 0 must be 1 to 1,000,000"),
        (["--global_batch_size", "2000000"], "--global_batch_size 2000000 must be 1 to 1,000,000"),
        (["--num_examples", "0"], "--num_examples 0 must be 1 to 10,000,000"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0 must be 1 or more"),
        (["--max_target_length", "-3"], "--max_target_length -3 must be 1 or more"),
        (["--price_per_gpu_hour", "inf"], "--price_per_gpu_hour inf must be 0 or more"),
        (["--host_memory_gib", "nan"], "--host_memory_gib nan must be above 0"),
        (["--deepspeed", "nowhere.json"], "nowhere.json"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0.0 must be above 0"),
        (["--efficiency", "2"], "--efficiency 2.0 must be above 0 and at most 1"),
        (["--train_file", "x.jsonl"], "--train_file needs a tokenizer"),
        (["--model_name_or_path", "nowhere"], "nowhere.*cannot be read"),
    ],
)
def test_bad_input_says_what_is_allowed(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert "\n" not in str(caught.value)


def test_impossible_shapes_are_refused(tmp_path):
    for fields, message in (
        ({"hidden_size": 100, "num_attention_heads": 32}, "hidden_size 100 is not a multiple of 4 x"),
        ({"num_layers": 0}, "num_layers is 0, must be at least 1"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide', must be a whole number"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        with pytest.raises(UserError, match=message):
            run("--model_name_or_path", tmp_path)


def test_a_configuration_of_ones_own(tmp_path):
    path = tmp_path / "我的 zero3.json"
    values = read_configs()["zero3.json"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert f"--deepspeed '{path}'" in run("--deepspeed", path, "--gpu", "H200")
    with pytest.raises(UserError, match="no configuration suits V100"):
        run("--deepspeed", path, "--gpu", "V100")
    values["zero_optimization"]["sub_group_size"] = "large"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match="sub_group_size is 'large', must be a number of elements"):
        run("--deepspeed", path)


def made_plan(gpu: str | None, host_gib: float, name: str, ranks: int = 1) -> Plan:
    device = GPUS[gpu] if gpu else None
    memory = device.memory_bytes if device else 0.0
    cluster = Cluster(device, ranks, 1, memory, host_gib * 2**30, LINKS["pcie4"])
    lengths = Lengths.from_quantiles(num_examples=100)
    return plan(CHATGLM_6B, lengths, cluster, read_configs()[name], Batch(16, 16 // ranks, 1))


def test_a_run_that_cannot_fit_is_told_with_the_arithmetic():
    fault = fitting.misfit(made_plan("RTX-4090", 1000, "zero3.json"))
    assert "a GPU needs" in fault and "Adam: moments 49.4 GB + " in fault and "and has 25.2 GB" in fault
    fault = fitting.misfit(made_plan(None, 64, "zero3_cpu.json", ranks=2))
    assert "a host with 2 ranks needs" in fault and "and has 68.7 GB" in fault
    assert fitting.misfit(made_plan("H200-141", 200, "zero3.json")) is None


def test_a_run_within_the_tolerance_is_let_through():
    made = made_plan(None, 1000, "zero3_cpu.json")
    need = made.host_bytes / 2**30
    assert fitting.misfit(made_plan(None, need * 0.95, "zero3_cpu.json")) is None
    assert fitting.misfit(made_plan(None, need * 0.85, "zero3_cpu.json")) is not None


def test_one_line_at_the_start():
    line = fitting.describe(made_plan("A100-80", 1000, "zero3.json", ranks=8))
    assert "a GPU needs about" in line and "s a step" in line and "\n" not in line
    line = fitting.describe(made_plan(None, 1000, "zero3_cpu.json"))
    assert line.startswith("a host needs about") and "a step" not in line


def two_plans(gpu_memory_gib: float) -> tuple[Plan, Plan]:
    """Eight A100 of so much memory, 64 examples in a pass, without and with gradient checkpointing."""
    cluster = Cluster(GPUS["A100-80"], 8, 1, gpu_memory_gib * 2**30, 1000 * 2**30, LINKS["nvlink3"])
    lengths = Lengths.from_quantiles(num_examples=100)
    zero3 = read_configs()["zero3.json"]
    return tuple(
        plan(CHATGLM_6B, lengths, cluster, zero3, Batch(512, 64, 1, checkpointing=recomputes))
        for recomputes in (False, True)
    )


def test_gradient_checkpointing_is_on_only_where_memory_asks_for_it():
    plain, again = two_plans(80)
    assert again.gpu_bytes < plain.gpu_bytes < 80 * 2**30 / 1.1
    assert not fitting.needs_recomputation(plain, again)
    line = fitting.explain_recomputation(plain, again, False)
    assert line.startswith("off, a GPU needs ") and " of 85.9 GB without it" in line

    tight = plain.gpu_bytes * 1.05 / 2**30  # fits, but with less to spare than the plan may be wrong by
    plain, again = two_plans(tight)
    assert plain.fits and fitting.needs_recomputation(plain, again)
    line = fitting.explain_recomputation(plain, again, True)
    assert line.startswith("on, a GPU needs ") and "; with it a GPU needs " in line

    plain, again = (
        replace(made, stages=(Stage("optimiser step", {"Adam": 90e9}, {}),)) for made in two_plans(80)
    )
    assert not fitting.needs_recomputation(plain, again)
    assert "would not change that" in fitting.explain_recomputation(plain, again, False)


def test_gradient_checkpointing_is_on_for_a_gpu_though_the_host_is_fuller():
    """What Adam takes of the host's memory does not keep the activations out of the GPU's way."""
    host = Stage("optimiser step", {}, {"Adam": 1100e9})
    plain, again = (replace(made, stages=(*made.stages, host)) for made in two_plans(80))
    cluster = replace(plain.cluster, gpu_memory_bytes=plain.gpu_bytes * 0.98)
    plain, again = (replace(made, cluster=cluster) for made in (plain, again))
    assert plain.host_bytes / cluster.host_memory_bytes > plain.gpu_bytes / cluster.gpu_memory_bytes
    assert fitting.needs_recomputation(plain, again)
    assert fitting.explain_recomputation(plain, again, True).startswith("on, a GPU needs ")


def test_gradient_checkpointing_is_decided_by_the_hosts_memory_on_a_cpu():
    plain, again = (
        replace(made_plan(None, 1000, "zero3_cpu.json"), stages=stages)
        for stages in ((Stage("passes", {}, {"all": size}),) for size in (95e9, 60e9))
    )
    small = [replace(made, cluster=replace(made.cluster, host_memory_bytes=100e9)) for made in (plain, again)]
    assert not fitting.needs_recomputation(plain, again)
    assert fitting.needs_recomputation(*small)
    assert "a host needs 95.0 GB of 100.0 GB" in fitting.explain_recomputation(*small, True)


def test_a_misfit_starts_only_when_told_to(tmp_path, caplog):
    """ChatGLM-6B in fp32 on hosts like this one, a thousand examples of 2,048 tokens a micro-batch."""
    config = ChatGLMConfig()
    steps = StepPlan.for_run(1000, "", 1000, 0, 1.0)
    data = SimpleNamespace(lengths=[2048] * 1000, num_targets=[1024] * 1000)
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        for told in ("false", "true"):
            flags = ["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o"]
            settings = parse([*flags, "--allow_low_memory", told])
            batch = resolve_batch(1, 1000, None, None)
            arguments = (settings, config, data, steps, batch, 10**7, read_configs()["zero3_cpu.json"])
            with caplog.at_level(logging.INFO):
                if told == "false":
                    with pytest.raises(UserError, match=r"cannot fit.*activations.*--allow_low_memory true"):
                        fitting.check_fit(*arguments, World(0, 1, 0, torch.device("cpu")))
                else:
                    fit = fitting.check_fit(*arguments, World(0, 1, 0, torch.device("cpu")))
    finally:
        dist.destroy_process_group()
    assert fit.recomputes and "gradient checkpointing: on, a host needs" in caplog.text
    assert f"plan: {fit.text}" in caplog.text and fit.text.startswith("a host needs about")
    assert "--allow_low_memory: the run cannot fit" in caplog.text


def test_this_machine():
    cluster = fitting.this_cluster(torch.device("cpu"), 2, 3)
    assert (cluster.gpu, cluster.world_size) == (None, 6)
    assert 2**28 < cluster.host_memory_bytes == host_memory_bytes()
