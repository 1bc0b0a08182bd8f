import os

import pytest

from medsft.checkpoint.layout import (
    LATEST,
    deleted_folder,
    is_leftover,
    read_latest,
    shard_name,
    step_folder,
    steps_in,
    temporary_folder,
)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "运行 one" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def make(root, step):
    folder = step_folder(root, step)
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_names_are_as_documented(root):
    assert step_folder(root, 100) == root / "step-00000100"
    assert temporary_folder(root, 100) == root / ".step-00000100.tmp"
    assert deleted_folder(root, 80) == root / ".step-00000080.deleted"
    assert shard_name(0, 2) == "rank-00000-of-00002.safetensors"
    assert shard_name(63, 64) == "rank-00063-of-00064.safetensors"


def test_unfinished_things_are_known_by_their_names(root):
    for step in (0, 100, 123_456_789):
        assert is_leftover(temporary_folder(root, step).name)
        assert is_leftover(deleted_folder(root, step).name)
        assert not is_leftover(step_folder(root, step).name)
    assert is_leftover(".latest.4711.tmp")
    for name in (LATEST, ".lock", ".step-100.tmp", ".step-00000100.tmp.bak", "step-00000100.tmp", ".nfs0001"):
        assert not is_leftover(name)


def test_steps_are_in_order_of_step_whatever_the_clock_said(root):
    hour_s = 3600
    for number, step in enumerate((99_999_999, 9, 100_000_000, 10, 200)):
        folder = make(root, step)
        time_s = folder.stat().st_mtime + (number - 2) * hour_s
        for path in (folder / "manifest.json", folder):
            os.utime(path, (time_s, time_s))
    assert steps_in(root) == [9, 10, 200, 99_999_999, 100_000_000]


def test_only_committed_checkpoints_count(root):
    make(root, 7)
    step_folder(root, 8).mkdir()  # no manifest
    step_folder(root, 9).write_text("a file")
    for path in (
        temporary_folder(root, 10),
        deleted_folder(root, 6),
        root / "step-11",
        root / "step-00000012x",
    ):
        path.mkdir()
        (path / "manifest.json").write_text("{}")
    (step_folder(root, 13) / "manifest.json").mkdir(parents=True)
    (root / LATEST).write_text("step-00000007\n")
    assert steps_in(root) == [7]


def test_a_missing_folder_has_no_steps(root):
    assert steps_in(root / "nowhere") == []
    assert read_latest(root / "nowhere") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"step-00000008\n",  # there is no such folder
        b"step-00000009\n",  # which has no manifest
        b"step-7\n",
        b"7",
        b"../checkpoints/step-00000007\n",
        b"step-00000007\nstep-00000007\n",
        b"\x00\x00\x00",
        b"\xff\xfe",
        "步-00000007".encode(),
    ],
)
def test_a_pointer_that_names_no_checkpoint_is_none(root, content):
    make(root, 7)
    step_folder(root, 9).mkdir()
    (root / LATEST).write_bytes(content)
    assert read_latest(root) is None


@pytest.mark.parametrize("content", ["step-00000007\n", "step-00000007"])
def test_the_pointer_is_read(root, content):
    make(root, 7)
    make(root, 8)
    (root / LATEST).write_text(content)
    assert read_latest(root) == 7


def test_a_folder_in_place_of_the_pointer_is_none(root):
    (root / LATEST).mkdir()
    assert read_latest(root) is None
