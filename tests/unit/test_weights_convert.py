"""Folders are rewritten whole or not at all; slimming moves every id and changes no logit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from medsft.chatglm import ChatGLMTokenizer
from medsft.chatglm.tokenizer_training import NUM_APPENDED_PIECES
from medsft.chatglm.weights import check_release, convert, load_model, open_weights
from medsft.chatglm.weights.convert import check_space
from medsft.cli import app
from medsft.errors import UserError
from medsft.provenance import trained_template
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

HEAD = "lm_head.weight"
EMBEDDING = "transformer.word_embeddings.weight"


@pytest.fixture(scope="module")
def v11_tokenizer(tmp_path_factory) -> Path:
    return train_toy_tokenizer(tmp_path_factory.mktemp("v1.1"))


@pytest.fixture(scope="module")
def v11(tmp_path_factory, v11_tokenizer) -> Path:
    pieces = num_pieces(v11_tokenizer)
    settings = toy_settings(pieces - NUM_APPENDED_PIECES, pieces + NUM_SPARE_ROWS)
    return write_model(tmp_path_factory.mktemp("model"), settings, random_tensors(settings), v11_tokenizer)


@pytest.fixture(scope="module")
def v01(tmp_path_factory, v11_tokenizer) -> Path:
    """A model folder in v0.1's layout: 20,000 image tokens first, config without mask ids."""
    folder = write_v01_tokenizer(v11_tokenizer, tmp_path_factory.mktemp("v0.1") / "model")
    pieces = num_pieces(folder)
    settings = toy_settings(
        NUM_IMAGE_TOKENS + pieces,
        NUM_IMAGE_TOKENS + pieces + NUM_APPENDED_PIECES + NUM_SPARE_ROWS,
        NUM_IMAGE_TOKENS,
    )
    del settings["mask_token_id"], settings["gmask_token_id"]
    write_model(folder, settings, random_tensors(settings), max_shard_bytes=1_000_000)
    generation = {"eos_token_id": [settings["eos_token_id"], 20_002], "pad_token_id": 20_003, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "LICENSE").write_text("Apache 2.0")
    (folder / "tokenization_chatglm.py").write_text("# v0.1's code")
    (folder / "optimizer.pt").write_text("not part of the model")
    return folder


def refused(*parts: object, **arguments: object) -> None:
    with pytest.raises(UserError) as caught:
        convert(**arguments)
    assert_paragraph(str(caught.value), *parts)


def test_slimming_keeps_every_logit(tmp_path, v01, v11_tokenizer):
    output = tmp_path / "slim 模型"
    convert(v01, output, "v1.1", tokenizer_dir=v11_tokenizer)
    old, new = load_model(v01, "fp32"), load_model(output, "fp32")
    assert new.config.vocab_size == old.config.vocab_size - NUM_IMAGE_TOKENS
    old_tokenizer, new_tokenizer = (ChatGLMTokenizer.from_pretrained(path) for path in (v01, output))
    text = "糖尿病 患者 应当 控制 饮食"
    old_ids, new_ids = (tokenizer(text)["input_ids"] for tokenizer in (old_tokenizer, new_tokenizer))
    assert [index - NUM_IMAGE_TOKENS for index in old_ids] == new_ids
    assert new_ids[-2:] == [new.config.gmask_token_id, new.config.bos_token_id]
    with torch.no_grad():
        old_logits = old(torch.tensor([old_ids])).logits[..., NUM_IMAGE_TOKENS:]
        new_logits = new(torch.tensor([new_ids])).logits
    torch.testing.assert_close(new_logits, old_logits, rtol=0, atol=1e-6)
    assert new_logits.std() > 0.01


def test_slimmed_folder_is_complete(tmp_path, v01, v11_tokenizer):
    output = tmp_path / "slim"
    written = convert(str(v01), str(output), "v1.1", tokenizer_dir=str(v11_tokenizer), shard_size="40KB")
    assert len(written.files) == 2
    config = json.loads((output / "config.json").read_text())
    before = json.loads((v01 / "config.json").read_text())
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert config[field] == before[field] - NUM_IMAGE_TOKENS
    assert config["gmask_token_id"] == config["bos_token_id"] - 3
    assert config["mask_token_id"] == config["bos_token_id"] - 4
    assert config["hidden_size"] == before["hidden_size"]
    generation = json.loads((output / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [config["eos_token_id"], 2], "pad_token_id": 3, "top_p": 0.6}
    assert (output / "LICENSE").read_text() == "Apache 2.0"
    assert (output / "ice_text.model").read_bytes() == (v11_tokenizer / "ice_text.model").read_bytes()
    names = {path.name for path in output.iterdir()}
    assert "tokenization_chatglm.py" not in names, "v0.1's code does not read v1.1's tokenizer"
    assert "optimizer.pt" not in names
    check_release(output, read_everything=True)
    assert [path.name for path in tmp_path.iterdir()] == ["slim"]


@pytest.mark.parametrize("quantize", [None, 4])
def test_a_tuned_model_keeps_the_form_of_its_questions(tmp_path, v11, quantize):
    source = shutil.copytree(v11, tmp_path / "tuned")
    (source / "medsft.json").write_text('{"prompt_template": "med-chatglm"}')
    convert(source, tmp_path / "converted", quantize=quantize)
    assert trained_template(tmp_path / "converted") == "med-chatglm"


def test_the_final_model_of_a_run_is_converted(tmp_path, v11):
    shutil.copytree(v11, tmp_path / "run" / "model")
    command = ["convert", "--model", str(tmp_path / "run"), "--output_dir", str(tmp_path / "converted")]
    assert CliRunner().invoke(app, command).exit_code == 0
    check_release(tmp_path / "converted")


def test_slimming_weights_without_their_tokenizer(tmp_path, shared_dir):
    """Real numbers of rows, ids from v0.1's config alone, as the weights of Med-ChatGLM come."""
    settings = json.loads((shared_dir / "chatglm6b" / "v0.1" / "config.json").read_text())
    settings |= {"hidden_size": 4, "inner_hidden_size": 8, "num_layers": 1, "num_attention_heads": 1}
    source = write_model(tmp_path / "a", settings, random_tensors(settings), max_shard_bytes=10**9)
    convert(source, tmp_path / "b", "v1.1", tokenizer_dir=shared_dir / "chatglm6b" / "v1.1")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    released = json.loads((shared_dir / "chatglm6b" / "v1.1" / "config.json").read_text())
    fields = [field for field in released if field.endswith("_token_id") or field == "vocab_size"]
    assert {field: config[field] for field in fields} == {field: released[field] for field in fields}
    refused(
        "cannot be slimmed",
        "20000 image tokens itself",
        source=source,
        output=tmp_path / "c",
        vocabulary="v1.1",
        tokenizer_dir=shared_dir / "chatglm6b" / "v0.1",
    )
    # With its tokenizer beside the weights the 130,000 text pieces are compared one by one.
    for name in ("ice_text.model", "tokenizer_config.json"):
        shutil.copyfile(shared_dir / "chatglm6b" / "v0.1" / name, source / name)
    convert(source, tmp_path / "d", "v1.1", tokenizer_dir=shared_dir / "chatglm6b" / "v1.1")


@pytest.mark.parametrize("weights_format", ["safetensors", "bin"])
def test_another_format_holds_the_same_tensors(tmp_path, v11, weights_format):
    output = tmp_path / "out"
    convert(v11, output, weights_format=weights_format, shard_size=40_000)
    before, after = open_weights(v11), open_weights(output)
    # The head is left out where transformers leaves it out, and kept where the original code expects it.
    dropped = {HEAD} if weights_format == "safetensors" else set()
    assert set(before.names) - set(after.names) == dropped
    assert any("inv_freq" in name for name in after.names)
    for name in after.names:
        assert torch.equal(after.read(name), before.read(name))
        assert after.dtype(name) == before.dtype(name)
    assert json.loads((output / "config.json").read_text()) == json.loads((v11 / "config.json").read_text())
    assert (output / "ice_text.model").is_file()


def test_untied_pairs_are_both_kept(tmp_path):
    settings = toy_settings(100, 120, tie_word_embeddings=False)
    source = write_model(tmp_path / "a", settings, random_tensors(settings))
    convert(source, tmp_path / "b")
    assert {EMBEDDING, HEAD} <= set(open_weights(tmp_path / "b").names)


def test_another_type(tmp_path, v11):
    convert(v11, tmp_path / "out", dtype="bf16")
    before, after = open_weights(v11), open_weights(tmp_path / "out")
    for name in after.names:
        expected = torch.float16 if "inv_freq" in name else torch.bfloat16
        assert after.dtype(name) == expected
        assert torch.equal(after.read(name), before.read(name).to(expected))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("verify", [True, False])
def test_progress_ends_at_all_bytes(tmp_path, v11, verify):
    calls = []
    convert(v11, tmp_path / "out", verify=verify, progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_damaged_source_is_refused_and_nothing_is_left(tmp_path, v11):
    source = shutil.copytree(v11, tmp_path / "source")
    shard = sorted(source.glob("*.bin"))[1]
    files = open_weights(source)
    name = next(name for name in files.names if files.file(name) == shard and len(files.shape(name)) == 2)
    content = bytearray(shard.read_bytes())
    content[content.find(files.read(name).numpy().tobytes())] ^= 4
    del files
    shard.write_bytes(content)
    refused(shard, "Download this file again", source=source, output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_error_in_the_middle_leaves_nothing(tmp_path, v11):
    def stop(done: int, total: int) -> None:
        if done > 0.9 * total:
            assert list(tmp_path.glob(".out.partial-*/.shard-*")), "nothing was written yet"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(v11, tmp_path / "out", shard_size=5000, progress=stop)
    assert not list(tmp_path.iterdir())


def test_output_that_is_not_empty(tmp_path, v11):
    (tmp_path / "notes.txt").write_text("mine")
    refused(tmp_path, "not an empty folder", "name a new one", source=v11, output=tmp_path)
    refused(tmp_path / "notes.txt", "not an empty folder", source=v11, output=tmp_path / "notes.txt")
    refused(v11, "not an empty folder", source=v11, output=v11)
    (tmp_path / "empty").mkdir()
    convert(v11, tmp_path / "empty")
    check_release(tmp_path / "empty")


def test_wrong_arguments(tmp_path, v11, v01, v11_tokenizer):
    output = tmp_path / "out"
    refused("'v2'", "'v1.1'", source=v11, output=output, vocabulary="v2")
    refused("'gguf'", "safetensors or bin", source=v11, output=output, weights_format="gguf")
    refused("huge", source=v11, output=output, shard_size="huge")
    refused("int4", source=v11, output=output, dtype="int4")
    refused("slim already", source=v11, output=output, vocabulary="v1.1", tokenizer_dir=v11_tokenizer)
    refused("cannot be derived", "--tokenizer", source=v01, output=output, vocabulary="v1.1")
    refused(
        f"{tmp_path} has no ice_text.model",
        source=v01,
        output=output,
        vocabulary="v1.1",
        tokenizer_dir=tmp_path,
    )
    assert not list(tmp_path.iterdir())


def test_tokenizer_that_does_not_fit(tmp_path, v01, v11_tokenizer):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("ice_text.model", "tokenizer_config.json"):
        shutil.copyfile(v11_tokenizer / name, other / name)
    change_json(other / "tokenizer_config.json", num_image_tokens=1)
    arguments = {"source": v01, "output": tmp_path / "out", "vocabulary": "v1.1", "tokenizer_dir": other}
    refused("cannot be slimmed", other, "1 image tokens itself", "<sop> is 20", **arguments)


def test_pieces_in_another_order(tmp_path, v01, v11_tokenizer):
    from sentencepiece import sentencepiece_model_pb2 as proto

    other = shutil.copytree(v11_tokenizer, tmp_path / "other")
    model = proto.ModelProto.FromString((other / "ice_text.model").read_bytes())
    first, second = model.pieces[20].piece, model.pieces[21].piece
    model.pieces[20].piece, model.pieces[21].piece = second, first
    (other / "ice_text.model").write_bytes(model.SerializeToString())
    refused(
        f"piece 20 is {first!r} here and {second!r} there",
        source=v01,
        output=tmp_path / "out",
        vocabulary="v1.1",
        tokenizer_dir=other,
    )


def test_disk_too_full(tmp_path, v11):
    class Vast:
        """Weights of an exabyte."""

        names = ("w",)

        def shape(self, name: str) -> torch.Size:
            return torch.Size((1 << 30, 1 << 29))

        def dtype(self, name: str) -> torch.dtype:
            return torch.float16

    with pytest.raises(UserError) as caught:
        check_space(tmp_path / "not" / "there" / "yet", Vast(), None)
    assert_paragraph(str(caught.value), f"{tmp_path} has", "1073741824.0 GiB", "another disk")
    check_space(tmp_path, open_weights(v11), torch.float32)
