"""What a run begins with, and what it refuses, by flags and by what the folder holds."""

import json
from dataclasses import dataclass, field, replace

import pytest

from medsft.checkpoint.manifest import Identity
from medsft.checkpoint.resume import candidates, changed_flags, check_same_run
from medsft.config import parse
from medsft.data.plan import StepPlan
from medsft.errors import UserError
from medsft.launch import launch_names
from medsft.run_folder import RunFolder
from medsft.training.saving import flags_to_leave_out, is_save_due

IDENTITY = Identity(model="a" * 64, tokenizer="b" * 64, data="c" * 64, seed=42, global_batch_size=8)


def make_run(path, steps=(), done=False):
    """A folder as a run leaves it, its checkpoints empty but for a manifest."""
    folder = RunFolder(path / "一个 run")
    folder.path.mkdir()
    folder.description.write_text("{}")
    for step in steps:
        checkpoint = folder.checkpoints / f"step-{step:08}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")
    if done:
        folder.done.write_text("{}")
    return folder


def names(folder, wanted="auto", overwrite=False, environment=None):
    return [path.name for path in candidates(folder, wanted, overwrite, environment or {})]


def test_auto_begins_with_the_newest_by_step(tmp_path):
    folder = make_run(tmp_path, steps=(9, 100, 20))
    assert names(folder) == names(folder, "latest") == ["step-00000100", "step-00000020", "step-00000009"]


def test_a_folder_without_a_manifest_is_not_passed_over_in_silence(tmp_path):
    folder = make_run(tmp_path, steps=(4, 8))
    (folder.checkpoints / "step-00000008" / "manifest.json").unlink()
    assert names(folder) == ["step-00000008", "step-00000004"]


def test_auto_begins_at_step_0_where_there_is_no_checkpoint(tmp_path):
    assert names(RunFolder(tmp_path / "new")) == []
    assert names(make_run(tmp_path)) == []  # a run that was killed before its first checkpoint


def test_a_finished_run_without_checkpoints_is_not_replaced(tmp_path):
    folder = make_run(tmp_path, done=True)
    with pytest.raises(UserError, match=r"already holds a run .*previous-N"):
        names(folder)
    assert names(folder, overwrite=True) == []


def test_none_replaces_nothing_either(tmp_path):
    folder = make_run(tmp_path, steps=(4,))
    with pytest.raises(UserError, match="already holds a run"):
        names(folder, "none")
    assert names(folder, "none", overwrite=True) == names(folder, overwrite=True) == []


def test_latest_must_find_one(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        names(make_run(tmp_path), "latest")


def test_a_path_is_taken_as_it_is(tmp_path):
    folder = make_run(tmp_path, steps=(4, 8))
    older = folder.checkpoints / "step-00000004"
    assert candidates(folder, str(older), overwrite=False, environment={}) == [older]
    elsewhere = RunFolder(tmp_path / "branch")
    assert candidates(elsewhere, str(older), overwrite=False, environment={}) == [older]
    assert names(elsewhere, str(folder.path)) == ["step-00000008"]  # of a run: its newest


def test_a_path_does_not_replace_a_run(tmp_path):
    one = make_run(tmp_path, steps=(4,))
    (tmp_path / "two").mkdir()
    two = make_run(tmp_path / "two")
    wanted = str(one.checkpoints / "step-00000004")
    with pytest.raises(UserError, match="already holds a run"):
        candidates(two, wanted, overwrite=False, environment={})
    with pytest.raises(UserError, match="give one of them"):
        candidates(one, wanted, overwrite=True, environment={})
    with pytest.raises(UserError, match="not there"):
        candidates(two, str(tmp_path / "nowhere" / "step-00000004"), overwrite=False, environment={})


@dataclass
class Saved:
    """The part of a manifest that is compared."""

    step: int = 100
    examples_seen: int = 800
    identity: Identity = IDENTITY
    parameters: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"seed": 7}, "--seed"),
        ({"global_batch_size": 16}, "--global_batch_size"),
        ({"data": "d" * 64}, "--train_file"),
        ({"tokenizer": "d" * 64}, "--model_name_or_path"),
        ({"model": "d" * 64}, "--model_name_or_path"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_field_is_refused_unless_its_own_name_is_allowed(change, flag):
    ((name, value),) = change.items()
    now = replace(IDENTITY, **change)
    others = [other for other in ("data", "tokenizer", "seed", "global_batch_size", "model") if other != name]
    with pytest.raises(UserError) as refused:
        check_same_run(Saved(), now, {}, others)
    message = str(refused.value)
    assert f"--allow_changed {name}" in message and flag in message
    assert str(getattr(IDENTITY, name))[:12] in message and str(value)[:12] in message
    check_same_run(Saved(), now, {}, [name])
    check_same_run(Saved(), IDENTITY, {}, [])


def test_no_flag_allows_another_shape():
    with pytest.raises(UserError, match=r"lm_head.weight .*\(4, 8\)"):
        check_same_run(Saved(), IDENTITY, {"lm_head.weight": (4, 8)}, ["model"])


def test_changed_flags_are_told():
    saved, now = {"learning_rate": 1e-3, "seed": 1, "gone": 2}, {"learning_rate": 5e-4, "seed": 1, "new": 3}
    assert changed_flags(saved, now, set()) == ["--learning_rate 0.001 → 0.0005"]
    assert changed_flags(saved, now, {"learning_rate"}) == []


def settings(*more):
    return parse(["--model_name_or_path", "m", "--train_file", "t", "--output_dir", "o", *more]).run


def begun_by(folder, environment, wanted="auto"):
    content = {"launch": launch_names(environment), "flags": {"resume_from_checkpoint": wanted}}
    folder.description.write_text(json.dumps(content))
    return folder


OURS = {"MEDSFT_LAUNCH": "one"}
REQUEUED = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}


@pytest.mark.parametrize(
    ("first", "second", "goes_on"),
    [
        (OURS, OURS, True),
        (OURS, {"MEDSFT_LAUNCH": "two"}, False),
        ({"SLURM_JOB_ID": "7"}, REQUEUED, True),
        ({"SLURM_JOB_ID": "8"}, REQUEUED, False),
        ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}, False),
        ({"SLURM_JOB_ID": "7", **OURS}, {**REQUEUED, "MEDSFT_LAUNCH": "two"}, True),
        ({}, {}, False),
    ],
)
def test_only_the_first_start_of_a_launch_overwrites(first, second, goes_on, tmp_path):
    folder = begun_by(make_run(tmp_path, steps=(4, 8)), first)
    expected = ["step-00000008", "step-00000004"] if goes_on else []
    assert names(folder, overwrite=True, environment=second) == expected
    older = str(folder.checkpoints / "step-00000004")
    expected = ["step-00000008", "step-00000004"] if goes_on else ["step-00000004"]
    assert names(folder, older, environment=second) == expected


def test_a_launch_that_died_before_its_own_run_json_still_overwrites(tmp_path):
    """What stands there is the earlier run's, whatever the number of restarts."""
    folder = begun_by(make_run(tmp_path, steps=(4, 8)), {"MEDSFT_LAUNCH": "the earlier one"})
    assert names(folder, overwrite=True, environment=OURS) == []


@pytest.mark.parametrize("damage", ["half", "list", "unreadable"])
def test_a_description_that_cannot_be_read_is_not_taken_for_none(damage, tmp_path):
    """A requeue with --overwrite_output_dir would begin at step 0, and move its own checkpoints away."""
    folder = begun_by(make_run(tmp_path, steps=(4, 8)), OURS)
    if damage == "unreadable":
        folder.description.unlink()
        folder.description.symlink_to(folder.description.name)  # a loop: unreadable for root too
    else:
        folder.description.write_text({"half": '{"launch": ["o', "list": "[]"}[damage])
    older = str(folder.checkpoints / "step-00000004")
    for wanted, overwrite in (("auto", True), ("none", False), ("none", True), (older, False)):
        with pytest.raises(UserError, match=r"run\.json cannot be read .*leave out --overwrite_output_dir"):
            names(folder, wanted, overwrite, OURS)
    # Whoever began it, these go on with what is there.
    assert names(folder) == names(folder, "latest") == ["step-00000008", "step-00000004"]


def test_a_branch_goes_on_with_itself(tmp_path):
    one = make_run(tmp_path, steps=(4,))
    wanted = str(one.checkpoints / "step-00000004")
    (tmp_path / "two").mkdir()
    two = begun_by(make_run(tmp_path / "two", steps=(6,)), {}, wanted)
    assert names(two, wanted) == ["step-00000006"]
    assert names(two, wanted, overwrite=True) == ["step-00000004"]


def test_the_same_command_is_not_promised_to_go_on_where_it_would_not():
    assert (
        flags_to_leave_out(settings())
        == flags_to_leave_out(settings("--resume_from_checkpoint", "latest"))
        == []
    )
    flags = ("--overwrite_output_dir", "true", "--resume_from_checkpoint", "none")
    assert flags_to_leave_out(settings(*flags)) == ["--overwrite_output_dir", "--resume_from_checkpoint"]


PLAN = StepPlan(num_examples=20, fingerprint="c" * 64, global_batch_size=8, seed=0, num_steps=8)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (("--save_strategy", "no"), []),
        (("--save_strategy", "steps", "--save_steps", "3"), [3, 6]),
        (("--save_strategy", "steps"), []),
        (("--save_strategy", "epoch"), [3, 5]),
        (("--save_strategy", "time"), []),
        ((), [3, 5]),
    ],
)
def test_when_a_checkpoint_is_due(flags, steps):
    due = [step + 1 for step in range(7) if is_save_due(settings(*flags), PLAN, step, is_last=False)]
    assert due == steps
    assert is_save_due(settings(*flags), PLAN, 6, is_last=True) == ("no" not in flags)
