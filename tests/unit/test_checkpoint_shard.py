"""Shards are what the safetensors library reads, and what their digest says."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medsft.checkpoint import shard
from medsft.checkpoint.manifest import DamagedError, FileEntry
from medsft.checkpoint.shard import CHUNK_BYTES, open_shard, write_shard
from tests.unit.checkpoint_slices import bits, random_states
from tests.unit.weights_toys import assert_paragraph

LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "检查点 1"
    folder.mkdir()
    return folder / "rank-00000-of-00001.safetensors"


def random_tensors(**sizes: int) -> dict[str, torch.Tensor]:
    return random_states({name: (size,) for name, size in sizes.items()})["master"]


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"one": 1},
        {"master.层.权重": 5, "exp_avg.层.权重": 5, 'a"b\\c': 3},
        {f"w{number}": number + 1 for number in range(50)},
        {"large": CHUNK_BYTES // 2 + 1, "small": 1, "chunk": CHUNK_BYTES // 4, "last": CHUNK_BYTES},
    ],
    ids=["none", "one", "names", "many", "large"],
)
def test_the_library_reads_the_same_bits(path, sizes):
    tensors = random_tensors(**sizes)
    entry = write_shard(path, tensors)
    content = path.read_bytes()
    assert entry == FileEntry(len(content), hashlib.sha256(content).hexdigest())
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(bits(loaded[name]), bits(tensor))


def test_the_layout_of_the_file(path):
    """Header length, header padded with blanks to a multiple of 8 bytes, tensors in their order, no gap."""
    tensors = random_tensors(b=3, a=2)
    write_shard(path, tensors)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = content[8 : 8 + length]
    assert header.rstrip(b" ").endswith(b"}")
    assert json.loads(header) == {
        "b": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]},
    }
    assert content[8 + length :] == b"".join(tensor.numpy().tobytes() for tensor in tensors.values())


def test_empty_tensors(path):
    write_shard(path, {"a": torch.ones(2), "nothing": torch.empty(0), "b": torch.zeros(1)})
    assert {name: tensor.tolist() for name, tensor in load_file(path).items()} == {
        "a": [1, 1],
        "nothing": [],
        "b": [0],
    }


def test_part_of_a_larger_memory(path):
    """Slices are views of flat buffers; only they are written."""
    whole = torch.arange(100_000.0, requires_grad=True)
    entry = write_shard(path, {"w": whole[10:20]})
    assert entry.size < 200
    assert load_file(path)["w"].tolist() == list(range(10, 20))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, 2), torch.ones(2, dtype=torch.bfloat16), torch.ones(4)[::2], torch.ones(2, device="meta")],
    ids=["not flat", "not fp32", "with gaps", "not on the host"],
)
def test_only_flat_fp32_of_the_host(path, tensor):
    with pytest.raises(AssertionError, match="w: "):
        write_shard(path, {"w": tensor})


def test_progress_adds_up_to_the_size(path):
    counts: list[int] = []
    entry = write_shard(path, random_tensors(a=CHUNK_BYTES, b=1), counts.append)
    assert sum(counts) == entry.size
    assert len(counts) == 1 + 4 + 1  # the header, four chunks of a, b
    assert max(counts) == CHUNK_BYTES


def test_progress_is_told_while_it_is_written(path):
    """A test that kills a save in the middle depends on it."""
    seen = []
    write_shard(path, random_tensors(a=4 * CHUNK_BYTES), lambda _: seen.append(path.stat().st_size))
    assert seen[0] < CHUNK_BYTES
    assert len(seen) == 17
    assert any(CHUNK_BYTES < size < 15 * CHUNK_BYTES for size in seen)


def test_a_file_that_is_there_is_not_replaced(path):
    path.write_text("here before")
    with pytest.raises(FileExistsError):
        write_shard(path, random_tensors(a=1))
    assert path.read_text() == "here before"


def test_all_of_it_is_on_the_disk_before_it_returns(path, monkeypatch):
    """The real fsync is called, on this file, when it has its whole length."""
    synced = []

    def fsync(descriptor: int, real=os.fsync) -> None:
        synced.append((os.path.samestat(os.fstat(descriptor), path.stat()), os.fstat(descriptor).st_size))
        real(descriptor)

    monkeypatch.setattr(shard.os, "fsync", fsync)
    entry = write_shard(path, random_tensors(a=1000))
    assert synced == [(True, entry.size)]


def test_files_can_be_read_by_whom_the_umask_allows(path):
    before = os.umask(0o027)
    try:
        write_shard(path, random_tensors(a=1))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_system_that_refuses_more_is_told(path):
    """A limit of this process stands for a full disk: the system refuses the write in the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * CHUNK_BYTES // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_shard(path, random_tensors(a=CHUNK_BYTES))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == 3 * CHUNK_BYTES // 2


@LINUX
def test_no_second_copy_is_made(path):
    tensors = random_tensors(a=1 << 23, b=1 << 23)  # 64 MiB
    write_shard(path, random_tensors(a=1))  # what the first call allocates for good
    path.unlink()
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before = status_kib("VmRSS")
    write_shard(path, tensors)
    assert status_kib("VmHWM") - before < 8 * 1024


def status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


@LINUX
def test_opening_reads_the_header_alone(path):
    tensors = random_tensors(a=1 << 23)
    write_shard(path, tensors)
    open_shard(path).get_tensor("a")[:1].clone()
    before = status_kib("RssFile")
    tensor = open_shard(path).get_tensor("a")
    assert status_kib("RssFile") - before < 1024
    assert torch.equal(bits(tensor[1000:2000]), bits(tensors["a"][1000:2000]))
    assert status_kib("RssFile") - before < 4096
    assert torch.equal(bits(tensor), bits(tensors["a"]))  # and now all of it: the measure does measure
    assert status_kib("RssFile") - before > 30 * 1024


def damage(path: Path) -> DamagedError:
    with pytest.raises(DamagedError) as caught:
        open_shard(path)
    assert caught.value.path == path
    assert_paragraph(str(caught.value), path, "another checkpoint")
    return caught.value


def test_cut_anywhere(path):
    write_shard(path, random_tensors(a=20, b=30))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        damage(path)
    path.write_bytes(whole + b"\0")
    damage(path)
    path.write_bytes(whole)
    assert set(open_shard(path).keys()) == {"a", "b"}


def test_files_that_are_no_shards(path):
    assert damage(path).problem == "it is missing"
    path.mkdir()
    assert "cannot be read" in damage(path).problem
    path.rmdir()
    for content in (b"\0" * 100, b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]"):
        path.write_bytes(content)
        assert "no valid safetensors file" in damage(path).problem


def test_shards_and_files_of_the_library_hold_the_same(tmp_path):
    """Read alike by name, dtype and shape, though not byte for byte the same file."""
    tensors = random_tensors(a=3, b=4)
    write_shard(tmp_path / "ours", tensors)
    save_file(tensors, tmp_path / "theirs")
    found = []
    for name in ("ours", "theirs"):
        with safe_open(tmp_path / name, "pt") as file:
            slices = {key: file.get_slice(key) for key in sorted(file.keys())}
            found.append({key: (item.get_dtype(), item.get_shape()) for key, item in slices.items()})
    assert found[0] == found[1] == {"a": ("F32", [3]), "b": ("F32", [4])}
