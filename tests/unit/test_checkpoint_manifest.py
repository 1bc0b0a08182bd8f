"""A manifest is read as it was written, or not at all."""

from __future__ import annotations

import json
import math
import pickle
import random
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch

from medsft.checkpoint import manifest as module
from medsft.checkpoint.layout import MANIFEST, shard_name
from medsft.checkpoint.manifest import (
    FORMAT_VERSION,
    DamagedError,
    FileEntry,
    Manifest,
    Parameter,
    RankState,
    Slice,
    even_slices,
    read_manifest,
    tensor_name,
    write_manifest,
)
from medsft.errors import UserError
from tests.unit.checkpoint_slices import MANIFEST_OF_NOTHING, seal
from tests.unit.weights_toys import assert_paragraph

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "checkpoint-format.md"
ENTRY = FileEntry(1234, "0123456789abcdef" * 4)
FILES = {shard_name(0, 2): ENTRY, shard_name(1, 2): ENTRY, "model/config.json": ENTRY}
SHARDS = [shard_name(0, 2), shard_name(1, 2)]
TOY = replace(
    MANIFEST_OF_NOTHING,
    world_size=2,
    ranks=(RankState(0.1, {"torch_cpu": "AA=="}), RankState(-3e-320, {})),
    files=FILES,
    parameters={
        "w": Parameter((3, 5), (Slice(SHARDS[0], 0, 8), Slice(SHARDS[1], 8, 15))),
        "偏置": Parameter((1,), (Slice(SHARDS[0], 0, 1),)),
        "nothing": Parameter((0, 4), ()),
    },
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "运行 1" / "step-00000100"
    path.mkdir(parents=True)
    write_manifest(path, TOY)
    return path


def damage(folder: Path) -> DamagedError:
    """The error that reading gives; it names the file and is a paragraph."""
    with pytest.raises(DamagedError) as caught:
        read_manifest(folder)
    assert caught.value.path == folder / MANIFEST
    assert_paragraph(str(caught.value), folder / MANIFEST, caught.value.problem, "another checkpoint")
    return caught.value


def content_of(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def test_what_is_read_is_what_was_written(folder):
    assert read_manifest(folder) == TOY
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    assert list(read_manifest(folder).parameters) == ["w", "偏置", "nothing"]
    assert read_manifest(folder).num_bytes() == 3 * 1234
    assert TOY.parameters["w"].num_elements == 15


def test_the_file_is_readable_text(folder):
    """A line for each field and each of their entries; slices stay on the line of their parameter."""
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    assert text.endswith("}\n")
    lines = text.splitlines()
    assert ' "step": 100,' in lines
    assert '  "偏置": {"shape":[1],"slices":[["rank-00000-of-00002.safetensors",0,1]]},' in lines
    assert content_of(folder) == TOY.to_json()


def test_missing_values_are_kept_as_such(tmp_path):
    manifest = replace(TOY, train_loss=None, validation=None)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_a_manifest_of_many_ranks_stays_small(tmp_path):
    """ChatGLM-6B has 343 parameters; of each of 64 ranks there are the states of its generators, too."""
    shards = [shard_name(rank, 64) for rank in range(64)]
    manifest = replace(
        MANIFEST_OF_NOTHING,
        world_size=64,
        ranks=tuple(RankState(0.1, {"torch_cpu": "A" * 6744, "numpy": "A" * 9000}) for _ in shards),
        files=dict.fromkeys(shards, ENTRY),
        parameters={
            f"transformer.layers.{number}.mlp.dense_h_to_4h.weight": Parameter(
                (16384, 4096), even_slices(16384 * 4096, shards)
            )
            for number in range(343)
        },
    )
    write_manifest(tmp_path, manifest)
    assert (tmp_path / MANIFEST).stat().st_size < 3_000_000
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_json_cannot_hold_is_not_written(tmp_path, bad):
    for manifest in (
        replace(TOY, train_loss=bad),
        replace(TOY, ranks=(RankState(bad, {}), RankState(0.0, {}))),
        replace(TOY, counters={"loss_sum": bad}),
    ):
        with pytest.raises(ValueError, match="JSON"):
            write_manifest(tmp_path, manifest)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_that_is_there_stays_when_another_cannot_be_written(folder):
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(folder, replace(TOY, epoch=math.nan))
    assert read_manifest(folder) == TOY


def test_cut_anywhere(folder):
    path = folder / MANIFEST
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 2, 7), len(whole) - 2]:
        path.write_bytes(whole[:length])
        damage(folder)
    path.write_bytes(whole[:-1])  # the line break at the end says nothing
    assert read_manifest(folder) == TOY


def test_every_byte_changed(folder):
    """One bit of every byte, and every byte replaced: found, unless it says the same (blanks)."""
    path = folder / MANIFEST
    whole = path.read_bytes()
    rng = random.Random(5)
    num_found = 0
    for position, byte in enumerate(whole):
        for other in (byte ^ 1 << rng.randrange(8), rng.choice([b for b in range(256) if b != byte])):
            path.write_bytes(whole[:position] + bytes([other]) + whole[position + 1 :])
            try:
                assert read_manifest(folder) == TOY
                assert bytes([byte, other]).isspace(), (position, byte, other)
            except DamagedError:
                num_found += 1
    assert num_found > 1.9 * len(whole)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON in UTF-8"),
        ("{", "no JSON in UTF-8"),
        ("null", "no JSON object"),
        ("[]", "no JSON object"),
        ("{}", '"format": "medsft-checkpoint"'),
        ('{"format": "medsft-checkpoint"}', "its field sha256 says None"),
        ('{"format": "medsft-checkpoint", "epoch": NaN}', "not JSON compliant"),
        ("[" * 100_000, "no JSON in UTF-8"),
        ("\0" * 4096, "no JSON in UTF-8"),
    ],
)
def test_other_content(folder, text, problem):
    (folder / MANIFEST).write_text(text)
    assert problem in damage(folder).problem


def test_another_encoding(folder):
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    for encoding in ("gbk", "utf-16", "utf-8-sig"):
        (folder / MANIFEST).write_bytes(text.encode(encoding))
        assert "UTF-8" in damage(folder).problem


def test_missing(folder):
    (folder / MANIFEST).unlink()
    assert damage(folder).problem == "it is missing"
    (folder / MANIFEST).mkdir()
    assert "cannot be read" in damage(folder).problem


def test_no_folder(tmp_path):
    assert damage(tmp_path / "step-00000001").problem == "it is missing"
    (tmp_path / "file").touch()
    assert "cannot be read" in damage(tmp_path / "file").problem


def test_values_changed_by_hand(folder):
    """An extra digit in a size, another step: the digest tells both values."""
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    assert text.count('"size":1234,') == 3
    for old, new in [('"size":1234,', '"size":12345,'), ('"step": 100', '"step": 1000'), ("AA==", "AB==")]:
        (folder / MANIFEST).write_text(text.replace(old, new, 1), encoding="utf-8")
        problem = damage(folder).problem
        assert re.search("has the SHA-256 [0-9a-f]{64}, .* says " + content_of(folder)["sha256"], problem)


def test_layout_and_order_of_the_text_do_not_matter(folder):
    content = dict(reversed(content_of(folder).items()))
    (folder / MANIFEST).write_text(json.dumps(content, indent="\t", ensure_ascii=True), encoding="utf-8")
    assert read_manifest(folder) == TOY


def test_a_newer_format_asks_for_an_update(folder):
    seal(folder, {**content_of(folder), "format_version": FORMAT_VERSION + 1, "step": "unheard of"})
    with pytest.raises(UserError) as caught:
        read_manifest(folder)
    assert not isinstance(caught.value, DamagedError)
    assert_paragraph(str(caught.value), folder / MANIFEST, FORMAT_VERSION + 1, "Update medsft")


def test_a_damaged_version_is_no_newer_format(folder):
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    (folder / MANIFEST).write_text(text.replace('"format_version": 1', '"format_version": 9'))
    assert "SHA-256" in damage(folder).problem


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None])
def test_versions_that_never_were(folder, version):
    seal(folder, {**content_of(folder), "format_version": version})
    assert repr(version) in damage(folder).problem


def test_another_format(folder):
    seal(folder, {**content_of(folder), "format": "else"})
    assert '"format": "medsft-checkpoint"' in damage(folder).problem


def test_unknown_fields_are_ignored(folder):
    content = content_of(folder)
    content["later"] = {"a": 1}
    content["identity"]["later"] = 2
    seal(folder, content)
    assert read_manifest(folder) == TOY


def test_the_data_of_a_validation_may_be_unknown(folder):
    content = content_of(folder)
    assert content["validation"].pop("data") is None  # as checkpoints of older versions lack it
    seal(folder, content)
    assert read_manifest(folder) == TOY
    content["validation"]["data"] = "a" * 64
    seal(folder, content)
    assert read_manifest(folder).validation == replace(TOY.validation, data="a" * 64)
    content["validation"]["data"] = 7
    seal(folder, content)
    assert "validation.data is 7, not text" in damage(folder).problem


@pytest.mark.parametrize("field", [field.name for field in fields(Manifest)])
def test_a_field_is_lacking(folder, field):
    content = content_of(folder)
    del content[field]
    seal(folder, content)
    assert damage(folder).problem == f"it lacks {field}"


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("step", "100", "step is '100', not a whole number"),
        ("step", True, "step is True, not a whole number"),
        ("step", 100.0, "step is 100.0, not a whole number"),
        ("step", None, "step is None, not a whole number"),
        ("step", -1, "negative count"),
        ("epoch", "1", "epoch is '1', not a number"),
        ("train_loss", "low", "train_loss is 'low', not a number"),
        ("validation", {"step": 80}, "validation lacks loss"),
        ("validation", [80, 1.5], "validation is [80, 1.5], not an object"),
        ("created", "yesterday", "'yesterday'"),
        ("created", "2026-01-02T03:04:05", "without a time zone"),
        ("world_size", 3, "world_size is 3, and it has 2 ranks"),
        ("world_size", 0, "world_size is 0"),
        ("identity", {}, "identity lacks model, tokenizer, data, seed, global_batch_size"),
        ("identity", "abc", "identity is 'abc', not an object"),
        ("plan", [], "plan is [], not an object"),
        ("versions", {"torch": 2}, "versions.torch is 2, not text"),
        ("counters", {"num_skipped": "1"}, "counters.num_skipped is '1', not a whole number"),
        ("ranks", {}, "ranks is {}, not an array"),
        ("ranks", [], "it has 0 ranks"),
        ("ranks", [{"figures_loss_sum": 0.0, "rng": {"cpu": 1}}] * 2, "ranks.rng.cpu is 1, not text"),
        ("files", {"a": {"size": "1", "sha256": "0" * 64}}, "files.a.size is '1'"),
        ("files", {"a": {"size": -1, "sha256": "0" * 64}}, "entry of the file a is impossible"),
        ("files", {"a": {"size": 1, "sha256": "0" * 63}}, "entry of the file a is impossible"),
        ("files", {"a": {"size": 1, "sha256": "A" * 64}}, "entry of the file a is impossible"),
        ("files", {"a": {"size": 1, "sha256": "0" * 64}}, "is not among its files"),
        ("files", [], "files is [], not an object"),
        ("parameters", {"w": {"shape": [2.5], "slices": []}}, "parameters.w.shape is 2.5"),
        ("parameters", {"w": {"shape": [-1], "slices": []}}, "the shape of w is (-1,)"),
        ("parameters", {"w": {"shape": [0], "slices": [{}]}}, "w.slices is {}, not an array"),
        ("parameters", {"w": {"shape": [1], "slices": [[SHARDS[0], 0]]}}, "not [file, start, end]"),
        ("parameters", {"w": {"shape": [1], "slices": [[SHARDS[0], 0, 1.0]]}}, "not [file, start, end]"),
        ("parameters", {"w": {"shape": [1], "slices": [[SHARDS[0], False, True]]}}, "not [file, start"),
        ("parameters", {"w": {"slices": []}}, "parameters.w lacks shape"),
    ],
)
def test_content_of_a_faulty_writer(folder, field, value, problem):
    """The digest fits, the content does not: refused before anything is made of it."""
    seal(folder, {**content_of(folder), field: value})
    assert problem in damage(folder).problem


def test_written_by_nobody(folder):
    seal(folder, {**content_of(folder), "world_size": 0, "ranks": []})
    assert damage(folder).problem == "its world_size is 0, and it has 0 ranks"


def test_numbers_without_a_point(folder):
    """Other programs write 1 for 1.0."""
    seal(folder, {**content_of(folder), "epoch": 1})
    assert isinstance(read_manifest(folder).epoch, float)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/hostname", "a/../../x", "..", ".", "", "a//b", "./a", "a/", "manifest.json"]
)
def test_names_that_lead_elsewhere(folder, name):
    seal(folder, {**content_of(folder), "files": {**content_of(folder)["files"], name: {**vars(ENTRY)}}})
    assert repr(name) in damage(folder).problem


FIRST, SECOND = SHARDS


@pytest.mark.parametrize(
    ("slices", "problem"),
    [
        ([], "have 0 elements of 15"),
        ([(FIRST, 0, 8)], "have 8 elements of 15"),
        ([(FIRST, 0, 8), (SECOND, 9, 15)], "9 to 15, and 8 come before"),
        ([(FIRST, 0, 8), (SECOND, 7, 15)], "7 to 15, and 8 come before"),
        ([(SECOND, 8, 15), (FIRST, 0, 8)], "8 to 15, and 0 come before"),
        ([(FIRST, 1, 8), (SECOND, 8, 15)], "1 to 8, and 0 come before"),
        ([(FIRST, 0, 8), (SECOND, 8, 16)], "have 16 elements of 15"),
        ([(FIRST, 0, 15), (SECOND, 15, 15)], "15 to 15, and 15 come before"),
        ([(FIRST, 0, 15), (SECOND, 15, 8)], "15 to 8, and 15 come before"),
        ([(FIRST, 0, 15), (FIRST, 0, 15)], "0 to 15, and 15 come before"),
        ([(FIRST, 0, 8), (FIRST, 8, 15)], "two slices of w are in one file"),
        ([(FIRST, 0, 8), ("rank-00002-of-00002.safetensors", 8, 15)], "not among its files"),
    ],
)
def test_slices_with_gaps_and_overlaps(folder, tmp_path, slices, problem):
    """Neither written nor read."""
    parameter = Parameter((3, 5), tuple(Slice(*piece) for piece in slices))
    with pytest.raises(ValueError, match=problem):
        write_manifest(tmp_path, replace(TOY, parameters={"w": parameter}))
    assert not (tmp_path / MANIFEST).exists()
    content = content_of(folder)
    content["parameters"]["w"]["slices"] = [list(piece) for piece in slices]
    seal(folder, content)
    assert problem in damage(folder).problem


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 64])
def test_slices_are_cut_as_deepspeed_does(world_size):
    """torch.split with the size that DeepSpeed's partition_numel gives cuts the same pieces."""
    shards = [shard_name(rank, world_size) for rank in range(world_size)]
    for count in [*range(130), 4096, 16384 * 3 + 1]:
        pieces = even_slices(count, shards)
        size = math.ceil(count / world_size)
        expected = torch.arange(count).split(size) if count else ()
        assert [piece.file for piece in pieces] == shards[: len(expected)]
        assert [(piece.start, piece.end) for piece in pieces] == [
            (int(part[0]), int(part[-1]) + 1) for part in expected
        ]


def test_tensor_names():
    assert tensor_name("exp_avg_sq", "transformer.w") == "exp_avg_sq.transformer.w"
    with pytest.raises(AssertionError):
        tensor_name("weights", "w")


def test_the_error_travels_between_processes():
    error = DamagedError(Path("跑 1") / "x", "it is missing")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.path, copy.problem, str(copy)) == (error.path, error.problem, str(error))


def test_the_document_names_every_field():
    """A table row for each field of each class, and none besides."""
    classes = [item for item in vars(module).values() if is_dataclass(item) and item is not Slice]
    expected = {field.name for each in classes for field in fields(each)}
    rows = re.findall(
        r"^\| `(\w+)` \| .* \| .* \|$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert set(rows) == expected | {"format", "format_version", "sha256"}
