"""What each transport starts, as words; no secret stands among them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import __main__ as command_line
from launcher.command import Command
from launcher.control.spec import VARIABLE, Spec
from launcher.errors import LauncherError
from launcher.job import Job, Node
from launcher.signals import held_back
from launcher.transport import TRANSPORTS, openmpi, pdsh, slurm

SECRET, TOKEN = "hf_hunter2", "ab" * 32
FOLDER = "/my folder/100%h 仓库's"
AGENT = [
    "sh",
    "-c",
    'cd -- "$0" && exec "$@"',
    FOLDER,
    "/opt/my python",
    "-m",
    "launcher",
    "node",
    "--job",
    "id7",
]


def a_spec() -> Spec:
    job = Job(
        nodes=(Node("node1", 2), Node("node2", 1, (3,))),
        python="/opt/my python",
        script=Path("train.py"),
        arguments=("--x", "$(y)"),
        environment=(("HF_TOKEN", SECRET), ("NCCL_DEBUG", "INFO")),
        master_address="",
        master_port=0,
    )
    return Spec("id7", TOKEN, ("10.0.0.1",), 4000, None, FOLDER, job)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("MEDSFT_SSH_ARGS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


def test_pdsh(monkeypatch):
    monkeypatch.setenv("MEDSFT_SSH_ARGS", "-p 2222")
    command = pdsh.command(a_spec())
    *words, remote = command.arguments
    assert words == ["pdsh", "-N", "-S", "-R", "ssh", "-f", "2", "-w", "node1,node2"]
    assert dict(command.environment) == {
        "PDSH_SSH_ARGS_APPEND": "-p 2222 -o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
    }
    # pdsh replaces %h, and a shell on the host splits the words again.
    assert "100%%h" in remote
    assert shlex.split(remote.replace("%%", "%")) == AGENT


@pytest.mark.skipif(shutil.which("pdsh") is None, reason="no pdsh here")
def test_pdsh_really_gives_the_percent_sign_back(tmp_path):
    """Its `exec` module replaces words as that of ssh does."""
    shown = subprocess.run(
        ["pdsh", "-N", "-R", "exec", "-w", "node1", "echo", "100%%h", "%h"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "100%h node1\n"


def test_openmpi(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    command = openmpi.command(a_spec())
    assert list(command.arguments) == [
        *("mpirun", "--host", "node1:1,node2:1", "--map-by", "ppr:1:node", "-np", "2", "--bind-to", "none"),
        *("--mca", "plm", "rsh", "--mca", "plm_rsh_no_tree_spawn", "1"),
        *("--mca", "plm_rsh_args", "-o BatchMode=yes"),
        *AGENT,
    ]
    assert command.environment == ()
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert openmpi.command(a_spec()).arguments[1] == "--allow-run-as-root"


def test_slurm(monkeypatch):
    command = slurm.command(a_spec())
    assert list(command.arguments) == [
        *("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=node1,node2", "--overlap"),
        *("--kill-on-bad-exit=1", "--wait=0", "--input=none", "--unbuffered", "--export=ALL"),
        *AGENT,
    ]
    ((name, text),) = command.environment
    assert name == VARIABLE
    assert Spec.from_json(text) == a_spec()
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    assert "--cpus-per-task=16" in slurm.command(a_spec()).arguments


@pytest.mark.parametrize("module", [pdsh, openmpi, slurm])
def test_no_secret_on_a_command_line_or_shown(module):
    command = module.command(a_spec())
    for text in (" ".join(command.arguments), command.shown()):
        assert SECRET not in text
        assert TOKEN not in text


def test_a_program_that_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        held_back() as signals,
        pytest.raises(LauncherError, match=r"'srun' cannot be started on this machine: No such file"),
        TRANSPORTS["slurm"].started(a_spec().job, signals, 5.0, print),
    ):
        pass


class TestDryRun:
    @pytest.fixture
    def script(self, tmp_path):
        path = tmp_path / "训练 script.py"
        path.touch()
        (tmp_path / "hosts").write_text("node1 slots=2\nnode2 slots=1\n")
        return path

    @pytest.mark.parametrize("transport", ["pdsh", "openmpi"])
    def test_all_is_shown_but_secrets_and_nothing_is_started(self, capfd, monkeypatch, script, transport):
        monkeypatch.setenv("HF_TOKEN", SECRET)
        monkeypatch.setenv("NCCL_DEBUG", "IN FO")
        monkeypatch.setenv("PATH", "/nowhere")
        place = ["--hostfile", str(script.with_name("hosts")), "--transport", transport]
        code = command_line.main(
            ["run", *place, "--dry-run", "--env", "MY_PASSWORD=pw1", str(script), "--lr", "1"]
        )
        out, err = capfd.readouterr()
        assert (code, err) == (0, "")
        assert SECRET not in out
        assert "pw1" not in out
        lines = dict(line.split(": ", 1) for line in out.splitlines())
        starter = {"openmpi": "mpirun"}.get(transport, transport)
        receivers = ["first on node1, by ssh", "first on node2, by ssh"]
        assert list(lines) == [*receivers, starter, "rank 0 on node1", "rank 1 on node1", "rank 2 on node2"]
        received = shlex.split(lines[receivers[1]])
        assert received[-5:-1] == ["-m", "launcher", "receive", "--job"]
        # What is delivered is what the agents then take.
        assert received[-1] in lines[starter]
        words = shlex.split(lines["rank 2 on node2"])
        assert {
            "HF_TOKEN=***",
            "NCCL_DEBUG=IN FO",
            "MY_PASSWORD=***",
            "RANK=2",
            "LOCAL_RANK=0",
            "NODE_RANK=1",
            "WORLD_SIZE=3",
            "MASTER_ADDR=(chosen on node1)",
            "MASTER_PORT=(a free one)",
        } <= set(words)
        assert words[-5:] == [sys.executable, "-u", str(script), "--lr", "1"]

    def test_a_reader_who_has_seen_enough(self, script):
        (script.with_name("hosts")).write_text("".join(f"node{n} slots=8\n" for n in range(200)))
        words = [
            sys.executable,
            "-m",
            "launcher",
            "run",
            "-H",
            script.with_name("hosts"),
            "--dry-run",
            script,
        ]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline().startswith("first on node0, by ssh: env ")
            process.stdout.close()
            assert process.stderr.read() == ""
        assert process.returncode == 141


def test_what_slurm_is_told_is_masked_when_shown():
    shown = Command("srun", ("srun",), ((VARIABLE, json.dumps({"token": TOKEN})),)).shown()
    assert shown == f"env {VARIABLE}=*** srun"


def test_ssh_words_that_pdsh_would_take_apart_are_refused(monkeypatch):
    monkeypatch.setenv("MEDSFT_SSH_ARGS", "-o 'ProxyCommand=ssh -W %h:%p gate'")
    for transport in (pdsh, openmpi):
        with pytest.raises(LauncherError, match="Put what it says into"):
            transport.command(a_spec())


def test_the_users_own_words_for_pdsh_stay(monkeypatch):
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-o Compression=yes")
    ((_, words),) = pdsh.command(a_spec()).environment
    assert words.startswith("-o Compression=yes -o BatchMode=yes")


@pytest.mark.parametrize(
    ("given", "num_cpus"),
    [
        ({"SLURM_NTASKS_PER_NODE": "8"}, 64),
        # salloc -N2 -n16 -c8, and an uneven one.
        ({"SLURM_TASKS_PER_NODE": "8(x2)"}, 64),
        ({"SLURM_TASKS_PER_NODE": "4(x2),2"}, 16),
        ({}, 8),
    ],
)
def test_slurm_gives_the_agent_all_cores_of_the_node(monkeypatch, given, num_cpus):
    for name in ("SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"SLURM_CPUS_PER_TASK": "8"} | given).items():
        monkeypatch.setenv(name, value)
    assert f"--cpus-per-task={num_cpus}" in slurm.command(a_spec()).arguments


def test_a_job_too_large_for_slurms_environment_is_refused():
    long = replace(a_spec(), job=replace(a_spec().job, arguments=("x" * 140_000,)))
    with pytest.raises(LauncherError, match="one environment variable takes"):
        slurm.command(long)
