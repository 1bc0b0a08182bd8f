"""Plain `deepspeed` with a hostfile that is not there: it would train on this machine alone."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
from runs import TRAIN, clean_environment, free_port

DEEPSPEED = Path(sys.executable).with_name("deepspeed")


def test_deepspeed_with_a_missing_hostfile_does_not_train(toy_model, instruction_file, tmp_path):
    flags = [
        "--model_name_or_path",
        toy_model,
        "--train_file",
        instruction_file,
        "--output_dir",
        tmp_path / "run",
    ]
    command = [
        DEEPSPEED,
        "--hostfile",
        "主机 文件",
        "--num_gpus",
        2,
        "--master_port",
        free_port(),
        TRAIN,
        *flags,
    ]
    process = psutil.Popen(
        [str(word) for word in command],
        cwd=tmp_path,
        env=clean_environment() | {"DS_ACCELERATOR": "cpu"},
        stdout=-1,
        stderr=-2,
        text=True,
    )
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    (line,) = [line for line in output.splitlines() if line.startswith("medsft: ")]
    assert f"--hostfile 主机 文件, which does not exist ({tmp_path / '主机 文件'})" in line
    assert "started 2 ranks on this machine alone" in line
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
