"""Any rank of any world reads its part of what any other world wrote, bit for bit, and no more."""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsft.checkpoint.layout import MANIFEST, shard_name
from medsft.checkpoint.manifest import STATES, DamagedError, write_manifest
from medsft.checkpoint.reader import Checkpoint, open_checkpoint
from medsft.checkpoint.verify import describe_file
from medsft.errors import UserError
from tests.unit.checkpoint_slices import (
    SHAPES,
    bits,
    num_elements,
    random_states,
    seal,
    slice_of,
    write_slices,
)
from tests.unit.weights_toys import assert_paragraph

WORLD_SIZES = (1, 2, 3, 7)
STATES_OF = random_states(SHAPES)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "checkpoint-format.md"
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's /proc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Written by 3 ranks."""
    path = tmp_path / "运行 1" / "checkpoints" / "step-00000100"
    write_slices(path, STATES_OF, 3)
    return path


@pytest.mark.parametrize("written", WORLD_SIZES)
def test_every_world_reads_every_other(tmp_path, written):
    folder = tmp_path / f"由 {written} 个"
    manifest = write_slices(folder, STATES_OF, written)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [MANIFEST, "model", *(shard_name(rank, written) for rank in range(written))]
    )
    for world_size in WORLD_SIZES:
        num_read = 0
        for rank in range(world_size):
            checkpoint = open_checkpoint(folder)
            assert checkpoint.manifest == manifest
            for state in STATES:
                for name, whole in STATES_OF[state].items():
                    start, end = slice_of(whole.numel(), rank, world_size)
                    part = checkpoint.read_range(name, start, end, state)
                    assert part.dtype == torch.float32
                    assert part.shape == (end - start,)
                    assert torch.equal(bits(part), bits(whole.reshape(-1)[start:end]))
            num_read += checkpoint.bytes_read
        assert num_read == 3 * 4 * num_elements(SHAPES)


def test_any_range(folder):
    checkpoint = open_checkpoint(folder)
    rng = random.Random(1)
    for name, whole in STATES_OF["exp_avg"].items():
        for _ in range(50):
            start, end = sorted(rng.randint(0, whole.numel()) for _ in range(2))
            part = checkpoint.read_range(name, start, end, "exp_avg")
            assert torch.equal(bits(part), bits(whole.reshape(-1)[start:end]))


def test_the_master_weights_are_the_default(folder):
    part = open_checkpoint(folder).read_range("scale", 0, 1)
    assert torch.equal(bits(part), bits(STATES_OF["master"]["scale"].reshape(1)))


def test_nothing_is_read_for_an_empty_range(folder):
    checkpoint = open_checkpoint(folder)
    for position in (0, 1, 3):
        part = checkpoint.read_range("transformer.层.0.bias", position, position)
        assert part.shape == (0,)
        assert part.dtype == torch.float32
    assert checkpoint.bytes_read == 0


def test_a_parameter_without_elements(tmp_path):
    states = random_states({"w": (5,), "none": (0, 7)})
    write_slices(tmp_path / "c", states, 2)
    assert open_checkpoint(tmp_path / "c").read_range("none", 0, 0).shape == (0,)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (2, 1), (0, 5), (5, 6)])
def test_ranges_that_are_none(folder, start, end):
    with pytest.raises(AssertionError):
        open_checkpoint(folder).read_range("transformer.final_layernorm.weight", start, end)


def test_unknown_names(folder):
    with pytest.raises(KeyError):
        open_checkpoint(folder).read_range("transformer.unknown", 0, 1)
    with pytest.raises(AssertionError):
        open_checkpoint(folder).read_range("scale", 0, 1, "weights")


def test_files_of_other_ranges_are_not_opened(folder):
    """Once it is open, what happens to files that this rank does not need does not matter."""
    checkpoint = open_checkpoint(folder)
    for rank in (0, 2):
        (folder / shard_name(rank, 3)).unlink()
    name = "transformer.h.weight"
    whole = STATES_OF["master"][name].reshape(-1)
    assert torch.equal(bits(checkpoint.read_range(name, 10, 20)), bits(whole[10:20]))
    with pytest.raises(DamagedError, match="missing"):
        checkpoint.read_range(name, 9, 20)


@pytest.fixture
def large(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """Two ranks' slices of 4 Mi elements each, 96 MiB in all."""
    states = {state: {"w": torch.arange(2**23).float() + number} for number, state in enumerate(STATES)}
    write_slices(tmp_path / "大 1", states, 2)
    return tmp_path / "大 1", states["exp_avg"]["w"]


def resident_kib(folder: Path) -> dict[str, int]:
    """File name -> memory of this process in which parts of it are mapped."""
    found: dict[str, int] = {}
    name = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = Path(line.split(maxsplit=5)[5]) if len(line.split()) > 5 else Path()
            name = path.name if path.parent == folder else None
        elif name is not None and line.startswith("Rss:"):
            found[name] = found.get(name, 0) + int(line.split()[1])
    return found


@LINUX
def test_only_the_pages_of_a_range_are_touched(large):
    folder, whole = large
    checkpoint = open_checkpoint(folder)
    assert resident_kib(folder) == {}
    part = checkpoint.read_range("w", 1_000_000, 1_100_000, "exp_avg")
    before = resident_kib(folder)
    assert before.keys() == {shard_name(0, 2)}
    assert before[shard_name(0, 2)] < 512  # the header's
    assert torch.equal(part, whole[1_000_000:1_100_000])
    touched = resident_kib(folder)[shard_name(0, 2)] - before[shard_name(0, 2)]
    assert 350 < touched < 1500  # 391 KiB, and what the system maps along with them


@LINUX
def test_one_slice_is_not_copied_and_two_are(large):
    folder, whole = large
    checkpoint = open_checkpoint(folder)
    assert is_mapped(checkpoint.read_range("w", 5, 4_000_000, "exp_avg"), folder / shard_name(0, 2))
    assert is_mapped(checkpoint.read_range("w", 5_000_000, 2**23, "exp_avg"), folder / shard_name(1, 2))
    both = checkpoint.read_range("w", 2**22 - 3, 2**22 + 2, "exp_avg")
    assert both.tolist() == whole[2**22 - 3 : 2**22 + 2].tolist()
    assert both.untyped_storage().nbytes() == 20


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether its memory is a mapping of that file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(text, 16) for text in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.endswith(str(path))
    return False


def damage(action: Callable[[], Any], path: Path) -> DamagedError:
    with pytest.raises(DamagedError) as caught:
        action()
    assert caught.value.path == path
    assert_paragraph(str(caught.value), path, caught.value.problem)
    return caught.value


@pytest.mark.parametrize("name", [shard_name(1, 3), "model/config.json"])
def test_missing_and_cut_files_are_found_at_once(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
        path.write_bytes(content)
        error = damage(lambda: open_checkpoint(folder), path)
        assert error.problem == f"it has {len(content)} bytes, the manifest says {len(whole)}"
    path.unlink()
    assert "missing" in damage(lambda: open_checkpoint(folder), path).problem
    path.mkdir()
    assert "no file" in damage(lambda: open_checkpoint(folder), path).problem


def test_a_damaged_manifest(folder):
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes().replace(b'"step": 100', b'"step": 101'))
    assert "SHA-256" in damage(lambda: open_checkpoint(folder), folder / MANIFEST).problem


def test_a_newer_format(folder):
    seal(folder, {**json.loads((folder / MANIFEST).read_text()), "format_version": 2})
    with pytest.raises(UserError, match="Update medsft"):
        open_checkpoint(folder)


def test_cut_after_it_was_opened(folder):
    """A map of it would end the process at the first missing page."""
    checkpoint = open_checkpoint(folder)
    path = folder / shard_name(0, 3)
    path.write_bytes(path.read_bytes()[:-1])
    damage(lambda: checkpoint.read_range("scale", 0, 1), path)


def test_a_broken_header(folder):
    path = folder / shard_name(0, 3)
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    checkpoint = open_checkpoint(folder)  # sizes are all it looks at
    damage(lambda: checkpoint.read_range("scale", 0, 1), path)


def replace_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> Checkpoint:
    """Another first shard, with a manifest that agrees with it but for its slices."""
    path = folder / shard_name(0, 3)
    save_file(change(load_file(path)), path)
    manifest = open_manifest(folder)
    write_manifest(folder, replace(manifest, files={**manifest.files, path.name: describe_file(path)}))
    return open_checkpoint(folder)


def open_manifest(folder: Path):
    from medsft.checkpoint.manifest import read_manifest

    return read_manifest(folder)


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (None, "cannot be read"),
        (torch.ones(2), "float32 [2], the manifest says torch.float32 [1]"),
        (torch.ones(1, 1), "float32 [1, 1]"),
        (torch.ones(1, dtype=torch.float64), "float64 [1]"),
        (torch.ones(1, dtype=torch.bfloat16), "bfloat16 [1]"),
    ],
)
def test_a_shard_that_does_not_fit_the_manifest(folder, tensor, problem):
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["master.scale"]
        return tensors if tensor is None else {**tensors, "master.scale": tensor}

    checkpoint = replace_tensors(folder, change)
    error = damage(lambda: checkpoint.read_range("scale", 0, 1), folder / shard_name(0, 3))
    assert "master.scale" in error.problem
    assert problem in error.problem
    checkpoint.read_range("scale", 0, 1, "exp_avg")


def documented_reader() -> str:
    """The program in the document."""
    (program,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), flags=re.DOTALL | re.MULTILINE)
    return program


def test_the_documented_reader_is_short_and_needs_little():
    program = documented_reader()
    assert len(program.splitlines()) <= 30
    imported = {
        node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {alias.name for node in imported for alias in node.names} == {"json", "hashlib", "numpy"}


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_documented_reader_reads_a_checkpoint(tmp_path, world_size):
    folder = tmp_path / "步骤 1"
    manifest = write_slices(folder, STATES_OF, world_size)
    program: dict[str, Any] = {}
    exec(compile(documented_reader(), str(DOCUMENT), "exec"), program)
    content = program["open_checkpoint"](str(folder))
    assert content == manifest.to_json()
    for state in STATES:
        for name, whole in STATES_OF[state].items():
            array = program["read"](str(folder), content, name, state)
            assert array.dtype == np.float32
            assert array.shape == tuple(whole.shape)
            assert array.tobytes() == whole.numpy().tobytes()


@pytest.mark.parametrize("name", [MANIFEST, shard_name(1, 3), "model/config.json"])
def test_the_documented_reader_refuses_a_damaged_one(folder, name):
    program: dict[str, Any] = {}
    exec(compile(documented_reader(), str(DOCUMENT), "exec"), program)
    content = bytearray((folder / name).read_bytes())
    position = content.index(b"1") if name == MANIFEST else len(content) // 2
    content[position] ^= 2
    (folder / name).write_bytes(content)
    with pytest.raises(AssertionError):
        program["open_checkpoint"](str(folder))


def test_the_digests_are_as_documented(folder):
    """Computed here by the document's rule, without the code."""
    content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    digest = content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode("utf-8")).hexdigest() == digest
    for name, entry in content["files"].items():
        whole = (folder / name).read_bytes()
        assert entry == {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
