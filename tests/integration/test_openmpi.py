"""A bare `mpirun … python medsft/train.py`: ranks that know each other by MPI alone."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from runs import REPOSITORY, TRAIN, clean_environment, read_metrics

pytestmark = pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI's mpirun")

WORKER = REPOSITORY / "tests" / "integration" / "openmpi_worker.py"
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
NOBODY = "192.0.2.77"  # of a net that is for documentation only (RFC 5737)


def mpirun(arguments, *options, **environment):
    return subprocess.run(
        [*MPIRUN, "-n", "2", *options, sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=clean_environment() | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def train_flags(model, data, run):
    return [
        *("--model_name_or_path", model, "--train_file", data, "--output_dir", run, "--max_steps", 3),
        *("--global_batch_size", 8, "--logging_steps", 1, "--save_strategy", "no"),
        *("--learning_rate", "1e-3", "--warmup_steps", 0, "--distributed_timeout_min", 2),
    ]


def test_two_ranks_train_to_the_losses_of_one(toy_model, instruction_file, tmp_path):
    alone, both = tmp_path / "一个", tmp_path / "两 个"
    single = subprocess.run(
        [sys.executable, str(TRAIN), *map(str, train_flags(toy_model, instruction_file, alone))],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert single.returncode == 0, single.stderr
    result = mpirun([TRAIN, *train_flags(toy_model, instruction_file, both)])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ranks: 2" in result.stdout
    losses = [[record["loss"] for record in read_metrics(run)] for run in (alone, both)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(losses[0]) == 3
    assert (both / "DONE").exists()
    assert "mpirun" not in result.stderr and "MPI" not in result.stderr


def test_the_first_address_that_all_reach_is_taken_and_the_exit_code_kept():
    result = mpirun([WORKER, 75, f"{NOBODY},127.0.0.3,127.0.0.4", NOBODY])
    said = sorted(result.stdout.splitlines())
    assert said[::2] == [f"rank {rank}: 127.0.0.3 True" for rank in range(2)]
    for rank, line in enumerate(said[1::2]):
        assert line.startswith(f"rank {rank}: no address of rank 0's host ({NOBODY}) can be reached")
        assert "none at all from the host of rank 0, 1" in line and "-x MASTER_ADDR=" in line
    assert result.returncode == 75, result.stderr
    assert "without calling" not in result.stderr  # mpirun's word for a rank that has left MPI open


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("没有.so", "mpi4py, which cannot be imported (cannot load MPI library 没有.so"),
        (None, "mpirun started 2 ranks, but MPI in this Python knows 1"),
    ],
)
def test_an_mpi_that_does_not_join_the_ranks_is_an_error_of_the_user(library, words, toy_model, tmp_path):
    """A rank of whose MPI mpirun knows nothing, as of one of another make: it believes to be alone."""
    places = {"RANK": "0", "SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "2"}
    environment = {f"OMPI_COMM_WORLD_{name}": value for name, value in places.items()}
    result = subprocess.run(
        [sys.executable, str(TRAIN), *map(str, train_flags(toy_model, "a.jsonl", tmp_path / "run"))],
        cwd=REPOSITORY,
        env=clean_environment() | environment | ({"MPI4PY_LIBMPI": library} if library else {}),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("medsft: ")]
    assert words in line
    assert "Traceback" not in result.stderr
