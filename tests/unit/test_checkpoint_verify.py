"""What is not byte for byte as it was written is found, and told with both values."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medsft.checkpoint.layout import MANIFEST, shard_name
from medsft.checkpoint.manifest import DamagedError, FileEntry, read_manifest, write_manifest
from medsft.checkpoint.verify import check_file, check_size, check_slices, describe_file, verify
from tests.unit.checkpoint_slices import SHAPES, random_states, seal, write_slices
from tests.unit.weights_toys import assert_paragraph

STATES_OF = random_states(SHAPES, seed=1)
SHARDS = [shard_name(rank, 3) for rank in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "运行 1" / "checkpoints" / "step-00000100"
    write_slices(path, STATES_OF, 3)
    return path


def damage(folder: Path, name: str) -> str:
    """The problem that verify finds with a file of the checkpoint."""
    with pytest.raises(DamagedError) as caught:
        verify(folder)
    assert caught.value.path == folder / name
    assert_paragraph(str(caught.value), folder / name, caught.value.problem, "another checkpoint")
    return caught.value.problem


def resealed(folder: Path, **fields: object) -> None:
    """The same manifest with other fields and a digest that fits."""
    seal(folder, {**json.loads((folder / MANIFEST).read_text(encoding="utf-8")), **fields})


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_what_is_whole(tmp_path, world_size):
    manifest = write_slices(tmp_path / "完整 1", STATES_OF, world_size)
    counts: list[int] = []
    assert verify(tmp_path / "完整 1", counts.append) == manifest
    assert sum(counts) == manifest.num_bytes()
    assert manifest.num_bytes() == sum(
        path.stat().st_size
        for path in (tmp_path / "完整 1").rglob("*")
        if path.name != MANIFEST and path.is_file()
    )


def test_a_copy_is_as_good(folder, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert verify(copy) == verify(folder)


def test_files_that_are_not_listed_are_ignored(folder):
    (folder / ".DS_Store").write_text("x")
    (folder / "model" / "notes.txt").write_text("x")
    verify(folder)


def test_a_folder_that_is_not_there(tmp_path):
    assert damage(tmp_path / "none", MANIFEST) == "it is missing"


@pytest.mark.parametrize("name", [*SHARDS, "model/config.json"])
def test_cut_at_many_places(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for length in {*range(0, len(whole), 17), 1, 7, 8, 9, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert damage(folder, name) == f"it has {length} bytes, the manifest says {len(whole)}"
    path.write_bytes(whole + whole)
    assert f"has {2 * len(whole)} bytes" in damage(folder, name)
    path.write_bytes(whole)
    verify(folder)


@pytest.mark.parametrize("name", [MANIFEST, *SHARDS, "model/config.json"])
def test_missing_files(folder, name):
    (folder / name).unlink()
    assert "it is missing" in damage(folder, name)


@pytest.mark.parametrize("name", [SHARDS[0], "model/config.json"])
def test_other_things_with_the_name_of_a_file(folder, name):
    path = folder / name
    path.unlink()
    path.mkdir()
    assert damage(folder, name) == "it is no file"
    path.rmdir()
    path.symlink_to(folder / "nowhere")
    assert "it is missing" in damage(folder, name)
    path.unlink()
    os.mkfifo(path)
    assert damage(folder, name) == "it is no file"


def test_a_file_where_the_folder_was(folder):
    shutil.rmtree(folder / "model")
    (folder / "model").touch()
    assert "cannot be read" in damage(folder, "model/config.json")


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


@pytest.mark.parametrize("place", ["length", "header", "padding", "first", "middle", "last"])
def test_one_bit_in_a_shard(folder, place):
    path = folder / SHARDS[1]
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    position = {
        "length": 0,
        "header": whole.index(b"F32"),
        "padding": begin - 1,
        "first": begin,
        "middle": (begin + len(whole)) // 2,
        "last": len(whole) - 1,
    }[place]
    entry = read_manifest(folder).files[SHARDS[1]]
    for bit in range(8):
        path.write_bytes(flipped(whole, position, bit))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        assert damage(folder, SHARDS[1]) == f"its SHA-256 is {found}, the manifest says {entry.sha256}"


def test_bytes_exchanged(folder):
    """Same size, same bytes in another order, as from two blocks of a disk."""
    path = folder / SHARDS[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-64] + whole[-32:] + whole[-64:-32])
    assert "SHA-256" in damage(folder, SHARDS[0])


def test_the_shard_of_another_checkpoint(folder, tmp_path):
    """Valid in itself and of the same size, from another step."""
    write_slices(tmp_path / "other", random_states(SHAPES, seed=2), 3)
    shutil.copyfile(tmp_path / "other" / SHARDS[2], folder / SHARDS[2])
    assert "SHA-256" in damage(folder, SHARDS[2])


def test_an_extra_digit_in_a_size(folder):
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    size = read_manifest(folder).files[SHARDS[0]].size
    for old, new in ((f":{size},", f":{size}0,"), (f":{size},", f":1{size},")):
        (folder / MANIFEST).write_text(text.replace(old, new, 1), encoding="utf-8")
        assert "SHA-256" in damage(folder, MANIFEST)
    # And by a writer who made the digest fit:
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    files = json.loads(text)["files"]
    files[SHARDS[0]]["size"] = size * 10
    resealed(folder, files=files)
    assert damage(folder, SHARDS[0]) == f"it has {size} bytes, the manifest says {size}0"


def test_another_digest_of_a_file(folder):
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    files["model/config.json"]["sha256"] = "0" * 64
    resealed(folder, files=files)
    assert damage(folder, "model/config.json").endswith("the manifest says " + "0" * 64)


def test_random_damage(folder):
    """Hundreds of changes of one byte or bit anywhere in the checkpoint, one at a time: all are found.

    In the manifest a blank for a line break changes nothing that is said, so there the content counts.
    """
    manifest = verify(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(paths) == 5
    rng = random.Random(20)
    num_found = dict.fromkeys(paths, 0)
    for _ in range(600):
        path = rng.choice(paths)
        whole = path.read_bytes()
        position = rng.randrange(len(whole))
        if rng.random() < 0.5:
            damaged = flipped(whole, position, rng.randrange(8))
        else:
            other = rng.choice([byte for byte in range(256) if byte != whole[position]])
            damaged = whole[:position] + bytes([other]) + whole[position + 1 :]
        path.write_bytes(damaged)
        try:
            read = verify(folder)
            assert path.name == MANIFEST
            assert read == manifest
            assert damaged[position : position + 1].isspace()
        except DamagedError as error:
            assert error.path == path
            num_found[path] += 1
        path.write_bytes(whole)
    assert verify(folder) == manifest
    assert min(num_found.values()) > 80
    assert sum(num_found.values()) >= 590


def change_shard(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrites the first shard and its entry: a writer whose shard and manifest are not of one mind."""
    path = folder / SHARDS[0]
    save_file(change(load_file(path)), path)
    manifest = read_manifest(folder)
    write_manifest(folder, replace(manifest, files={**manifest.files, path.name: describe_file(path)}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"exp_avg.scale": None}, "it holds no tensor exp_avg.scale"),
        ({"exp_avg.more": torch.ones(1)}, "it holds exp_avg.more, which is in no slice"),
        ({"master.scale": torch.ones(2)}, "('F32', [2]), the manifest says ('F32', [1])"),
        ({"master.scale": torch.ones(1, 1)}, "('F32', [1, 1]), the manifest says ('F32', [1])"),
        ({"master.scale": torch.ones(1, dtype=torch.int32)}, "('I32', [1]), the manifest says ('F32', [1])"),
    ],
)
def test_shards_that_do_not_fit_the_slices(folder, changes, problem):
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}

    change_shard(folder, change)
    assert problem in damage(folder, SHARDS[0])
    with pytest.raises(DamagedError, match=r"tensor|slice"):
        check_slices(folder, read_manifest(folder))


def test_a_listed_shard_that_is_none(folder):
    path = folder / SHARDS[0]
    path.write_bytes(b"not a safetensors file")
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    files[SHARDS[0]] = vars(describe_file(path))
    resealed(folder, files=files)
    assert "no valid safetensors file" in damage(folder, SHARDS[0])


def test_slices_with_a_gap(folder):
    parameters = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["parameters"]
    parameters["transformer.h.weight"]["slices"][1][1] += 1
    resealed(folder, parameters=parameters)
    assert "11 to 20, and 10 come before" in damage(folder, MANIFEST)


def test_sizes_come_first(folder):
    """A file that is missing is told before gigabytes of others are read."""
    (folder / SHARDS[2]).unlink()
    counts: list[int] = []
    with pytest.raises(DamagedError, match="missing"):
        verify(folder, counts.append)
    assert counts == []


def test_one_file(folder):
    """`name` is that of the manifest's list; sizes larger than a chunk are read to the end."""
    content = random.Random(3).randbytes((1 << 20) * 3 + 5)
    path = folder / "大 文件"
    path.write_bytes(content)
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    assert describe_file(path) == entry
    counts: list[int] = []
    check_file(folder, path.name, entry, counts.append)
    assert sum(counts) == len(content)
    assert len(counts) > 3
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedError) as caught:
        check_file(folder, path.name, entry)
    assert_paragraph(str(caught.value), path, entry.sha256, describe_file(path).sha256)
    check_size(folder, path.name, entry)  # which it cannot see
    with pytest.raises(DamagedError, match="it has 3145733 bytes, the manifest says 3145734"):
        check_file(folder, path.name, replace(entry, size=entry.size + 1))


def test_an_empty_file(folder):
    (folder / "empty").touch()
    check_file(folder, "empty", FileEntry(0, hashlib.sha256().hexdigest()))
