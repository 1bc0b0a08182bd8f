"""Shards are written one at a time, complete or not at all, and read back by others."""

import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from medsft.chatglm.weights import ShardWriter, open_weights, parse_size
from medsft.errors import UserError
from tests.unit.weights_toys import assert_paragraph


def test_one_shard_has_no_index(tmp_path):
    writer = ShardWriter(tmp_path / "out", 10**6)
    writer.add("w", torch.ones(3, 4))
    written = writer.finish()
    assert written.files == ("model.safetensors",)
    assert (written.num_bytes, written.num_parameters) == (48, 12)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(("weights_format", "stem"), [("safetensors", "model"), ("bin", "pytorch_model")])
def test_shards_and_index(tmp_path, weights_format, stem):
    tensors = {f"w{index}": torch.full((25,), float(index)) for index in range(5)}
    tensors["large"] = torch.ones(100)
    tensors["last"] = torch.ones(2, dtype=torch.bfloat16)
    with ShardWriter(tmp_path, 200, weights_format) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        written = writer.finish()
    suffix = "safetensors" if weights_format == "safetensors" else "bin"
    expected = [("w0", "w1"), ("w2", "w3"), ("w4",), ("large",), ("last",)]
    names = {
        name: f"{stem}-{k:05d}-of-00005.{suffix}" for k, group in enumerate(expected, 1) for name in group
    }
    assert written.weight_map == names
    index = json.loads((tmp_path / f"{stem}.{suffix}.index.json").read_text())
    assert index["weight_map"] == names
    assert index["metadata"] == {"total_size": 500 + 400 + 4, "total_parameters": 125 + 100 + 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {*names.values(), f"{stem}.{suffix}.index.json"}
    )
    files = open_weights(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(files.read(name), tensor)


@pytest.mark.parametrize("weights_format", ["safetensors", "bin"])
def test_views_are_written_alone(tmp_path, weights_format):
    """Parts of one storage, as partitioned parameters are, and a transposed tensor."""
    whole = torch.arange(100_000.0)
    with ShardWriter(tmp_path, 10**9, weights_format) as writer:
        writer.add("first", whole[:10])
        writer.add("second", whole[10:20])
        writer.add("turned", torch.arange(6.0).reshape(2, 3).t())
        written = writer.finish()
    assert (tmp_path / written.files[0]).stat().st_size < 5000
    files = open_weights(tmp_path)
    assert files.read("second").tolist() == list(range(10, 20))
    assert files.read("turned").tolist() == [[0, 3], [1, 4], [2, 5]]


def test_at_most_one_shard_is_held(tmp_path):
    """What was written is let go of: the tensors of earlier shards are freed while later ones come."""
    freed = []
    with ShardWriter(tmp_path, 1000) as writer:
        for index in range(6):
            tensor = torch.ones(250)
            weakref.finalize(tensor.untyped_storage(), freed.append, index)
            writer.add(f"w{index}", tensor)
            del tensor
        assert freed == [0, 1, 2, 3, 4]
        assert len(list(tmp_path.glob(".shard-*"))) == 5
        writer.finish()


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path):
    """The safetensors library alone leaves files that only their owner may read."""
    before = os.umask(0o022)
    try:
        for name in ("safetensors", "bin"):
            with ShardWriter(tmp_path / name, 10**6, name) as writer:
                writer.add("w", torch.ones(1))
                file = tmp_path / name / writer.finish().files[0]
            assert file.stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="disk on fire"), ShardWriter(tmp_path, 100) as writer:
        for index in range(4):
            writer.add(f"w{index}", torch.ones(25))
        assert list(tmp_path.iterdir())
        raise RuntimeError("disk on fire")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("present", ["model.safetensors", "pytorch_model-00002-of-00008.bin"])
def test_weights_of_another_model_are_not_mixed_in(tmp_path, present):
    (tmp_path / present).touch()
    with pytest.raises(UserError) as caught:
        ShardWriter(tmp_path, 100)
    assert_paragraph(str(caught.value), tmp_path, present, "without any")


def test_wrong_arguments(tmp_path):
    with pytest.raises(UserError) as caught:
        ShardWriter(tmp_path, 0)
    assert_paragraph(str(caught.value), "0 bytes", "positive")
    with pytest.raises(UserError) as caught:
        ShardWriter(tmp_path, 1, "gguf")
    assert_paragraph(str(caught.value), "'gguf'", "safetensors or bin")
    writer = ShardWriter(tmp_path, 100)
    writer.add("w", torch.ones(1))
    with pytest.raises(AssertionError):
        writer.add("w", torch.ones(1))


def test_finishing_empty_handed_writes_an_empty_file(tmp_path):
    assert ShardWriter(tmp_path, 100).finish().files == ("model.safetensors",)
    assert open_weights(tmp_path).names == ()


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("500mb", 5 * 10**8),
        (4096, 4096),
        ("7", 7),
        (" 1 KB ", 1000),
    ],
)
def test_sizes(text, num_bytes):
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GB", "two GB", "-1", "0", "1XB", "1e9"])
def test_sizes_that_are_none(text):
    with pytest.raises(UserError) as caught:
        parse_size(text)
    assert_paragraph(str(caught.value), repr(text), "2GB")


def test_a_folder_is_made(tmp_path):
    folder = tmp_path / "输出 folder" / "model"
    ShardWriter(folder, 100).finish()
    assert Path(folder / "model.safetensors").is_file()
