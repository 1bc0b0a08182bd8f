import pytest

from medsft.errors import UserError
from medsft.files import write_json
from medsft.run_folder import (
    RunFolder,
    holds_run,
    left_by_a_run,
    model_folder,
    move_aside,
    move_aside_newer,
    step_name,
    step_of,
)


def make_checkpoints(path, *steps):
    for step in steps:
        folder = RunFolder(path).checkpoints / step_name(step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(f"{step}")


def test_a_folder_holds_a_run_when_a_run_left_something(tmp_path):
    assert not holds_run(tmp_path / "nowhere")
    for name in ("notes.txt", ".lock", ".owner.json", "previous-1", "data_cache", "STOP"):
        (tmp_path / name).touch()
    (tmp_path / "evaluation").mkdir()
    assert not holds_run(tmp_path)
    assert left_by_a_run(tmp_path) == []
    write_json(RunFolder(tmp_path).description, {})
    make_checkpoints(tmp_path, 1)
    assert holds_run(tmp_path)
    assert [item.name for item in left_by_a_run(tmp_path)] == ["run.json", "checkpoints", "evaluation"]


def test_what_a_run_left_is_moved_aside_each_time(tmp_path):
    folder = RunFolder(tmp_path / "新 的")
    folder.path.mkdir()
    (folder.path / "notes.txt").write_text("mine")
    move_aside(folder.path)  # nothing to move, and nothing is made
    for expected in ("previous-1", "previous-2"):
        write_json(folder.description, {"run": expected})
        folder.done.touch()
        make_checkpoints(folder.path, 10)
        move_aside(folder.path)
        aside = folder.path / expected
        assert sorted(item.name for item in aside.iterdir()) == ["DONE", "checkpoints", "run.json"]
        assert (aside / "checkpoints" / "step-00000010" / "manifest.json").read_text() == "10"
        assert not holds_run(folder.path)
    assert sorted(item.name for item in folder.path.iterdir()) == ["notes.txt", "previous-1", "previous-2"]


def test_later_checkpoints_are_moved_aside_and_earlier_ones_stay(tmp_path):
    checkpoints = RunFolder(tmp_path).checkpoints
    make_checkpoints(tmp_path, 9, 10, 100_000_000, 11)
    (checkpoints / step_name(12)).mkdir()  # damaged: no manifest
    (checkpoints / "latest").write_text("step-00000010\n")
    (checkpoints / ".step-00000013.tmp").mkdir()
    (checkpoints / "step-14").mkdir()  # the user's own
    (tmp_path / "previous-1").mkdir()
    moved = checkpoints / "previous-1"
    assert move_aside_newer(tmp_path, 10) == moved
    assert sorted(item.name for item in moved.iterdir()) == [
        "step-00000011",
        "step-00000012",
        "step-100000000",
    ]
    assert (moved / "step-100000000" / "manifest.json").read_text() == "100000000"
    assert sorted(item.name for item in checkpoints.iterdir()) == [
        ".step-00000013.tmp",
        "latest",
        "previous-1",
        "step-00000009",
        "step-00000010",
        "step-14",
    ]
    assert move_aside_newer(tmp_path, 10) is None
    assert not (checkpoints / "previous-2").exists()


def test_the_metrics_of_a_branch_go_with_it_also_on_another_disk(tmp_path):
    elsewhere = tmp_path / "scratch disk"
    elsewhere.mkdir()
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.checkpoints.symlink_to(elsewhere)
    make_checkpoints(folder.path, 4, 8)
    folder.metrics.write_text("figures")
    aside = move_aside_newer(folder.path, 4)
    assert sorted(item.name for item in aside.iterdir()) == ["metrics.jsonl", "step-00000008"]
    assert (aside / "metrics.jsonl").read_text() == folder.metrics.read_text() == "figures"
    assert aside.resolve().parent == elsewhere


def test_without_checkpoints_none_is_moved(tmp_path):
    assert move_aside_newer(tmp_path, 0) is None
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_step_is_read_back():
    for step in (0, 1, 99_999_999, 100_000_000):
        assert step_of(step_name(step)) == step
    assert step_name(100) == "step-00000100"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "step-",
        "step-100",
        "step-0000000100",
        "step--0000100",
        "step-0000010a",
        "00000100",
        "step-0000010²",
        "step-٠٠٠٠٠١٠٠",
        ".step-00000100.tmp",
        "step-00000100 ",
        "step-step-00000100",
    ],
)
def test_other_names_are_no_step(name):
    assert step_of(name) is None


def test_the_model_of_a_run_is_found_inside_it(tmp_path):
    assert model_folder(tmp_path) == tmp_path
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path / "model"
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == tmp_path


def test_a_run_without_a_model_says_how_to_get_one(tmp_path):
    run = tmp_path / "训练 1"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"not written its model yet. Let it finish\.$"):
        model_folder(run)
    make_checkpoints(run, 10)
    with pytest.raises(UserError, match=r"not written its model.*medsft export '.*训练 1' MODEL_FOLDER"):
        model_folder(run)


def test_a_checkpoint_is_no_model(tmp_path):
    """Its folder `model` has a tokenizer and no weights, and is none either."""
    make_checkpoints(tmp_path, 10)
    checkpoint = RunFolder(tmp_path).checkpoints / step_name(10)
    (checkpoint / "model").mkdir()
    (checkpoint / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a checkpoint.*medsft export .*step-00000010 MODEL_FOLDER"):
        model_folder(checkpoint)


def test_json_files_hold_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())
