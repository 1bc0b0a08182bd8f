"""From flags to a job and its commands, as plain values."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import __main__ as command_line
from launcher.command import Command
from launcher.errors import LauncherError
from launcher.hosts.ports import free_port, is_free
from launcher.hosts.slots import count_slots, list_nvidia_gpus
from launcher.job import OWNED_VARIABLES, Job, Node, existing_script, parse_environment
from launcher.ranks.commands import rank_commands
from launcher.transport import TRANSPORTS

ODD_ARGUMENTS = (
    "--train_file",
    "my data/问答 1.jsonl",
    'it\'s "quoted"',
    "$(reboot)",
    "",
    "--",
    "--num-gpus",
    "9",
)


def job(num_slots: int = 2, **changes) -> Job:
    values = {
        "nodes": (Node("localhost", num_slots),),
        "python": "/opt/my python/bin/python",
        "script": Path("my code/train.py"),
        "arguments": ODD_ARGUMENTS,
        "environment": (("OMP_NUM_THREADS", "4"),),
        "master_address": "127.0.0.1",
        "master_port": 29501,
    }
    return Job(**values | changes)


def no_gpus() -> int:
    return 0


class TestLocalTransport:
    def test_one_command_for_each_rank_with_arguments_as_they_are(self):
        commands = TRANSPORTS["local"].commands(job(num_slots=3))
        assert [command.name for command in commands] == ["rank 0", "rank 1", "rank 2"]
        for command in commands:
            assert command.arguments == (
                "/opt/my python/bin/python",
                "-u",
                "my code/train.py",
                *ODD_ARGUMENTS,
            )

    def test_environment_of_a_rank(self):
        environment = dict(TRANSPORTS["local"].commands(job(num_slots=3))[2].environment)
        assert environment == {
            "OMP_NUM_THREADS": "4",
            "RANK": "2",
            "LOCAL_RANK": "2",
            "WORLD_SIZE": "3",
            "LOCAL_WORLD_SIZE": "3",
            "LOCAL_SIZE": "3",
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29501",
        }
        assert environment.keys() - {"OMP_NUM_THREADS"} == OWNED_VARIABLES

    @pytest.mark.parametrize(
        ("host", "given", "expected"),
        [
            ({}, {}, "1,3"),
            ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, {}, "5,7"),
            ({"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b,GPU-c, GPU-d"}, {}, "GPU-b,GPU-d"),
            ({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, {"CUDA_VISIBLE_DEVICES": "3,2,1,0"}, "2,0"),
            # Hidden ones stay so, and ranks on the CPU take no slot of a GPU.
            ({"CUDA_VISIBLE_DEVICES": ""}, {}, None),
            ({"CUDA_VISIBLE_DEVICES": "0"}, {"DS_ACCELERATOR": "cpu"}, None),
        ],
    )
    def test_chosen_slots_are_those_of_the_visible_gpus(self, host, given, expected):
        chosen = job(nodes=(Node("localhost", 2, (1, 3)),), environment=tuple(given.items()))
        for command in rank_commands(chosen, 0, "127.0.0.1", 29500, host):
            added = dict(command.environment[len(given) :])
            assert added.get("CUDA_VISIBLE_DEVICES") == expected

    def test_the_launchers_own_environment_says_what_is_visible(self, monkeypatch):
        monkeypatch.delenv("DS_ACCELERATOR", raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
        [command] = TRANSPORTS["local"].commands(job(nodes=(Node("localhost", 1, (1,)),)))
        assert dict(command.environment)["CUDA_VISIBLE_DEVICES"] == "5"

    def test_a_chosen_slot_without_a_visible_gpu_is_refused(self):
        chosen = job(nodes=(Node("node1", 1, (2,)),))
        with pytest.raises(
            LauncherError, match=r"node1 has no slot 2: CUDA_VISIBLE_DEVICES=4,5 .*slots 0 to 1"
        ):
            rank_commands(chosen, 0, "127.0.0.1", 29500, {"CUDA_VISIBLE_DEVICES": "4,5"})

    def test_it_takes_one_node_only(self):
        with pytest.raises(ValueError, match="one node, not 2"):
            TRANSPORTS["local"].commands(job(nodes=(Node("a", 1), Node("b", 1))))


class TestCommand:
    def test_shown_line_is_what_a_shell_would_run(self, tmp_path):
        script = tmp_path / "show me.py"
        script.write_text("import os, sys; print([os.environ['ODD'], *sys.argv[1:]])", encoding="utf-8")
        odd = "a b'c\"d $HOME 中文"
        command = Command("rank 0", (sys.executable, str(script), *ODD_ARGUMENTS), (("ODD", odd),))
        shown = subprocess.run(["bash", "-c", command.shown()], capture_output=True, text=True, check=True)
        assert shown.stdout == f"{[odd, *ODD_ARGUMENTS]}\n"

    @pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "MY_SECRET", "DB_PASSWORD", "token"])
    def test_secrets_are_not_shown(self, name):
        assert shlex.split(Command("rank 0", ("true",), ((name, "hunter2"),)).shown()) == [
            "env",
            f"{name}=***",
            "true",
        ]

    def test_a_password_in_an_address_is_not_shown(self):
        shown = Command("rank 0", ("true",), (("HF_PROXY", "http://me:hunter2@proxy:80/x"),)).shown()
        assert "hunter2" not in shown and "proxy:80/x" in shown

    def test_harmless_names_are_shown(self):
        assert "MONKEYS=3" in Command("rank 0", ("true",), (("MONKEYS", "3"),)).shown()


class TestEnvironmentSettings:
    def test_values_may_hold_anything_and_the_last_one_counts(self):
        settings = ["A=1", "B=x=y z", "EMPTY=", "A=两"]
        assert parse_environment(settings, {}) == (("A", "两"), ("B", "x=y z"), ("EMPTY", ""))

    @pytest.mark.parametrize("setting", ["=1", "1A=2", "A B=2", "A-B=2", ""])
    def test_what_is_not_name_equals_value_is_refused(self, setting):
        with pytest.raises(LauncherError, match="is not NAME=VALUE"):
            parse_environment([setting], {})

    def test_a_name_alone_takes_the_launchers_own_value(self):
        assert parse_environment(["A"], {"A": "中 $(x)"}) == (("A", "中 $(x)"),)
        with pytest.raises(LauncherError, match="--env A: there is no A"):
            parse_environment(["A"], {})

    def test_a_value_is_not_repeated_in_an_error(self):
        with pytest.raises(LauncherError) as error:
            parse_environment(["HF-TOKEN=hunter2"], {})
        assert "hunter2" not in str(error.value)

    @pytest.mark.parametrize("name", sorted(OWNED_VARIABLES))
    def test_what_the_launcher_sets_is_refused(self, name):
        with pytest.raises(LauncherError, match=f"--env {name}: it differs from rank to rank"):
            parse_environment([f"{name}=5"], {})


class TestSlots:
    @pytest.mark.parametrize(
        ("requested", "environment", "num_gpus", "expected"),
        [
            (None, {}, 0, 1),
            (None, {}, 8, 8),
            (4, {}, 8, 4),
            (3, {}, 0, 3),
            (None, {"CUDA_VISIBLE_DEVICES": "2,5"}, 8, 2),
            (None, {"CUDA_VISIBLE_DEVICES": "GPU-1a, GPU-2b,GPU-3c"}, 8, 3),
            (None, {"CUDA_VISIBLE_DEVICES": "1,-1,2"}, 8, 1),
            (None, {"CUDA_VISIBLE_DEVICES": ""}, 8, 1),
            (2, {"CUDA_VISIBLE_DEVICES": "-1"}, 8, 2),
            (None, {"DS_ACCELERATOR": "cpu"}, 8, 1),
            (16, {"DS_ACCELERATOR": "cpu"}, 8, 16),
        ],
    )
    def test_count(self, requested, environment, num_gpus, expected):
        assert count_slots(requested, environment, lambda: num_gpus) == expected

    @pytest.mark.parametrize("requested", [0, -2])
    def test_no_rank_at_all_is_refused(self, requested):
        with pytest.raises(LauncherError, match=f"--num-gpus {requested} starts no rank"):
            count_slots(requested, {}, no_gpus)

    def test_more_ranks_than_gpus_is_refused(self):
        with pytest.raises(LauncherError, match=r"--num-gpus 3 is more than the 2 GPUs.*DEVICES=0,1"):
            count_slots(3, {"CUDA_VISIBLE_DEVICES": "0,1"}, no_gpus)

    @pytest.mark.parametrize(
        ("prints", "code", "count"), [("GPU 0: NVIDIA A100\nGPU 1: NVIDIA A100", 0, 2), ("", 0, 0)]
    )
    def test_gpus_are_those_that_nvidia_smi_lists(self, tmp_path, monkeypatch, prints, code, count):
        self.nvidia_smi(tmp_path, monkeypatch, prints, code)
        assert list_nvidia_gpus() == count

    def test_a_dead_driver_is_no_machine_without_gpus(self, tmp_path, monkeypatch):
        said = "NVIDIA-SMI has failed because\nit couldn't communicate."
        self.nvidia_smi(tmp_path, monkeypatch, said, 9)
        for requested in (None, 8):
            with pytest.raises(LauncherError, match=r"code 9, .*failed because it couldn't.*DS_ACCELERATOR"):
                count_slots(requested, {}, list_nvidia_gpus)
        assert count_slots(2, {"DS_ACCELERATOR": "cpu"}, list_nvidia_gpus) == 2

    def nvidia_smi(self, folder, monkeypatch, prints, code):
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\necho {shlex.quote(prints)}\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))


class TestPorts:
    def test_a_taken_port_is_replaced(self):
        with socket.socket() as server:
            server.bind(("", 0))
            server.listen()
            taken = server.getsockname()[1]
            assert not is_free(taken)
            assert free_port(taken) != taken
            with pytest.raises(LauncherError, match="none of 100 ports"):
                free_port(taken, candidates=[taken])
        assert free_port(taken) == taken

    @pytest.mark.parametrize("port", [0, 80, 65536, -1])
    def test_what_is_no_port_for_users_is_refused(self, port):
        with pytest.raises(LauncherError, match=f"--master-port {port} must be from 1024 to 65535"):
            free_port(port)


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def on_cpu(self, monkeypatch):
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    @pytest.fixture
    def script(self, tmp_path) -> str:
        path = tmp_path / "训练 script.py"
        path.write_text("", encoding="utf-8")
        return str(path)

    def run(self, capfd, *arguments: str) -> tuple[int, str, str]:
        code = command_line.main(["run", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    def test_dry_run_shows_every_rank_and_leaves_arguments_alone(self, capfd, script):
        code, out, err = self.run(
            capfd, "--dry-run", "--num-gpus", "2", "--env", "OMP_NUM_THREADS=7", script, *ODD_ARGUMENTS
        )
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert [line.split(":")[0] for line in lines] == ["rank 0", "rank 1"]
        words = shlex.split(lines[1].partition(": ")[2])
        assert words[-len(ODD_ARGUMENTS) - 3 :] == [sys.executable, "-u", script, *ODD_ARGUMENTS]
        assert {"RANK=1", "WORLD_SIZE=2", "OMP_NUM_THREADS=7"} <= set(words)

    def test_dry_run_starts_nothing_again(self, capfd, script):
        plain = self.run(capfd, "--dry-run", "--master-port", "23456", script)
        assert self.run(capfd, "--dry-run", "--master-port", "23456", "--max-restarts", "3", script) == plain

    def test_help_after_the_script_is_the_scripts(self, capfd, script):
        code, out, _ = self.run(capfd, "--dry-run", script, "--help")
        assert code == 0
        assert out.endswith(" --help\n")

    def test_cores_are_shared_among_the_ranks_unless_told(self, capfd, script, monkeypatch):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert "OMP_NUM_THREADS=1 " in self.run(capfd, "--dry-run", "--num-gpus", "500", script)[1]
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert "OMP_NUM_THREADS" not in self.run(capfd, "--dry-run", script)[1]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--num-gpus", "0", "SCRIPT"], "--num-gpus 0 starts no rank"),
            (["--num-gpus", "two", "SCRIPT"], "invalid int value: 'two'"),
            (["--master-port", "99999", "SCRIPT"], "--master-port 99999"),
            (["--env", "no thing", "SCRIPT"], "--env 'no thing'"),
            (["--grace", "-1", "SCRIPT"], "--grace: -1.0 must be"),
            (["--grace", "nan", "SCRIPT"], "--grace: nan must be"),
            (["--max-restarts", "-1", "SCRIPT"], "--max-restarts -1 must be 0 or more"),
            (["--max-restarts", "1.5", "SCRIPT"], "invalid int value: '1.5'"),
            (["--restart-delay", "-1", "SCRIPT"], "--restart-delay: -1.0 must be"),
            (["--restart-delay", "61", "SCRIPT"], "--restart-delay 61.0"),
            (["--restart-delay", "nan", "SCRIPT"], "--restart-delay: nan must be"),
            (["--transport", "pigeon", "SCRIPT"], "invalid choice: 'pigeon'"),
            (["--frobnicate", "SCRIPT"], "--frobnicate"),
            (["no/such.py", "--lr", "1"], "'no/such.py' does not exist"),
            (["."], "'.' is a folder"),
            ([], "SCRIPT"),
        ],
    )
    def test_a_mistake_is_one_paragraph_and_exit_code_2(self, capfd, script, arguments, said):
        given = [script if argument == "SCRIPT" else argument for argument in arguments]
        code, out, err = self.run(capfd, *given)
        assert (code, out) == (2, "")
        assert err.startswith("launcher: ")
        assert said in err
        assert err.count("\n") == 1

    def test_a_taken_port_is_said(self, capfd, script):
        with socket.socket() as server:
            server.bind(("", 0))
            server.listen()
            port = str(server.getsockname()[1])
            code, out, err = self.run(capfd, "--dry-run", "--master-port", port, script)
        assert code == 0
        assert f"port {port} is taken; using " in err
        assert f"MASTER_PORT={port} " not in out

    def test_existing_script_keeps_the_path_as_given(self, script):
        assert existing_script(script) == Path(script)


def test_the_launcher_imports_neither_torch_nor_medsft():
    code = (
        "import sys, launcher.__main__, launcher.run, launcher.check, launcher.node\n"
        "print(*{'torch', 'deepspeed', 'medsft', 'numpy'}.intersection(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
