"""The job scripts and the demo as a shell sees them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medsft.config import parse

REPOSITORY = Path(__file__).resolve().parents[2]
TRAINING = ["slurm/train_8xa100.sh", "slurm/train_multinode.sh"]
SCRIPTS = [*TRAINING, "slurm/evaluate.sh", "examples/demo.sh", ".ci/run"]
# Stands in for python: writes down how it was called, and where.
RECORDER = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))"


@pytest.fixture
def submit(tmp_path):
    """Runs a job script as Slurm would, from a copy elsewhere; gives the folder and the command line."""
    spool = tmp_path / "spool dir"
    spool.mkdir()
    python = tmp_path / "my python"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{RECORDER}' \"$@\"\n", encoding="utf-8")
    python.chmod(0o755)

    def run(name: str, *arguments: str, **environment: str) -> tuple[str, list[str]]:
        script = Path(shutil.copy(REPOSITORY / name, spool / "slurm_script"))
        inherited = {"PATH": os.environ["PATH"], "PYTHON": str(python), "SLURM_SUBMIT_DIR": str(REPOSITORY)}
        done = subprocess.run(
            ["bash", str(script), *arguments],
            env=inherited | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        folder, *command = json.loads(done.stdout)
        return folder, command

    return run


def launch_and_flags(command: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's own words, and those of the training."""
    assert command[:3] == ["-m", "launcher", "run"]
    split = command.index("medsft/train.py")
    return command[3:split], command[split + 1 :]


@pytest.mark.parametrize("name", TRAINING)
def test_the_job_is_one_launch_of_eight_ranks_a_node(submit, name):
    folder, command = submit(name, SLURM_JOB_ID="17", SLURM_JOB_NAME="medsft")
    assert folder == str(REPOSITORY)
    launch, flags = launch_and_flags(command)
    assert launch == ["--num-gpus", "8", "--max-requeues", "20", "--max-restarts", "3"]
    config = parse(flags)
    assert config.run.output_dir == "runs/medsft-17"
    assert (REPOSITORY / config.run.deepspeed).is_file()


@pytest.mark.parametrize("name", TRAINING)
def test_a_flag_of_the_batch_takes_the_place_of_the_scripts_own(submit, name):
    assert "--global_batch_size" in launch_and_flags(submit(name, "--seed", "7")[1])[1]
    for flag in ("--gradient_accumulation_steps=4", "--per_device_train_batch_size=4"):
        assert "--global_batch_size" not in launch_and_flags(submit(name, *flag.split("="))[1])[1]
        assert "--global_batch_size" not in launch_and_flags(submit(name, "--seed", "7", flag)[1])[1]


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("config", [["--config", "my run.yaml"], ["--config=my run.yaml"]])
def test_a_file_of_settings_is_overruled_by_the_environment_alone(submit, name, config):
    _, command = submit(name, *config, "--seed", "7", SLURM_JOB_ID="17")
    assert launch_and_flags(command)[1] == [*config, "--seed", "7"]
    _, command = submit(name, *config, OUTPUT_DIR="out dir")
    assert launch_and_flags(command)[1] == ["--output_dir", "out dir", *config]


@pytest.mark.parametrize("name", TRAINING)
def test_everything_can_be_overridden_with_blanks_in_paths(submit, name):
    _, command = submit(
        name,
        "--num_train_epochs",
        "5",
        "--warmup_ratio",
        "0",
        MODEL="/my models/chat glm",
        TRAIN_FILE="数据 1.jsonl",
        OUTPUT_DIR="out dir",
        DS_CONFIG="my config.json",
        NUM_GPUS="2",
        MEDSFT_LAUNCH_FLAGS="--max-requeues 5  --env NCCL_DEBUG=*",
    )
    launch, flags = launch_and_flags(command)
    assert launch[:2] == ["--num-gpus", "2"]
    # Behind the script's own, so that they count.
    assert launch[-4:] == ["--max-requeues", "5", "--env", "NCCL_DEBUG=*"]
    config = parse(flags)
    assert config.model.model_name_or_path == "/my models/chat glm"
    assert config.data.train_file == ["数据 1.jsonl"]
    assert config.run.output_dir == "out dir"
    assert config.run.deepspeed == "my config.json"
    assert config.optimization.num_train_epochs == 5
    assert config.optimization.warmup_ratio == 0


def test_the_evaluation_compares_before_and_after(submit):
    name = "slurm/evaluate.sh"
    folder, command = submit(name, TUNED="runs/医 1", QUESTIONS="my questions.jsonl")
    assert folder == str(REPOSITORY)
    assert command[:3] == ["-m", "medsft.cli", "compare"]
    flags = dict(zip(command[3::2], command[4::2], strict=True))
    assert flags == {
        "--base": "models/chatglm-6b",
        "--tuned": "runs/医 1",
        "--questions": "my questions.jsonl",
        "--num_questions": "100",
    }
    assert submit(name, "--num_questions", "7", TUNED="t", BASE="b b")[1][-2:] == ["--num_questions", "7"]
    shown = subprocess.run(
        [sys.executable, "-m", "medsft.cli", "compare", "--help"],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(flag in shown.stdout for flag in flags)


def test_the_evaluation_says_what_it_needs():
    done = subprocess.run(
        ["bash", REPOSITORY / "slurm/evaluate.sh"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "TUNED: is not set: give the run's folder" in done.stderr


@pytest.mark.parametrize("name", TRAINING)
def test_the_job_is_told_before_its_end_and_may_go_back_into_the_queue(name):
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    resources = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@600", "--requeue", "--open-mode=append", "--gres=gpu:8"} <= set(resources)
    assert ("--nodes=1" in resources) == (name == TRAINING[0])


def test_the_demo_does_not_touch_a_folder_that_is_not_its_own(tmp_path):
    (tmp_path / "thesis").write_text("years of work")
    done = subprocess.run(
        ["bash", REPOSITORY / "examples/demo.sh", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert (tmp_path / "thesis").read_text() == "years of work"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_pass_shellcheck(script):
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(
        [shellcheck, "--norc", REPOSITORY / script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run_and_stop_at_the_first_failure(script):
    path = REPOSITORY / script
    assert os.access(path, os.X_OK)
    assert "\nset -euo pipefail\n" in path.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", path], check=True)
