"""Model folders of every kind become the same model, with no more memory than the model itself."""

import json
from pathlib import Path

import pytest
import torch

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.weights import load_model, open_weights
from medsft.errors import UserError
from tests.unit.weights_toys import assert_paragraph, change_json, random_tensors, toy_settings, write_model

NUM_ROWS = 120
SETTINGS = toy_settings(100, NUM_ROWS)
EMBEDDING = "transformer.word_embeddings.weight"


def logits(model: ChatGLMForConditionalGeneration) -> torch.Tensor:
    ids = torch.tensor([[5, 17, 33, 101, 104, 8, 9]])
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("weights_format", ["bin", "safetensors"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_the_stored_ones(tmp_path, weights_format, tied):
    settings = {**SETTINGS, "tie_word_embeddings": tied}
    tensors = random_tensors(settings)
    folder = write_model(tmp_path / "模型 1", settings, tensors, weights_format=weights_format)
    model = load_model(folder)
    assert not model.training
    assert model.dtype == torch.float16
    assert (model.lm_head.weight is model.transformer.word_embeddings.weight) == tied
    state = model.state_dict()
    for name, tensor in tensors.items():
        if "inv_freq" not in name:
            assert torch.equal(state[name], tensor), name
    assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("fp32", torch.float32),
        (torch.bfloat16, torch.bfloat16),
        ("float16", torch.float16),
        (None, torch.float16),
    ],
)
def test_types(tmp_path, dtype, expected):
    tensors = random_tensors(SETTINGS)
    model = load_model(write_model(tmp_path, SETTINGS, tensors), dtype, "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.config.dtype == expected
    assert torch.equal(model.transformer.word_embeddings.weight, tensors[EMBEDDING].to(expected))


def test_files_of_mixed_types(tmp_path):
    """As some fine-tuned folders have them: LayerNorms in fp32 among fp16 matrices."""
    tensors = random_tensors(SETTINGS)
    norm = "transformer.final_layernorm.weight"
    tensors[norm] = torch.randn(32)
    model = load_model(write_model(tmp_path, SETTINGS, tensors))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert load_model(tmp_path, "fp32").state_dict()[norm].equal(tensors[norm])


@pytest.mark.parametrize("dtype", ["int8", "fp8", torch.int8])
def test_types_that_weights_cannot_have(tmp_path, dtype):
    write_model(tmp_path, SETTINGS, random_tensors(SETTINGS))
    with pytest.raises(UserError) as caught:
        load_model(tmp_path, dtype)
    assert_paragraph(str(caught.value), dtype, "bfloat16")


def test_loaded_and_built_models_agree(tmp_path):
    tensors = random_tensors(SETTINGS, dtype=torch.float32)
    built = ChatGLMForConditionalGeneration(ChatGLMConfig.from_dict(SETTINGS)).eval()
    built.load_state_dict(tensors, strict=False)
    loaded = load_model(write_model(tmp_path, SETTINGS, tensors))
    assert torch.equal(logits(loaded), logits(built))


def test_round_trip_through_save_pretrained(tmp_path):
    """What transformers writes (one tensor of the tied pair, other config keys) loads again."""
    first = load_model(write_model(tmp_path / "a", SETTINGS, random_tensors(SETTINGS)), "fp32")
    first.save_pretrained(tmp_path / "b", max_shard_size="40KB")
    assert "lm_head.weight" not in open_weights(tmp_path / "b").names
    second = load_model(tmp_path / "b")
    assert second.dtype == torch.float32
    assert torch.equal(logits(first), logits(second))


def test_head_stored_alone(tmp_path):
    tensors = random_tensors(SETTINGS)
    embedding = tensors.pop(EMBEDDING)
    model = load_model(write_model(tmp_path, SETTINGS, tensors))
    assert model.transformer.word_embeddings.weight.equal(embedding)


def test_generation_config_of_the_folder(tmp_path):
    folder = write_model(tmp_path, SETTINGS, random_tensors(SETTINGS))
    default = load_model(folder).generation_config
    assert default.eos_token_id == 105
    (folder / "generation_config.json").write_text(json.dumps({"top_p": 0.25, "eos_token_id": 7}))
    assert load_model(folder).generation_config.top_p == 0.25
    assert load_model(folder).generation_config.eos_token_id == 7


def test_unsound_folders_are_refused(tmp_path):
    folder = write_model(tmp_path, SETTINGS, random_tensors(SETTINGS))
    change_json(folder / "config.json", vocab_size=NUM_ROWS + 1)
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert_paragraph(str(caught.value), folder / "config.json", f"vocab_size is {NUM_ROWS + 1}")


def test_golden_model(shared_dir):
    """Shards written by the reference, without a tokenizer: the greedy continuation is the recorded one."""
    folder = shared_dir / "golden" / "tiny"
    model = load_model(folder, "fp32")
    case = json.loads((folder / "golden.json").read_text())["greedy"][0]
    prompt = torch.tensor([case["prompt"]])
    output = model.generate(prompt, do_sample=False, max_new_tokens=len(case["greedy"]))
    assert output[0, prompt.shape[1] :].tolist() == case["greedy"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from Linux's /proc")
def test_private_memory_is_the_model_alone(tmp_path):
    settings = {**SETTINGS, "hidden_size": 256, "inner_hidden_size": 4096, "num_layers": 16}
    folder = write_model(tmp_path, settings, random_tensors(settings), max_shard_bytes=20 << 20)

    def private_kib() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    load_model(folder).config  # noqa: B018 (what the first load allocates for good)
    before = private_kib()
    model = load_model(folder)
    model_kib = sum(parameter.nbytes for parameter in model.parameters()) / 1024
    assert model_kib > 70_000
    assert private_kib() - before < 1.1 * model_kib
