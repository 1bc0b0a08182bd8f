"""Random models: shapes, files, determinism. Learning from scratch: test_init_learning.py."""

import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from medsft.chatglm.init import (
    EMBEDDING_NAME,
    HEAD_NAME,
    PRESETS,
    TensorSpec,
    count_parameters,
    make_config,
    parameter_shapes,
    plan_shards,
    release_tensors,
    write_random_model,
)
from medsft.chatglm.initialization import weight_std
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.errors import UserError

SENTENCES = ["感冒的常见症状有哪些？", "高血压患者要少吃盐。", "头痛怎么办？", "多喝水，注意休息。"]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("词表")
    train_tokenizer(SENTENCES, folder, vocab_size=500)
    return folder


def load(folder):
    return AutoModel.from_pretrained(folder, output_loading_info=True)


def test_presets_have_the_documented_sizes(tokenizer_dir):
    tokenizer = ChatGLMTokenizer.from_pretrained(tokenizer_dir)
    documented = {
        "toy": 0.4e6, "tiny": 1.4e6, "small": 3.2e6, "60m": 59e6, "350m": 353e6, "1b": 1.01e9, "6b": 5.64e9
    }  # fmt: skip
    assert PRESETS.keys() == documented.keys()
    for preset, size in documented.items():
        config = make_config(tokenizer, preset)
        body = count_parameters(config) - config.vocab_size * config.hidden_size
        assert body == pytest.approx(size, rel=0.02), preset
    assert count_parameters(ChatGLMConfig(**PRESETS["6b"])) == 6_173_286_400


@pytest.mark.parametrize("tied", [True, False])
def test_counted_parameters_are_the_models(tied):
    config = ChatGLMConfig(**PRESETS["tiny"], tie_word_embeddings=tied)
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(config)
    assert count_parameters(config) == model.num_parameters()
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == parameter_shapes(
        config
    )


def test_tensors_are_those_of_the_release(shared_dir):
    index = json.loads((shared_dir / "chatglm6b/v1.1/pytorch_model.bin.index.json").read_text())
    tensors = release_tensors(ChatGLMConfig(), torch.float16)
    assert {tensor.name for tensor in tensors} == set(index["weight_map"])


@pytest.mark.parametrize(("release", "rows"), [("v1.1", 130528), ("v0.1", 150528)])
def test_released_tokenizers_get_the_released_rows(shared_dir, release, rows):
    tokenizer = AutoTokenizer.from_pretrained(shared_dir / "chatglm6b" / release)
    config = make_config(tokenizer, "6b")
    released = ChatGLMConfig.from_pretrained(shared_dir / "chatglm6b" / release)
    assert config.vocab_size == rows
    for name in ("bos", "eos", "mask", "gmask", "pad"):
        assert getattr(config, f"{name}_token_id") == getattr(released, f"{name}_token_id")
    for name in PRESETS["6b"]:
        assert getattr(config, name) == getattr(released, name)


def test_bin_layout(tokenizer_dir, tmp_path):
    config = write_random_model(tmp_path, tokenizer_dir, "toy", shard_size="200KB", seed=3)
    index = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.bin"))
    assert shards == [f"pytorch_model-{n:05d}-of-{len(shards):05d}.bin" for n in range(1, len(shards) + 1)]
    assert len(shards) > 3 and set(index["weight_map"].values()) == set(shards)
    weights = {}
    for shard in shards:
        part = torch.load(tmp_path / shard, weights_only=True)
        assert all(index["weight_map"][name] == shard for name in part)
        weights |= part
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    assert torch.equal(weights[HEAD_NAME], weights[EMBEDDING_NAME])
    assert weights["transformer.layers.1.attention.rotary_emb.inv_freq"].dtype == torch.float16
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert config.vocab_size % 64 == 0
    model, info = load(tmp_path)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == count_parameters(config) and model.dtype == torch.float16
    assert model.generation_config.top_p == 0.7
    assert AutoTokenizer.from_pretrained(tmp_path).encode("感冒")[-1] == config.bos_token_id
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_size", ["100KB", "2GB"])
def test_safetensors_hold_the_same_values(tokenizer_dir, tmp_path, tied, shard_size):
    settings = {"overrides": {"tie_word_embeddings": tied}, "seed": 4, "dtype": "float32"}
    write_random_model(tmp_path / "a", tokenizer_dir, **settings)
    write_random_model(
        tmp_path / "b", tokenizer_dir, **settings, shard_size=shard_size, weights_format="safetensors"
    )
    (left, _), (right, info) = load(tmp_path / "a"), load(tmp_path / "b")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    files = {path.name for path in (tmp_path / "b").glob("*.safetensors*")}
    assert ("model.safetensors" in files) == (len(files) == 1) == (shard_size == "2GB")
    assert ("model.safetensors.index.json" in files) == (shard_size == "100KB")
    modes = {path.stat().st_mode for path in (tmp_path / "b").iterdir()}
    assert len(modes) == 1  # readable for whom the rest of the folder is
    for name, tensor in left.state_dict().items():
        assert torch.equal(right.state_dict()[name], tensor), name
    assert torch.equal(left.lm_head.weight, left.transformer.word_embeddings.weight) == tied


def test_values_depend_on_the_seed_alone(tokenizer_dir, tmp_path):
    def weights(name, **settings):
        write_random_model(tmp_path / name, tokenizer_dir, **settings)
        return load(tmp_path / name)[0].state_dict()

    first = weights("first", seed=1, dtype="float32")
    for name, other in (
        ("again", weights("again", seed=1, dtype="float32", shard_size=50_000)),
        ("half", weights("half", seed=1)),
    ):
        for key, tensor in first.items():
            assert torch.equal(tensor.to(other[key].dtype), other[key]), (name, key)
    assert not torch.equal(first[EMBEDDING_NAME], weights("other", seed=2, dtype="float32")[EMBEDDING_NAME])
    one, two = (tmp_path / name / "pytorch_model-00001-of-00001.bin" for name in ("half", "half again"))
    write_random_model(two.parent, tokenizer_dir, seed=1)
    assert one.read_bytes() == two.read_bytes()


def test_a_model_built_in_memory_is_filled_alike():
    config = ChatGLMConfig(**PRESETS["small"], vocab_size=1024, bos_token_id=104, eos_token_id=105)
    torch.manual_seed(0)
    for name, parameter in ChatGLMForConditionalGeneration(config).named_parameters():
        *_, role, leaf = name.split(".")
        if leaf == "bias":
            assert parameter.abs().max() == 0
        elif role.endswith("layernorm"):
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(
                weight_std(role, parameter.shape, config), rel=0.02
            )


def test_first_loss_is_near_that_of_a_guess():
    torch.manual_seed(0)
    for preset in ("toy", "tiny", "small"):
        config = ChatGLMConfig(**PRESETS[preset], vocab_size=1024, bos_token_id=104, eos_token_id=105)
        model = ChatGLMForConditionalGeneration(config)
        ids = torch.randint(200, 1000, (4, 40))
        ids[:, 20:22] = torch.tensor([101, 104])
        with torch.no_grad():
            loss = model(ids, labels=ids).loss.item()
        assert 6.9 < loss < 8.5, preset  # ln(1024) = 6.93


def test_shards_are_cut_in_order():
    tensors = [TensorSpec(str(size), (size,), torch.float16) for size in (1, 2, 9, 3, 1, 1)]
    cut = [[tensor.name for tensor in shard] for shard in plan_shards(tensors, max_shard_bytes=10)]
    assert cut == [["1", "2"], ["9"], ["3", "1", "1"]]


def test_shards_are_reported(tokenizer_dir, tmp_path):
    seen = []
    write_random_model(tmp_path, tokenizer_dir, shard_size="300KB", on_shard=lambda *done: seen.append(done))
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)] and len(seen) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "7b"}, "no preset '7b'; choose one of toy"),
        ({"overrides": {"num_layer": 2}}, "unknown model field num_layer"),
        ({"overrides": {"vocab_size": 100}}, "vocab_size 100 is less than the tokenizer's"),
        ({"overrides": {"hidden_size": 100}}, "is not a multiple of 4 x num_attention_heads"),
        ({"dtype": "int8"}, "The type int8 is not one for weights"),
        ({"weights_format": "pt"}, "weights_format is 'pt'"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(tokenizer_dir, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        write_random_model(tmp_path / "model", tokenizer_dir, **arguments)
    assert not (tmp_path / "model").exists()


def test_a_model_is_overwritten_only_when_told(tokenizer_dir, tmp_path):
    write_random_model(tmp_path, tokenizer_dir, shard_size="200KB")
    with pytest.raises(UserError, match=r"already holds a model \(config.json"):
        write_random_model(tmp_path, tokenizer_dir)
    write_random_model(tmp_path, tokenizer_dir, overwrite=True, weights_format="safetensors")
    assert not list(tmp_path.glob("*.bin*"))
    load(tmp_path)


def test_the_tokenizers_folder_can_become_the_models(tokenizer_dir, tmp_path):
    for name in ("ice_text.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tokenizer_dir / name).read_bytes())
    write_random_model(tmp_path, tmp_path)
    load(tmp_path)
