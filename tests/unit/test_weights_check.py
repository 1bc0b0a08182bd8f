"""A model folder is refused when its parts do not belong together, and the message says which and why."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from medsft.chatglm.tokenizer_training import NUM_APPENDED_PIECES
from medsft.chatglm.weights import check_release, open_weights
from medsft.chatglm.weights.release import RELEASES, release_faults, release_of_config
from medsft.chatglm.weights.verify import sampled_rows
from medsft.errors import UserError
from tests.unit.weights_toys import (
    NUM_IMAGE_TOKENS,
    NUM_SPARE_ROWS,
    assert_paragraph,
    change_json,
    num_pieces,
    random_tensors,
    toy_settings,
    train_toy_tokenizer,
    write_model,
    write_v01_tokenizer,
)

EMBEDDING = "transformer.word_embeddings.weight"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module")
def v11_tokenizer(tmp_path_factory) -> Path:
    return train_toy_tokenizer(tmp_path_factory.mktemp("v1.1"))


@pytest.fixture(scope="module")
def v01_tokenizer(tmp_path_factory, v11_tokenizer) -> Path:
    return write_v01_tokenizer(v11_tokenizer, tmp_path_factory.mktemp("v0.1") / "tokenizer")


@pytest.fixture(scope="module")
def settings(v11_tokenizer) -> dict:
    pieces = num_pieces(v11_tokenizer)
    return toy_settings(pieces - NUM_APPENDED_PIECES, pieces + NUM_SPARE_ROWS)


@pytest.fixture
def tensors(settings) -> dict[str, torch.Tensor]:
    return random_tensors(settings)


@pytest.fixture
def folder(tmp_path, settings, tensors, v11_tokenizer) -> Path:
    return write_model(tmp_path / "model", settings, tensors, v11_tokenizer)


def refused(folder: Path, *parts: object, **options: object) -> str:
    """The message with which `folder` is refused; it holds `parts`."""
    with pytest.raises(UserError) as caught:
        check_release(folder, **options)
    assert_paragraph(str(caught.value), *parts)
    return str(caught.value)


@pytest.mark.parametrize("weights_format", ["bin", "safetensors"])
@pytest.mark.parametrize("stored", ["both", "embedding", "head"])
def test_sound_folders_pass(tmp_path, settings, tensors, v11_tokenizer, weights_format, stored):
    if stored != "both":
        del tensors[HEAD if stored == "embedding" else EMBEDDING]
    folder = write_model(tmp_path / "m", settings, tensors, v11_tokenizer, weights_format)
    check_release(folder)
    check_release(str(folder), read_everything=True)


def test_golden_folder_passes(shared_dir):
    check_release(shared_dir / "golden" / "tiny", read_everything=True)


def test_progress_reaches_all_bytes(folder):
    calls = []
    check_release(folder, read_everything=True, progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert len(set(totals)) == 1
    assert 0.9 * totals[0] < done[-1] <= totals[0]
    assert totals[0] > open_weights(folder).num_bytes


# --- parts of different releases


def test_v01_weights_with_v11_config(tmp_path, folder, settings):
    change_json(folder / "config.json", vocab_size=settings["vocab_size"] + NUM_IMAGE_TOKENS)
    rows = settings["vocab_size"]
    refused(
        folder,
        f"{folder / 'config.json'} is of no known release (vocab_size {rows + NUM_IMAGE_TOKENS}",
        f"pytorch_model-00001-of-00003.bin has {rows} embedding rows",
        f"vocab_size is {rows + NUM_IMAGE_TOKENS} but the embedding has {rows} rows",
        "medsft convert",
    )


def test_swapped_tokenizer(folder, settings, v01_tokenizer):
    for name in ("ice_text.model", "tokenizer_config.json"):
        shutil.copyfile(v01_tokenizer / name, folder / name)
    gmask = settings["gmask_token_id"]
    refused(
        folder,
        f"the tokenizer {folder / 'ice_text.model'}",
        f"after 20000 image tokens, [gMASK] is {gmask + NUM_IMAGE_TOKENS}",
        f"gmask_token_id is {gmask} but the tokenizer gives [gMASK] the id {gmask + NUM_IMAGE_TOKENS}",
        "from one release",
    )


def test_tokenizer_from_another_folder(folder, v11_tokenizer, v01_tokenizer):
    check_release(folder, tokenizer_dir=v11_tokenizer)
    refused(folder, v01_tokenizer / "ice_text.model", tokenizer_dir=v01_tokenizer)
    (folder / "ice_text.model").unlink()
    check_release(folder)


def test_only_tokenizer_config_swapped(folder, settings):
    """v1.1's pieces with v0.1's settings, which state no num_image_tokens: all ids are 20,000 too high."""
    change_json(folder / "tokenizer_config.json", num_image_tokens=None)
    refused(folder, f"the id {settings['gmask_token_id'] + NUM_IMAGE_TOKENS}", "tokenizer_config.json")


def test_config_ids_beyond_the_embedding(folder):
    change_json(folder / "config.json", bos_token_id=130004, gmask_token_id=130001)
    refused(
        folder,
        "config.json is from v1.1",
        "the weights are of no known release",
        "gmask_token_id is 130001 but the embedding ends at row",
    )


def test_eos_may_be_either_end_token(folder):
    change_json(folder / "config.json", eos_token_id=2)
    check_release(folder)
    change_json(folder / "config.json", eos_token_id=7)
    refused(folder, "eos_token_id is 7 but the tokenizer gives <eop> the id")


@pytest.mark.parametrize("config", ["v0.1", "v1.1"])
@pytest.mark.parametrize("weights", ["v0.1", "v1.1"])
@pytest.mark.parametrize("tokenizer", ["v0.1", "v1.1"])
def test_real_releases_mixed(tmp_path, shared_dir, config, weights, tokenizer):
    """The released configs and tokenizers around narrow weights with the released numbers of rows."""
    real = json.loads((shared_dir / "chatglm6b" / config / "config.json").read_text())
    narrow = {"hidden_size": 4, "inner_hidden_size": 8, "num_layers": 1, "num_attention_heads": 1}
    rows = RELEASES[weights].num_rows
    tensors = random_tensors(
        {**real, **narrow, "vocab_size": rows, "bos_token_id": 130004, "eos_token_id": 130005}
    )
    source = shared_dir / "chatglm6b" / tokenizer
    folder = write_model(tmp_path / "模型", {**real, **narrow}, tensors, source, max_shard_bytes=10**9)
    if config == weights == tokenizer:
        check_release(folder)
        return
    message = refused(
        folder,
        f"config.json is from {config} (vocab_size {RELEASES[config].num_rows}",
        f"the weights are from {weights} (pytorch_model.bin has {rows} embedding rows)",
        f"ice_text.model is from {tokenizer} ({RELEASES[tokenizer].num_pieces} pieces",
        "medsft convert",
    )
    assert (f"vocab_size is {RELEASES[config].num_rows}" in message) == (config != weights)
    assert ("but the tokenizer gives <sop>" in message) == (config != tokenizer)


def test_release_numbers_are_the_released_ones(shared_dir):
    for name, release in RELEASES.items():
        stated = json.loads((shared_dir / "chatglm6b" / name / "config.json").read_text())
        assert stated["vocab_size"] == release.num_rows
        assert {field: stated.get(field, value) for field, value in release.ids.items()} == release.ids
        assert release_of_config(stated) == name
        assert num_pieces(shared_dir / "chatglm6b" / name) == release.num_pieces


def test_config_mixed_in_itself():
    settings = {"vocab_size": 130_528, "bos_token_id": 150_004}
    assert release_of_config(settings) == "mixed"
    assert release_faults(settings, 130_528, None) == [
        "bos_token_id is 150004 but the embedding ends at row 130527"
    ]


@pytest.mark.parametrize("name", ["ice_text.model", "config.json", "tokenizer_config.json"])
def test_git_lfs_pointer_beside_the_weights(folder, name):
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:5e9\nsize 2706249\n")
    refused(folder, folder / name, "git-lfs pointer of a file of 2.6 MiB", "git lfs pull")


def test_damaged_tokenizer(folder):
    (folder / "ice_text.model").write_bytes((folder / "ice_text.model").read_bytes()[:1000])
    refused(folder, folder / "ice_text.model", "Download this file again")


# --- config


def test_missing_and_broken_config(folder):
    (folder / "config.json").write_text('{"model_type": "chatglm", ')
    refused(folder, folder / "config.json", "not valid JSON")
    (folder / "config.json").write_text("[1]")
    refused(folder, folder / "config.json", "a JSON list")
    (folder / "config.json").unlink()
    refused(folder, f"{folder / 'config.json'} is missing", "Download it from the release")


def test_folder_missing(tmp_path):
    refused(tmp_path / "nowhere", tmp_path / "nowhere", "does not exist")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model_type": "llama"}, ("'llama'", "first generation")),
        ({"padded_vocab_size": 65024}, ("ChatGLM2 or ChatGLM3", "first generation")),
        ({"quantization_bit": 3}, ("quantization_bit 3", "8 or 4")),
        ({"quantization_bit": 4, "quantization_embeddings": True}, ("quantization_embeddings", "int4-qe")),
        ({"pre_seq_len": 128}, ("pre_seq_len 128", "P-tuning", "trained from")),
        ({"vocab_size": None}, ("no vocab_size", "release")),
        (
            {"num_layers": "2", "hidden_size": 32.0},
            ("hidden_size is 32.0, num_layers is '2'", "whole numbers"),
        ),
        ({"torch_dtype": "float17"}, ("float17", "Mend it")),
        ({"num_attention_heads": 3}, ("hidden_size 32", "num_attention_heads")),
    ],
)
def test_configs_of_other_models(folder, changes, parts):
    change_json(folder / "config.json", **changes)
    refused(folder, folder / "config.json", *parts)


# --- names, types, shapes


def rewrite(folder: Path, settings: dict, tensors: dict[str, torch.Tensor]) -> Path:
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    return write_model(folder, settings, tensors)


def test_quantised_weights(folder, settings, tensors):
    name = "transformer.layers.0.mlp.dense_h_to_4h.weight"
    scaled = {**tensors, f"{name}_scale": torch.ones(64)}
    refused(rewrite(folder, settings, scaled), f"{name}_scale", "quantization_bit", "fp16 release")
    integers = {**tensors, name: torch.ones(64, 32, dtype=torch.int8)}
    refused(rewrite(folder, settings, integers), name, "torch.int8", "fp16 release")
    eighths = {**tensors, name: torch.ones(64, 32).to(torch.float8_e4m3fn)}
    refused(rewrite(folder, settings, eighths), name, "torch.float8_e4m3fn", "fp16 release")
    refused(
        rewrite(folder, {**settings, "quantization_bit": 8}, tensors), "must be torch.int8", "one release"
    )


def test_placeholders_of_zero_3(folder, settings, tensors):
    empty = {**tensors, EMBEDDING: torch.empty(0)}
    refused(rewrite(folder, settings, empty), EMBEDDING, "is empty", "ZeRO-3", "zero_to_fp32.py")


def test_flattened_embedding(folder, settings, tensors):
    flat = {**tensors, EMBEDDING: tensors[EMBEDDING].flatten()}
    refused(rewrite(folder, settings, flat), EMBEDDING, f"not ({settings['vocab_size']}, 32)")


def test_prefix_encoder(folder, settings, tensors):
    tensors["transformer.prefix_encoder.embedding.weight"] = torch.ones(4, 4)
    refused(rewrite(folder, settings, tensors), "prefix_encoder.embedding.weight", "P-tuning", "trained from")


def test_missing_and_unknown_names(folder, settings, tensors):
    gone = "transformer.layers.1.attention.dense.bias"
    del tensors[gone]
    tensors["transformer.layers.1.attention.dense.lora_A"] = torch.ones(2)
    message = refused(
        rewrite(folder, settings, tensors),
        f"1 tensors are missing ({gone})",
        "1 are unknown (transformer.layers.1.attention.dense.lora_A (",
        "pytorch_model-0000",
        "num_layers 2",
        "Take weights and config.json from one release",
    )
    assert "inv_freq" not in message


def test_config_with_another_number_of_layers(folder):
    change_json(folder / "config.json", num_layers=3)
    refused(folder, "num_layers 3", "12 tensors are missing (transformer.layers.2.", "and 8 more")
    change_json(folder / "config.json", num_layers=1)
    refused(folder, "num_layers 1", "12 are unknown (transformer.layers.1.")


def test_shapes_that_do_not_fit(folder, settings, tensors):
    name = "transformer.layers.0.mlp.dense_4h_to_h.weight"
    tensors[name] = tensors[name].t().contiguous()
    refused(
        rewrite(folder, settings, tensors), name, "pytorch_model-0000", "has shape (64, 32), not (32, 64)"
    )
    change_json(folder / "config.json", inner_hidden_size=128)
    refused(folder, "inner_hidden_size 128", "dense_h_to_4h.weight", "not (128, 32)")


# --- ties


def test_tied_tensors_that_differ(folder, settings, tensors):
    tensors[HEAD][-1] += 1
    rewrite(folder, settings, tensors)
    row = settings["vocab_size"] - 1
    refused(folder, EMBEDDING, HEAD, "pytorch_model-0000", f"row {row}", '"tie_word_embeddings": false')
    change_json(folder / "config.json", tie_word_embeddings=False)
    check_release(folder, read_everything=True)


def test_a_difference_between_sampled_rows_is_found_by_reading_everything(tmp_path):
    settings = toy_settings(1000, 5000)
    tensors = random_tensors(settings)
    untouched = next(row for row in range(5000) if row not in sampled_rows(5000, 1024))
    tensors[HEAD][untouched, 3] += 1
    folder = write_model(tmp_path / "m", settings, tensors)
    check_release(folder)
    refused(folder, "differ", '"tie_word_embeddings": false', read_everything=True)


def test_untied_config_needs_both(tmp_path, settings, tensors):
    del tensors[HEAD]
    folder = write_model(tmp_path / "m", {**settings, "tie_word_embeddings": False}, tensors)
    refused(folder, "missing (lm_head.weight)", '"tie_word_embeddings": false', "set it to true")


@pytest.mark.parametrize(
    ("num_rows", "num_samples", "rows"),
    [(1, 4, [0]), (2, 4, [0, 1]), (4, 4, [0, 1, 2, 3]), (10, 4, [0, 3, 6, 9]), (9, 1, [0])],
)
def test_sampled_rows(num_rows, num_samples, rows):
    assert sampled_rows(num_rows, num_samples) == rows


# --- contents


def test_flipped_bit_in_tensor_bytes(folder):
    """Headers do not show it; the checksums of a .bin file do."""
    shard = folder / "pytorch_model-00002-of-00003.bin"
    content = bytearray(shard.read_bytes())
    files = open_weights(folder)
    name = next(name for name in files.names if files.file(name) == shard and len(files.shape(name)) == 2)
    place = content.find(files.read(name).numpy().tobytes())
    assert place > 0
    del files
    content[place + 100] ^= 1
    shard.write_bytes(content)
    check_release(folder)
    message = refused(folder, shard, "Download this file again", read_everything=True)
    assert re.search(r"CRC-32 for file '.*/data/\d+'", message)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights_format", ["bin", "safetensors"])
def test_values_that_are_not_finite(tmp_path, settings, tensors, weights_format, value):
    name = "transformer.layers.1.mlp.dense_h_to_4h.weight"
    tensors[name][5, 5] = value
    folder = write_model(tmp_path / "m", settings, tensors, weights_format=weights_format)
    check_release(folder)
    refused(folder, name, folder, "NaN or infinite", "earlier checkpoint", read_everything=True)


def test_blank_matrix(tmp_path, settings, tensors):
    name = "transformer.layers.0.attention.dense.weight"
    tensors[name].zero_()
    tensors["transformer.layers.0.attention.dense.bias"].zero_()  # which is as models begin
    folder = write_model(tmp_path / "m", settings, tensors, weights_format="safetensors")
    check_release(folder)
    refused(folder, name, "nothing but zeros", "checksum", read_everything=True)
