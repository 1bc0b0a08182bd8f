"""Commit and deletion, with real kills and a real full disk."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_saves import make_manifest, save, write_files

from medsft.checkpoint import crash_points
from medsft.checkpoint.commit import HEADROOM_BYTES, abandon, begin, check_space, clean, commit, delete, point
from medsft.checkpoint.layout import LATEST, read_latest, step_folder, steps_in, temporary_folder
from medsft.checkpoint.verify import verify
from medsft.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = REPOSITORY / "tests" / "unit" / "checkpoint_saves.py"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "运行 one" / "checkpoints"


# A bare package stands for medsft's own, which would import transformers first: seconds for each process.
BARE = f"""
import sys, types
sys.path.insert(0, {str(PROGRAM.parent)!r})
sys.modules["medsft"] = types.ModuleType("medsft")
sys.modules["medsft"].__path__ = [{str(REPOSITORY / "medsft")!r}]
"""
RUN = BARE + f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"


def run_program(root, *actions, **environment):
    return subprocess.run(
        [sys.executable, "-c", RUN, str(root), *actions],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


def names_in(folder):
    return sorted(item.name for item in folder.iterdir())


def check_complete(root, *steps):
    """These are the checkpoints, every byte of each as written, and nothing else is there but the pointer."""
    assert steps_in(root) == list(steps)
    for step in steps:
        assert verify(step_folder(root, step)).step == step
    assert names_in(root) == sorted([LATEST, *(step_folder(root, step).name for step in steps)])


def test_a_committed_checkpoint_is_complete_and_pointed_to(root):
    assert save(root, 9) == root / "step-00000009"
    assert save(root, 10) == root / "step-00000010"
    check_complete(root, 9, 10)
    assert (root / LATEST).read_text() == "step-00000010\n"
    assert read_latest(root) == 10


def test_a_save_that_was_cut_short_is_begun_anew(root):
    (begin(root, 5) / "rank-00000-of-00007.safetensors").write_text("half")
    save(root, 5)
    check_complete(root, 5)


# Point of the kill -> committed steps afterwards, what it left, what `latest` names. Steps 10 and 20 are
# there; the program saves 30 and deletes 10.
AFTER_KILL = {
    "begin": ([10, 20], [".step-00000030.tmp"], 20),
    "shard-half": ([10, 20], [".step-00000030.tmp"], 20),
    "shard-written": ([10, 20], [".step-00000030.tmp"], 20),
    "before-manifest": ([10, 20], [".step-00000030.tmp"], 20),
    "before-rename": ([10, 20], [".step-00000030.tmp"], 20),
    "after-rename": ([10, 20, 30], [], 20),
    "before-pointer": ([10, 20, 30], [], 20),
    "after-pointer": ([10, 20, 30], [], 30),
    "before-delete": ([10, 20, 30], [], 30),
    "in-delete": ([20, 30], [".step-00000010.deleted"], 30),
}


@pytest.mark.parametrize("name", crash_points.POINTS)
def test_a_kill_at_any_point_leaves_complete_checkpoints_only(root, name):
    save(root, 10)
    save(root, 20)
    step = 10 if name.endswith("-delete") else 30
    done = run_program(root, "save:30", "delete:10", MEDSFT_CRASH_AT=f"{name}:{step}")
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps, left, pointed = AFTER_KILL[name]
    assert steps_in(root) == steps
    assert read_latest(root) == pointed
    assert clean(root) == left
    point(root)
    check_complete(root, *steps)
    assert read_latest(root) == steps[-1]

    # The next start comes to where this one would have.
    if 30 not in steps:
        save(root, 30)
    if 10 in steps:
        delete(root, 10)
    check_complete(root, 20, 30)


def test_every_point_is_on_the_way(root):
    assert set(AFTER_KILL) == set(crash_points.POINTS)
    save(root, 10)
    assert run_program(root, "save:30", "delete:10", MEDSFT_CRASH_AT="before-rename:31").returncode == 0
    check_complete(root, 30)


def test_a_kill_may_be_for_one_rank(root):
    assert run_program(root, "save:1", MEDSFT_CRASH_AT="begin:1:1", RANK="0").returncode == 0
    done = run_program(root, "save:2", MEDSFT_CRASH_AT="begin:2:1", RANK="1")
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("wanted", ["before-renam:1", "begin", "begin:", "begin:x", "begin:1:x", "begin:1:"])
def test_a_crash_point_that_does_not_exist_is_an_error(wanted, monkeypatch):
    monkeypatch.setenv(crash_points.VARIABLE, wanted)
    if wanted == "begin:1:":
        crash_points.reach("begin", 2)  # no rank given: any
        return
    with pytest.raises(ValueError, match="MEDSFT_CRASH_AT"):
        crash_points.reach("begin", 2)


def test_a_checkpoint_is_never_replaced(root):
    save(root, 5)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"step-00000005 exists already"):
        begin(root, 5)
    other = begin(root, 6)
    with pytest.raises(UserError, match=r"step-00000005 exists already"):
        commit(root, 5, other, make_manifest(5, write_files(other, 5)))
    abandon(other)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_an_empty_folder_of_that_name_is_not_replaced_either(root):
    """A rename would do so without a word."""
    step_folder(root, 5).mkdir(parents=True)
    with pytest.raises(UserError, match="exists already"):
        begin(root, 5)


def test_a_file_that_rank_0_does_not_see_is_told(root):
    """Which is what an output folder on each node's own disk comes to."""
    temporary = begin(root, 5)
    files = write_files(temporary, 5)
    (temporary / "rank-00001-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"rank-00001-of-00002\.safetensors was written.*all nodes share"):
        commit(root, 5, temporary, make_manifest(5, files))
    assert steps_in(root) == []


def test_a_file_that_rank_0_sees_in_part_is_told(root):
    temporary = begin(root, 5)
    files = write_files(temporary, 5)
    name = "rank-00001-of-00002.safetensors"
    os.truncate(temporary / name, files[name].size - 1)
    with pytest.raises(UserError, match=rf"has {files[name].size - 1} bytes .* wrote {files[name].size}"):
        commit(root, 5, temporary, make_manifest(5, files))
    abandon(temporary)
    assert names_in(root) == []


def test_a_pointer_that_cannot_be_written_costs_no_checkpoint(root, caplog):
    save(root, 5)
    (root / LATEST).unlink()
    (root / LATEST).mkdir()
    with caplog.at_level(logging.WARNING, "medsft"):
        save(root, 6)
    assert "latest cannot be written" in caplog.text
    assert verify(step_folder(root, 6)).step == 6


def test_a_deleted_checkpoint_is_gone_and_the_only_one_stays(root):
    for step in (1, 2):
        save(root, step)
    (root / ".step-00000001.deleted").mkdir()  # of an earlier deletion that was killed
    delete(root, 1)
    check_complete(root, 2)
    with pytest.raises(UserError, match="only checkpoint"):
        delete(root, 2)
    check_complete(root, 2)


def test_cleaning_removes_leftovers_and_nothing_else(root):
    assert clean(root) == []
    save(root, 20)
    begin(root, 30)
    left = [".latest.4711.tmp", ".step-00000010.deleted", ".step-00000030.tmp"]
    (root / left[0]).write_text("step-0000")
    (root / left[1] / "model").mkdir(parents=True)
    for name in (".mine", "step-00000030.tmp", "notes"):
        (root / name).mkdir()
    assert clean(root) == left
    assert names_in(root) == [".mine", LATEST, "notes", "step-00000020", "step-00000030.tmp"]
    assert verify(step_folder(root, 20)).step == 20


@pytest.mark.parametrize("content", [None, "", "step-00000009\n", "step-00000001\n", "\x00"])
def test_the_pointer_is_rebuilt(root, content):
    save(root, 1)
    save(root, 2)
    (root / LATEST).unlink()
    if content is not None:
        (root / LATEST).write_text(content)
    point(root)
    assert (root / LATEST).read_text() == "step-00000002\n"


def test_without_checkpoints_there_is_no_pointer(root):
    point(root)
    root.mkdir(parents=True)
    (root / LATEST).write_text("step-00000009\n")
    point(root)
    assert names_in(root) == []


def test_the_newest_is_that_of_the_highest_step_with_clocks_an_hour_wrong(root):
    hour_s = 3600
    for step, shift_s in ((9, hour_s), (10, 0), (100, -hour_s)):
        folder = save(root, step)
        time_s = folder.stat().st_mtime + shift_s
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (time_s, time_s))
    (root / LATEST).unlink()
    point(root)
    assert read_latest(root) == 100
    assert steps_in(root) == [9, 10, 100]


def test_room_is_checked_before_a_save(root):
    check_space(root, 1000)  # of a folder that is not there yet
    assert not root.exists()
    free = shutil.disk_usage(root.parent.parent).free
    with pytest.raises(
        UserError, match=r"GiB free, the next checkpoint needs .* GiB.*--output_dir"
    ) as caught:
        check_space(root, 2 * free)
    assert str(root) in str(caught.value)


# In a mount name space of its own: a disk of 16 MiB, seen by this process only, gone with it.
FULL_DISK = """
import json, shutil, sys
from pathlib import Path
from checkpoint_saves import make_manifest, save, write_files
from medsft.checkpoint.commit import HEADROOM_BYTES, abandon, begin, check_space, commit
from medsft.checkpoint.layout import read_latest, step_folder, steps_in
from medsft.checkpoint.verify import verify
from medsft.errors import UserError

root = Path(sys.argv[1]) / "checkpoints"
told = {}

def free():
    return shutil.disk_usage(sys.argv[1]).free

def attempt(name, action):
    try:
        action()
        told[name] = None
    except (OSError, UserError) as error:
        told[name] = f"{type(error).__name__}: {error}"

save(root, 10)
told["free"] = free()
attempt("fits", lambda: check_space(root, (free() - HEADROOM_BYTES) // 102 * 100))
attempt("does not fit", lambda: check_space(root, free() - HEADROOM_BYTES))

# Half of it fits, then the disk is full: in a rank's file.
temporary = begin(root, 20)
attempt("shard", lambda: write_files(temporary, 20, 3_000_000))
told["left"] = free()
abandon(temporary)
told["free again"] = free()

# The files fit, to the last byte: the manifest does not.
temporary = begin(root, 20)
manifest = make_manifest(20, write_files(temporary, 20))
with (Path(sys.argv[1]) / "ballast").open("wb", buffering=0) as ballast:
    while True:
        try:
            ballast.write(bytes(4096))
        except OSError:
            break
attempt("manifest", lambda: commit(root, 20, temporary, manifest))
abandon(temporary)
(Path(sys.argv[1]) / "ballast").unlink()
told["free at the end"] = free()

told["steps"], told["latest"] = steps_in(root), read_latest(root)
told["verified"] = verify(step_folder(root, 10)).step
told["names"] = sorted(item.name for item in root.iterdir())
save(root, 20)
told["then"] = verify(step_folder(root, 20)).step
print(json.dumps(told))
"""


def test_a_full_disk_leaves_the_older_checkpoint_and_no_rubbish(tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"]).returncode != 0:
        pytest.skip("a disk to fill needs unshare and the right to mount")
    disk = tmp_path / "磁盘 one"
    disk.mkdir()
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            'mount -t tmpfs -o size=16m tmpfs "$0" && exec "$@"',
            *(str(disk), sys.executable, "-c", BARE + FULL_DISK, str(disk)),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["free"] > HEADROOM_BYTES
    assert told["fits"] is None
    assert told["does not fit"].startswith("UserError: ")
    assert "No space left" in told["shard"] and told["left"] == 0
    assert told["manifest"].startswith("UserError: ") and "No space left" in told["manifest"]
    assert told["free again"] == told["free at the end"] == told["free"]
    assert (told["steps"], told["latest"], told["verified"]) == ([10], 10, 10)
    assert told["names"] == [LATEST, "step-00000010"]
    assert told["then"] == 20


def test_only_unfinished_folders_are_abandoned(root):
    folder = save(root, 1)
    with pytest.raises(AssertionError):
        abandon(folder)
    abandon(temporary_folder(root, 2))  # already gone
    check_complete(root, 1)
