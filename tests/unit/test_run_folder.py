import subprocess
import sys

import pytest

from medsft.errors import UserError
from medsft.files import write_json
from medsft.run_folder import RunFolder, claim, model_folder, move_aside


def test_a_new_folder_is_made_and_locked(tmp_path):
    path = tmp_path / "新 的" / "run"
    lock = claim(path, overwrite=False)
    assert path.is_dir()
    assert lock.is_locked
    lock.release()


def test_a_folder_with_a_run_is_refused_and_says_how_to_go_on(tmp_path):
    write_json(RunFolder(tmp_path).description, {})
    with pytest.raises(
        UserError, match=r"already holds a run \(run\.json\).*--overwrite_output_dir"
    ) as caught:
        claim(tmp_path, overwrite=False)
    assert str(tmp_path) in str(caught.value)


def test_other_files_are_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim(tmp_path, overwrite=False).release()


def test_overwriting_moves_the_old_run_aside_each_time(tmp_path):
    for expected in ("previous-1", "previous-2"):
        write_json(RunFolder(tmp_path).description, {"run": expected})
        (tmp_path / "DONE").touch()
        claim(tmp_path, overwrite=True).release()
        assert (tmp_path / "DONE").exists()  # not before the run is known to be able to start
        move_aside(tmp_path)
        assert (tmp_path / expected / "run.json").exists()
        assert (tmp_path / expected / "DONE").exists()
        assert not (tmp_path / "DONE").exists()


HOLD = """
import sys
from pathlib import Path
from medsft.run_folder import claim
lock = claim(Path(sys.argv[1]), False)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_process_is_gone(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another run"):
            claim(tmp_path, overwrite=True)
    finally:
        holder.kill()
        holder.communicate()
    claim(tmp_path, overwrite=False).release()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        claim(tmp_path / "file" / "run", overwrite=False)


def test_the_model_of_a_run_is_found_inside_it(tmp_path):
    assert model_folder(tmp_path) == tmp_path
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path / "model"
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path


def test_json_files_hold_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
