"""The job script and the demo as a shell sees them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medsft.config import parse

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ["slurm/train_8xa100.sh", "examples/demo.sh", ".ci/run"]
# Stands in for python: writes down how it was called, and where.
RECORDER = "import json, os, sys; print(json.dumps([os.getcwd(), *sys.argv[1:]]))"


@pytest.fixture
def submit(tmp_path):
    """Runs the job script as Slurm would, from a copy elsewhere; gives the folder and the command line."""
    spool = tmp_path / "spool dir"
    spool.mkdir()
    script = Path(shutil.copy(REPOSITORY / "slurm/train_8xa100.sh", spool / "slurm_script"))
    python = tmp_path / "my python"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{RECORDER}' \"$@\"\n", encoding="utf-8")
    python.chmod(0o755)

    def run(*arguments: str, **environment: str) -> tuple[str, list[str]]:
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


def test_the_job_is_one_launch_of_eight_ranks(submit):
    folder, command = submit(SLURM_JOB_ID="17", SLURM_JOB_NAME="medsft")
    assert folder == str(REPOSITORY)
    assert command[:6] == ["-m", "launcher", "run", "--num-gpus", "8", "medsft/train.py"]
    config = parse(command[6:])
    assert config.run.output_dir == "runs/medsft-17"
    assert (REPOSITORY / config.run.deepspeed).is_file()


def test_everything_can_be_overridden_with_blanks_in_paths(submit):
    _, command = submit(
        "--num_train_epochs",
        "5",
        "--warmup_ratio",
        "0",
        MODEL="/my models/chat glm",
        TRAIN_FILE="数据 1.jsonl",
        OUTPUT_DIR="out dir",
        DS_CONFIG="my config.json",
        NUM_GPUS="2",
    )
    assert command[:5] == ["-m", "launcher", "run", "--num-gpus", "2"]
    config = parse(command[6:])
    assert config.model.model_name_or_path == "/my models/chat glm"
    assert config.data.train_file == ["数据 1.jsonl"]
    assert config.run.output_dir == "out dir"
    assert config.run.deepspeed == "my config.json"
    assert config.optimization.num_train_epochs == 5
    assert config.optimization.warmup_ratio == 0


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
