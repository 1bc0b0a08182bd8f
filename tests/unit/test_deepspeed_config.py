import json
from pathlib import Path

import pytest
import torch

from medsft.engine.deepspeed_config import (
    Batch,
    compute_dtype,
    offloads_optimizer,
    read_json,
    resolve_batch,
    settle,
)
from medsft.errors import UserError
from medsft.planner.settings import ZeroSettings, auto_elements
from medsft.planner.shape import Shape

CPU = torch.device("cpu")
CHATGLM_6B = Shape(130_528, 4096, 28, 32, 16_384)
FLAGS = {
    "learning_rate": 5e-5,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
FOLDER = Path(__file__).resolve().parents[2] / "ds_configs"


def settled(values, device=CPU):
    return settle(values, Path("x.json"), Batch(16, 8, 2), FLAGS, CHATGLM_6B, device)


def settled_file(path):
    """For the device it is meant for: fp16 needs a GPU, whose abilities it does not ask for."""
    return settled(read_json(path), torch.device("cuda" if path.stem == "zero3_fp16" else "cpu"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.name)
def test_every_shipped_json_settles_without_leaving_auto(path):
    result = settled_file(path)
    assert '"auto"' not in json.dumps(result)
    assert result["zero_optimization"]["stage"] == 3
    assert result["gradient_clipping"] == 1.0


def test_shipped_jsons_are_what_their_names_say():
    of = {path.stem: settled_file(path) for path in FOLDER.glob("*.json")}
    assert compute_dtype(of["zero3"]) == torch.bfloat16
    assert compute_dtype(of["zero3_fp16"]) == torch.float16
    assert compute_dtype(of["zero3_cpu"]) == torch.float32
    assert not offloads_optimizer(of["zero3"])
    assert of["zero3_offload_optimizer"]["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert of["zero3_offload_all"]["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert of["zero3_nvme"]["zero_optimization"]["offload_optimizer"]["device"] == "nvme"
    assert {
        "zero3",
        "zero3_fp16",
        "zero3_cpu",
        "zero3_offload_optimizer",
        "zero3_offload_all",
        "zero3_nvme",
        "zero3_hpz",
    } == set(of)
    hpz, plain = of["zero3_hpz"], of["zero3"]
    assert hpz["zero_optimization"].pop("zero_hpz_partition_size") == 8
    assert hpz == plain


def test_auto_is_made_for_the_layers_of_the_model():
    made = auto_elements(CHATGLM_6B)
    assert made == {
        "reduce_bucket_size": 201_379_840,  # 12 x 4096² and its biases and LayerNorms
        "stage3_prefetch_bucket_size": 201_379_840,
        "stage3_param_persistence_threshold": 16_384,
    }
    layer = list(CHATGLM_6B.tensors())[1:13]
    assert sum(layer) == made["reduce_bucket_size"]
    whole = [size for size in layer if size <= made["stage3_param_persistence_threshold"]]
    assert len(whole) == 8 and max(whole) == 16_384  # four biases and two LayerNorms, no matrix
    toy = Shape(512, 128, 2, 4, 512)
    assert auto_elements(toy)["stage3_param_persistence_threshold"] == 512 < min(128 * 128, 128 * 512)
    result = settled_file(FOLDER / "zero3.json")
    assert {name: result["zero_optimization"][name] for name in made} == made
    planned = ZeroSettings.of(read_json(FOLDER / "zero3.json"), CHATGLM_6B)
    assert planned.reduce_bucket == 201_379_840


def test_each_json_has_a_line_in_the_readme():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in text for path in FOLDER.glob("*.json"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train_batch_size": 32}, ["train_batch_size is 32", "--global_batch_size is 16"]),
        ({"gradient_accumulation_steps": 4}, ["gradient_accumulation_steps is 4", "is 2"]),
        ({"train_micro_batch_size_per_gpu": 1}, ["is 1", "--per_device_train_batch_size is 8"]),
        ({"gradient_clipping": 0.5}, ["gradient_clipping is 0.5", "--max_grad_norm is 1.0"]),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, ["0.001", "--learning_rate is 5e-05"]),
        ({"optimizer": {"params": {"betas": [0.8, 0.999]}}}, ["0.8", "--adam_beta1 is 0.9"]),
        ({"optimizer": {"type": "Lamb"}}, ["Lamb", "AdamW"]),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}}},
            ["warmup_num_steps", "--warmup"],
        ),
        ({"zero_optimization": {"stage": 2}}, ["stage is 2", "stage 3"]),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, ["fp16", "bf16", "choose one"]),
        ({"fp16": {"enabled": True}}, ["fp16.enabled", "CPU", "zero3_cpu.json"]),
        ({"wandb": {"team": "auto"}}, ["wandb.team"]),
        ({"fp16": True}, ["fp16 is true", "object"]),
        ({"bf16": {"enabled": "yes"}}, ['bf16.enabled is "yes"', "true, false"]),
        ({"zero_optimization": None}, ["zero_optimization is null", "object"]),
        ({"optimizer": "AdamW"}, ['optimizer is "AdamW"', "object"]),
        ({"optimizer": {"params": {"betas": [0.9]}}}, ["betas is [0.9]", "two numbers"]),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": "cpu"}}, ["offload_optimizer", '"cpu"']),
        (
            {"zero_optimization": {"stage": 3, "offload_optimiser": {}}},
            ["offload_optimiser", "permitted"],
        ),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "big"}}, ["reduce_bucket_size", '"big"']),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, ["grad_accum_dtype", "bf16", "fp32"]),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            ["offload_param", "nvme", "cpu"],
        ),
    ],
)
def test_a_contradiction_shows_both_values(values, words):
    with pytest.raises(UserError) as caught:
        settled({"zero_optimization": {"stage": 3}, **values})
    assert all(word in str(caught.value) for word in ["x.json", *words])


def test_all_contradictions_come_at_once():
    with pytest.raises(UserError) as caught:
        settled({"zero_optimization": {"stage": 1}, "gradient_clipping": 2, "train_batch_size": 1})
    assert all(word in str(caught.value) for word in ["stage is 1", "gradient_clipping is 2", "is 1 but"])


def test_a_hugging_face_json_with_auto_everywhere_works():
    auto = "auto"
    result = settled(
        {
            "bf16": {"enabled": auto},
            "fp16": {"enabled": auto},
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": auto, "betas": auto, "eps": auto, "weight_decay": auto},
            },
            "scheduler": {
                "type": "WarmupDecayLR",
                "params": {"total_num_steps": auto, "warmup_max_lr": auto},
            },
            "zero_optimization": {
                "stage": 3,
                "reduce_bucket_size": auto,
                "stage3_prefetch_bucket_size": auto,
                "stage3_param_persistence_threshold": auto,
            },
            "gradient_clipping": auto,
            "train_batch_size": auto,
            "train_micro_batch_size_per_gpu": auto,
            "gradient_accumulation_steps": auto,
        }
    )
    assert "optimizer" not in result and "scheduler" not in result
    assert compute_dtype(result) == torch.bfloat16


def test_gradients_add_up_in_fp32_unless_said_otherwise():
    result = settled({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}})
    assert result["data_types"]["grad_accum_dtype"] == "fp32"


def test_a_block_without_enabled_is_off():
    result = settled({"zero_optimization": {"stage": 3}, "fp16": {"loss_scale_window": 500}, "bf16": {}})
    assert compute_dtype(result) == torch.float32


def test_numbers_equal_to_the_flags_are_no_contradiction():
    settled({"zero_optimization": {"stage": 3}, "train_batch_size": 16, "gradient_clipping": 1.0})


@pytest.mark.parametrize(
    ("content", "word"), [("{", "not valid JSON"), ("[1]", "JSON object"), ('{"a": 1,}', "not valid JSON")]
)
def test_broken_json_names_the_file(tmp_path, content, word):
    path = tmp_path / "ds.json"
    path.write_text(content)
    with pytest.raises(UserError, match=word) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_a_missing_json_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.json.*ds_configs"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((2, 8, None, None), Batch(16, 8, 1)),
        ((2, 8, 4, None), Batch(64, 8, 4)),
        ((1, 8, None, 16), Batch(16, 8, 2)),
        ((2, 8, None, 16), Batch(16, 8, 1)),
        ((3, 4, None, 16), Batch(16, 4, 2)),
        ((64, 8, None, 16), Batch(16, 8, 1)),
        ((2, 4, 2, 16), Batch(16, 4, 2)),
    ],
)
def test_the_batch_follows_from_three_flags_and_the_ranks(arguments, expected):
    assert resolve_batch(*arguments) == expected


def test_batch_flags_that_do_not_multiply_are_refused():
    with pytest.raises(UserError, match=r"--global_batch_size 16.*8 x.*4 x 2 ranks = 64"):
        resolve_batch(2, 8, 4, 16)
