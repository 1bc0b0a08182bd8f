"""What `deepspeed` was asked, read from its command line and held against the world it made."""

from __future__ import annotations

import sys

import pytest

from medsft.engine.hostfile import Asked, asked_of_deepspeed, check_size
from medsft.errors import UserError


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/work/repo/medsft/train.py", "--max_steps", "3"])


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("python /venv/bin/deepspeed --hostfile h medsft/train.py", Asked("h", True)),
        ("/usr/bin/deepspeed -H h medsft/train.py", Asked("h", True)),
        (
            "python -m deepspeed.launcher.runner --hostfile=h --master_port 1 medsft/train.py",
            Asked("h", True),
        ),
        ("python -u /venv/bin/ds --hostf h --module medsft.train", Asked("h", True)),
        ("deepspeed --hostfile h --include node1:0 medsft/train.py", Asked("h", False)),
        ("deepspeed -H h -e node1 medsft/train.py", Asked("h", False)),
        ("deepspeed --num_nodes 1 -H h medsft/train.py", Asked("h", False)),
        ("deepspeed -H h --num_accelerators=1 medsft/train.py", Asked("h", False)),
        ("deepspeed --num_gpus 2 medsft/train.py", None),
        ("deepspeed medsft/train.py --hostfile h", None),
        ("python -m deepspeed.launcher.launch --world_info=e30= medsft/train.py", None),
        ("bash job.sh --hostfile h", None),
        ("", None),
    ],
)
def test_command_lines(command, asked):
    assert asked_of_deepspeed(command.split()) == asked


def test_a_missing_file_is_an_error_whatever_else_was_asked(tmp_path):
    for takes_all in (True, False):
        with pytest.raises(UserError, match=r"--hostfile 主机 1, which does not exist .*started 2 ranks"):
            check_size(Asked("主机 1", takes_all), tmp_path, 2)


def test_every_slot_of_the_file_needs_a_rank(tmp_path):
    path = tmp_path / "主机 1"
    path.write_bytes(
        "# 两台机器 slots=9\r\n\r\nnode1 slots=2\r\n node2\tslots=3 # 旧\r\n#node3 slots=8\r\n".encode()
    )
    check_size(Asked("主机 1", True), tmp_path, 5)
    check_size(Asked(str(path), True), tmp_path / "elsewhere", 5)
    check_size(Asked("主机 1", False), tmp_path, 2)
    with pytest.raises(UserError, match="has 5 slots, but deepspeed has started 4 ranks"):
        check_size(Asked("主机 1", True), tmp_path, 4)
