"""Weight files of all kinds are found, mapped and read; broken ones are named with a remedy."""

import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medsft.chatglm.weights import ShardWriter, open_weights
from medsft.errors import UserError
from tests.unit.weights_toys import assert_paragraph

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:fe5bac6bfa5b5404ddfe3fabe04862b785e013afd7b308b7beca08239f9489fa\nsize 1904491802\n"
)
FORMATS = ("safetensors", "bin")
SUFFIX = {"safetensors": ".safetensors", "bin": ".bin"}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(64, 48).half(),
        "a.bias": torch.randn(64),
        "b.weight": torch.randn(30, 64).bfloat16(),
        "scalar": torch.tensor(2.5),
    }


def write(folder: Path, tensors: dict[str, Tensor], weights_format: str, max_shard_bytes: int) -> Path:
    with ShardWriter(folder, max_shard_bytes, weights_format) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish()
    return folder


def rss_kib(field: str) -> int:
    """RssAnon (this process's own memory) or RssFile (mapped file pages touched so far)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field))


@pytest.mark.parametrize("weights_format", FORMATS)
@pytest.mark.parametrize("layout", ["one file", "shards", "shards without index"])
def test_all_kinds_give_the_same_tensors(tmp_path, tensors, weights_format, layout):
    folder = tmp_path / "模型 'one' \"two\""
    write(folder, tensors, weights_format, 10**6 if layout == "one file" else 4097)
    assert len(list(folder.glob(f"*{SUFFIX[weights_format]}"))) == (1 if layout == "one file" else 3)
    if layout == "shards without index":
        next(folder.glob("*.index.json")).unlink()
    files = open_weights(str(folder))
    assert set(files.names) == set(tensors)
    for name, tensor in tensors.items():
        assert files.shape(name) == tensor.shape
        assert files.dtype(name) == tensor.dtype
        assert torch.equal(files.read(name), tensor)
        assert files.file(name).suffix == SUFFIX[weights_format]
    assert files.num_bytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("weights_format", FORMATS)
def test_ranges_are_counted_and_equal(tmp_path, tensors, weights_format):
    files = open_weights(write(tmp_path / "m", tensors, weights_format, 4097))
    assert files.bytes_read == 0
    flat = tensors["a.weight"].flatten()
    for start, end in ((0, 1), (5, 77), (3000, 3072), (10, 10), (0, 3072)):
        assert torch.equal(files.read_range("a.weight", start, end), flat[start:end])
    assert files.bytes_read == 2 * (1 + 72 + 72 + 0 + 3072)
    files.read("a.bias")
    assert files.bytes_read == 2 * 3217 + 4 * 64
    with pytest.raises(AssertionError):
        files.read_range("a.weight", 0, 3073)


def test_flattening_transposed_tensors(tmp_path):
    tensor = torch.arange(12.0).reshape(3, 4).t()
    torch.save({"w": tensor}, tmp_path / "pytorch_model.bin")
    files = open_weights(tmp_path)
    assert not files.read("w").is_contiguous()
    assert files.read_range("w", 2, 7).tolist() == tensor.flatten()[2:7].tolist()


def test_safetensors_go_before_bin(tmp_path, tensors):
    write(tmp_path / "m", tensors, "safetensors", 5000)
    torch.save({"old": torch.zeros(1)}, tmp_path / "m" / "pytorch_model.bin")
    assert set(open_weights(tmp_path / "m").names) == set(tensors)


def test_a_tied_pair_may_be_stored_once(tmp_path):
    save_file({"lm_head.weight": torch.ones(4, 2)}, tmp_path / "model.safetensors")
    files = open_weights(tmp_path)
    assert files.shape("transformer.word_embeddings.weight") == (4, 2)
    assert files.read_range("transformer.word_embeddings.weight", 0, 3).tolist() == [1, 1, 1]
    with pytest.raises(UserError) as caught:
        files.read("transformer.final_layernorm.bias")
    assert_paragraph(str(caught.value), "transformer.final_layernorm.bias", tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts pages through Linux's /proc")
@pytest.mark.parametrize("weights_format", FORMATS)
def test_reading_maps_pages_and_copies_none(tmp_path, weights_format):
    num_mib = 64
    big = {f"w{index}": torch.ones(num_mib << 18) for index in range(2)}
    write(tmp_path / "m", big, weights_format, 1 << 40)
    del big
    torch.ones(1).sum()  # what the first sum allocates for good is not the files'
    private, mapped = rss_kib("RssAnon"), rss_kib("RssFile")
    files = open_weights(tmp_path / "m")
    assert rss_kib("RssFile") - mapped < 4096
    # One MiB in the middle: its pages and what the kernel reads around them, not the tensor.
    middle = (num_mib << 18) // 2
    assert files.read_range("w1", middle, middle + (1 << 18)).sum() == 1 << 18
    assert 1024 <= rss_kib("RssFile") - mapped < 8192
    assert files.read("w0").sum() == num_mib << 18
    assert rss_kib("RssFile") - mapped >= num_mib * 1024
    assert rss_kib("RssAnon") - private < 4096


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path / "chatglm-6b")
    assert_paragraph(str(caught.value), tmp_path / "chatglm-6b", "does not exist", "download")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path / "model.safetensors")
    assert_paragraph(str(caught.value), "is a file", f"holds it: {tmp_path}")


def test_folder_without_weights_lists_what_it_holds(tmp_path):
    (tmp_path / "ice_text.model").write_bytes(b"x")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(
        str(caught.value),
        "holds no weights",
        "pytorch_model.bin.index.json",
        "ice_text.model, training_args.bin",
    )


@pytest.mark.parametrize("weights_format", FORMATS)
@pytest.mark.parametrize("index", [True, False])
def test_missing_shard_is_named(tmp_path, tensors, weights_format, index):
    folder = write(tmp_path / "m", tensors, weights_format, 4097)
    second = sorted(folder.glob(f"*{SUFFIX[weights_format]}"))[1]
    second.unlink()
    if not index:
        next(folder.glob("*.index.json")).unlink()
    with pytest.raises(UserError) as caught:
        open_weights(folder)
    assert_paragraph(str(caught.value), "1 of the 3", second.name, folder, "Download the missing files")


def test_shards_of_two_sets_without_index(tmp_path):
    for name in ("model-00001-of-00001.safetensors", "model-00001-of-00002.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(str(caught.value), "-of-00001, -of-00002", "move the outdated ones")


def test_single_file_beside_an_index_is_ambiguous(tmp_path, tensors):
    folder = write(tmp_path / "m", tensors, "bin", 5000)
    torch.save({"w": torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        open_weights(folder)
    assert_paragraph(str(caught.value), "twice", "pytorch_model.bin ", "move the outdated one")


def test_index_that_points_elsewhere_or_is_wrong(tmp_path, tensors):
    folder = write(tmp_path / "m", tensors, "safetensors", 5000)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())

    def message(change: dict[str, str]) -> str:
        index.write_text(json.dumps({"weight_map": {**good["weight_map"], **change}}))
        with pytest.raises(UserError) as caught:
            open_weights(folder)
        return str(caught.value)

    assert_paragraph(message({"a.bias": "../../etc/passwd"}), index, "'../../etc/passwd'", "own folder")
    first = good["weight_map"]["a.weight"]
    assert_paragraph(message({"b.weight": first}), f"{first} holds b.weight", "it is in model-00002", "again")
    assert_paragraph(
        message({"c.weight": first}), f"{first} holds c.weight", "in none of the shards", "again"
    )
    index.write_text("{broken")
    with pytest.raises(UserError) as caught:
        open_weights(folder)
    assert_paragraph(str(caught.value), index, "not valid JSON")
    index.write_text("{}")
    with pytest.raises(UserError) as caught:
        open_weights(folder)
    assert_paragraph(str(caught.value), index, '"weight_map"')


def test_tensor_in_two_shards(tmp_path):
    for number in (1, 2):
        torch.save({"w": torch.ones(1)}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(
        str(caught.value),
        "tensor w is in two files",
        "pytorch_model-00001-of-00002.bin and pytorch_model-00002-of-00002.bin",
        "Download all shards",
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_git_lfs_pointer(tmp_path, name):
    (tmp_path / name).write_bytes(LFS_POINTER)
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(str(caught.value), tmp_path / name, "git-lfs pointer", "1816.3 MiB", "git lfs pull")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>not found</html>", b"\x00" * 4096])
def test_files_that_are_no_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(str(caught.value), tmp_path / name, "Download this file again")


@pytest.mark.parametrize("weights_format", FORMATS)
@pytest.mark.parametrize("kept", [3, 9, 200, 0.5, -1])
def test_truncated_shard_is_named(tmp_path, tensors, weights_format, kept):
    folder = write(tmp_path / "m", tensors, weights_format, 4097)
    shard = sorted(folder.glob(f"*{SUFFIX[weights_format]}"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(UserError) as caught:
        open_weights(folder)
    assert_paragraph(str(caught.value), shard, "Download this file again")
    if kept != 3:  # three bytes could be the start of anything
        assert "truncated" in str(caught.value)


def test_sizes_are_stated_for_a_truncated_safetensors_file(tmp_path, tensors):
    folder = write(tmp_path / "m", tensors, "safetensors", 10**6)
    file = folder / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1000)
    with pytest.raises(UserError) as caught:
        open_weights(folder)
    assert_paragraph(str(caught.value), file, f"{size - 1000} bytes", f"speaks of {size}")


@pytest.mark.parametrize("weights_format", FORMATS)
def test_random_damage_never_gives_other_errors_or_other_tables(tmp_path, tensors, weights_format):
    """Cut anywhere, bytes dropped in the middle, bits flipped in the table: a UserError, or no harm done.

    A flip in tensor bytes cannot be seen without reading them; test_weights_check.py has that.
    """
    folder = write(tmp_path / "m", tensors, weights_format, 10**6)
    file = next(folder.iterdir())
    content = file.read_bytes()
    generator = random.Random(0)
    num_refused = 0
    for trial in range(300):
        damaged = bytearray(content)
        place = generator.randrange(len(content))
        if trial % 3 == 0:
            del damaged[place:]
        elif trial % 3 == 1:
            del damaged[place : place + generator.randrange(1, 500)]
        else:
            ends = (generator.randrange(400), len(content) - 1 - generator.randrange(400))
            damaged[generator.choice(ends)] ^= 1 << generator.randrange(8)
        file.write_bytes(damaged)
        try:
            files = open_weights(folder)
        except UserError as error:
            assert_paragraph(str(error), file.name)
            num_refused += 1
        else:
            assert len(damaged) == len(content)
            for name in files.names:
                files.read(name).sum()
    assert num_refused >= 220


def test_old_torch_format_says_how_to_convert(tmp_path, tensors):
    file = tmp_path / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(str(caught.value), file, "before 1.6", "cannot be mapped")
    command = str(caught.value).split('python -c "')[1].split('"')[0]
    exec(command, {})
    assert torch.equal(open_weights(tmp_path).read("a.weight"), tensors["a.weight"])


class Harmful:
    """Creates a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "ran"
    torch.save({"w": torch.ones(1), "x": Harmful(trap)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(str(caught.value), tmp_path / "pytorch_model.bin", "refused", "state_dict()")
    assert not trap.exists()
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin") as archive:
        record = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        assert b"touch" in archive.read(record), "the trap was not in the file"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"module": {"w": torch.ones(1)}, "step": 3}, "module, step"),
        ([torch.ones(1)], "a list"),
        ({}, "a dict"),
    ],
)
def test_contents_that_are_no_state_dict(tmp_path, content, part):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(str(caught.value), tmp_path / "pytorch_model.bin", part)


def test_zip_that_is_no_torch_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pytorch_model/data.pkl", pickle.dumps({}))
    with pytest.raises(UserError) as caught:
        open_weights(tmp_path)
    assert_paragraph(str(caught.value), tmp_path / "pytorch_model.bin", "compressed")
