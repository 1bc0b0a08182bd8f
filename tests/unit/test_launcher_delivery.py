"""Each host's part of a job on its way there: real files and processes, "hosts" by name only."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from launcher.control import delivery
from launcher.control.delivery import deliver
from launcher.control.spec import Spec
from launcher.errors import LauncherError
from launcher.job import Job, Node
from launcher.shell import Done, here

SECRET = "hf_中文 $(x)"
REPOSITORY = Path(__file__).resolve().parents[2]
# `receive` on a host whose files stand in a folder of its own.
RECEIVE = """
import os, sys
from pathlib import Path
from launcher.control import delivery

delivery._path = lambda launch: Path(sys.argv[1]) / f"{launch}.json"
os.umask(0)
sys.exit(delivery.receive(sys.argv[2]))
"""


def a_spec(*hosts: str, launch: str = "abc123") -> Spec:
    job = Job(
        nodes=tuple(Node(host, 1) for host in hosts),
        python=sys.executable,
        script=Path("train.py"),
        arguments=(),
        environment=(("HF_TOKEN", SECRET),),
        master_address="",
        master_port=0,
    )
    return Spec(launch, "ab" * 32, ("10.0.0.1",), 4000, None, str(REPOSITORY), job)


@pytest.fixture
def folder_of(tmp_path, monkeypatch):
    """The folder where a host's specs stand; `take` takes them from that of "node1"."""

    def of(host: str) -> Path:
        return tmp_path / f"折 {host}"

    monkeypatch.setattr(delivery, "_path", lambda launch: of("node1") / f"{launch}.json")
    return of


@pytest.fixture
def shell(folder_of):
    """Runs `receive` here, whatever the host; keeps the words it was told to run."""
    told: list[list[str]] = []

    def run(host, command, stdin, limit_s):
        told.append(list(command))
        start, launch = command.index("-m"), command[-1]
        folder = str(folder_of("node1" if host == "alias" else host))
        return here(host, [*command[:start], "-c", RECEIVE, folder, launch], stdin, limit_s)

    run.told = told
    return run


def test_every_host_gets_its_own_part_which_nobody_else_can_read(shell, folder_of, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.7 50000 192.0.2.8 22")
    spec = a_spec("node1", "node2")
    deliver(spec, shell)
    for host in ("node1", "node2"):
        (path,) = folder_of(host).iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    second = Spec.from_json(path.read_text(encoding="utf-8"))
    # The way by which the launcher came is tried first.
    assert (second.index, second.addresses) == (1, ("192.0.2.7", "10.0.0.1"))
    taken = delivery.take("abc123")
    assert (taken.index, taken.job, taken.token) == (0, spec.job, spec.token)
    assert list(folder_of("node1").iterdir()) == []
    with pytest.raises(LauncherError, match=r"was not given its part of launch abc123 \(.*is missing"):
        delivery.take("abc123")
    # Command lines can be read by every user of a host.
    words = " ".join(word for command in shell.told for word in command)
    assert spec.token not in words
    assert SECRET not in words
    assert words.count(f"{REPOSITORY} {sys.executable} -m launcher receive --job abc123") == 2


def test_two_names_of_one_machine(shell):
    with pytest.raises(LauncherError, match="is a machine that the job has under another name already"):
        deliver(a_spec("node1", "alias"), shell)


def test_a_second_delivery_is_refused_and_changes_nothing(shell, folder_of):
    deliver(a_spec("node1"), shell)
    with pytest.raises(LauncherError, match=r"^node1 is a machine"):
        deliver(a_spec("node1"), shell)
    deliver(a_spec("node1", launch="def456"), shell)
    assert {path.stem for path in folder_of("node1").iterdir()} == {"abc123", "def456"}


def test_hosts_that_fail_are_named_with_what_they_said(shell):
    def one_fails(host, command, stdin, limit_s):
        if host == "node2":
            return Done(255, "", "banner\nssh: connect to host node2 port 22: Connection refused\n")
        if host == "node3":
            return Done(None, "", "")
        if host == "node4":
            return Done(127, "", "")
        return shell(host, command, stdin, limit_s)

    with pytest.raises(LauncherError) as caught:
        deliver(a_spec("node1", "node2", "node3", "node4"), one_fails)
    assert str(caught.value) == (
        "3 of 4 hosts could not be given their part of the job (node2: ssh: connect to host node2 port 22: "
        "Connection refused; node3: no answer within 20 s; node4: exit code 127). `python -m launcher check` "
        "says what to do."
    )


def test_many_hosts_that_fail_are_not_all_told():
    hosts = [f"node{number}" for number in range(1000)]
    with pytest.raises(LauncherError, match=r"^1000 of 1000 hosts could not") as caught:
        deliver(a_spec(*hosts), lambda *_: Done(1, "", "no"))
    assert len(str(caught.value)) < 500


def test_a_folder_that_leads_elsewhere_is_refused(shell, folder_of, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder_of("node1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LauncherError, match="belongs to somebody else"):
        deliver(a_spec("node1"), shell)
    (tmp_path / "elsewhere" / "abc123.json").write_text(a_spec("node1").to_json())
    with pytest.raises(LauncherError, match="belongs to somebody else"):
        delivery.take("abc123")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_folder_of_somebody_else_is_refused(shell, folder_of):
    folder_of("node1").mkdir()
    (folder_of("node1") / "abc123.json").write_text(a_spec("node1").to_json())
    os.chown(folder_of("node1"), 12345, 12345)
    with pytest.raises(LauncherError, match="belongs to somebody else"):
        deliver(a_spec("node1", launch="def456"), shell)
    with pytest.raises(LauncherError, match="belongs to somebody else"):
        delivery.take("abc123")


def test_a_file_that_is_there_already_is_not_followed(shell, folder_of, tmp_path):
    folder_of("node1").mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder_of("node1") / "abc123.json").symlink_to(victim)
    with pytest.raises(LauncherError):
        deliver(a_spec("node1"), shell)
    assert victim.read_text() == "mine"


def test_specs_whose_agents_never_came_do_not_lie_there_for_ever(shell, folder_of):
    deliver(a_spec("node1", launch="old"), shell)
    deliver(a_spec("node1", launch="young"), shell)
    old = folder_of("node1") / "old.json"
    os.utime(old, (old.stat().st_mtime - 4000,) * 2)
    deliver(a_spec("node1"), shell)
    assert {path.stem for path in folder_of("node1").iterdir()} == {"young", "abc123"}


def test_rubbish_instead_of_a_spec_leaves_nothing(shell, folder_of):
    def cut(host, command, stdin, limit_s):
        return shell(host, command, stdin[: len(stdin) // 2], limit_s)

    with pytest.raises(LauncherError, match="1 of 1 hosts could not be given their part"):
        deliver(a_spec("node1"), cut)
    assert not folder_of("node1").exists()
