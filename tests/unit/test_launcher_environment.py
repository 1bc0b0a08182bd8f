"""What travels to every host, and what stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher import options
from launcher.environment import travelling
from launcher.job import OWNED_VARIABLES, Node
from launcher.make_job import make_job
from launcher.place import Place
from launcher.transport import TRANSPORTS

ODD = "a b'c\"d, $(reboot) $HOME `x` \\ % 中文\n="


@pytest.mark.parametrize(
    "name",
    [
        "NCCL_SOCKET_IFNAME",
        "GLOO_SOCKET_IFNAME",
        "HF_HOME",
        "HF_TOKEN",
        "OMP_NUM_THREADS",
        "CUDA_LAUNCH_BLOCKING",
        "PYTHONPATH",
        "PYTHONUNBUFFERED",
        "DS_ACCELERATOR",
        "TORCH_DISTRIBUTED_DEBUG",
        "MEDSFT_SSH_ARGS",
    ],
)
def test_what_travels_arrives_as_it_is(name):
    assert travelling({name: ODD, "Z": "1"}) == ((name, ODD),)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "HOME",
        "LD_LIBRARY_PATH",
        "SSH_AUTH_SOCK",
        "AWS_SECRET_ACCESS_KEY",
        "SLURM_JOB_ID",
        "XNCCL_DEBUG",
        "nccl_debug",
        # Each host has its own.
        "CUDA_VISIBLE_DEVICES",
        "MEDSFT_HEARTBEAT",
        "MEDSFT_AGENT",
        *sorted(OWNED_VARIABLES),
    ],
)
def test_what_stays(name):
    assert travelling({name: ODD}) == ()


def test_the_order_is_that_of_the_names():
    assert [name for name, _ in travelling({"OMP_B": "1", "DS_A": "2", "OMP_A": "3"})] == [
        "DS_A",
        "OMP_A",
        "OMP_B",
    ]


@pytest.fixture
def job_of(tmp_path):
    script = tmp_path / "训练.py"
    script.touch()

    def of(transport: str, *flags: str):
        present = {
            "NCCL_DEBUG": "INFO",
            "HF_TOKEN": ODD,
            "CUDA_VISIBLE_DEVICES": "1",
            "PATH": "/bin",
            "MY": ODD,
        }
        chosen = options.parse(["run", *flags, str(script), "--a", "b c"])
        return make_job(chosen, Place(TRANSPORTS[transport], (Node("n", 1),)), None, present)

    return of


def test_a_flag_has_the_last_word(job_of):
    job = job_of("pdsh", "--env", "NCCL_DEBUG=WARN", "--env", "MY", "--env", "CUDA_VISIBLE_DEVICES=3")
    assert job.environment == (
        ("HF_TOKEN", ODD),
        ("NCCL_DEBUG", "WARN"),
        ("MY", ODD),
        ("CUDA_VISIBLE_DEVICES", "3"),
    )
    assert (job.python, job.arguments, job.logs) == (sys.executable, ("--a", "b c"), None)


def test_here_all_of_it_is_inherited(job_of):
    assert job_of("local").environment == ()
    assert job_of("local", "--env", "MY").environment == (("MY", ODD),)


def test_without_a_script_it_is_a_job_of_nothing():
    chosen = options.parse(["check"])
    job = make_job(chosen, Place(TRANSPORTS["local"], (Node("n", 1),)), None, {})
    assert (job.script, job.arguments, job.master_port) == (Path(), (), 0)
