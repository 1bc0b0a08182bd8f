"""Commands on other hosts, with an ssh that runs the remote command line on this machine, as sshd would."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.errors import LauncherError
from launcher.preflight.reach import explain
from launcher.shell import Done, here, in_folder, on_all, srun, ssh

SSH = """#!/bin/sh
printf '%s\\n' "$*" >> "$SSH_CALLS"
while [ "$1" != -- ]; do shift; done
shift 2
exec sh -c "$*"
"""
SRUN = """#!/bin/sh
printf '%s\\n' "$*" >> "$SSH_CALLS"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
HARD_WORDS = [
    "two words",
    'it\'s "quoted"',
    "$(touch executed)",
    "`touch executed`",
    "$HOME",
    "; touch executed",
    "a,b=c",
    "医学 数据",
    "back\\slash",
    "*",
    "line\nbreak",
    "",
    "-x",
]


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A PATH with our ssh and srun; the file has one line for each call."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ssh", SSH), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SSH_CALLS", str(tmp_path / "calls"))
    monkeypatch.delenv("MEDSFT_SSH_ARGS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "calls"


@pytest.mark.parametrize("shell", [ssh, srun, here])
def test_words_and_input_arrive_as_they_are(shell, calls):
    show = "import sys; sys.stdout.write('\\0'.join(sys.argv[1:]) + '\\0' + sys.stdin.read()); sys.exit(3)"
    done = shell("node1", [sys.executable, "-c", show, *HARD_WORDS], "输入 $(x)\n".encode(), 30)
    assert done.code == 3
    assert done.stdout.split("\0") == [*HARD_WORDS, "输入 $(x)\n"]
    assert not Path("executed").exists()


def test_ssh_never_asks_and_the_users_words_come_first(calls, monkeypatch):
    monkeypatch.setenv("MEDSFT_SSH_ARGS", "-F '/a b/config'")
    assert ssh("node1", ["true"], b"", 10).code == 0
    words = calls.read_text()
    assert words.startswith("-F /a b/config ")
    assert "-o BatchMode=yes" in words
    assert "-o ConnectTimeout=6" in words
    assert "StrictHostKeyChecking" not in words
    monkeypatch.setenv("MEDSFT_SSH_ARGS", "-F 'open")
    with pytest.raises(LauncherError, match="MEDSFT_SSH_ARGS"):
        ssh("node1", ["true"], b"", 10)


def test_srun_takes_the_named_host_of_the_allocation_whole(calls, monkeypatch):
    monkeypatch.setenv("SRUN_CPUS_PER_TASK", "4")
    done = srun("node7", ["sh", "-c", "echo ${SRUN_CPUS_PER_TASK-none}"], b"", 10)
    assert done.stdout == "none\n"
    assert "--nodelist=node7" in calls.read_text()
    assert "--overlap" in calls.read_text()


def test_a_hanging_command_is_killed_with_all_it_started(tmp_path, monkeypatch):
    """The limit is reached when it hangs, however long it took to come to that."""
    wait = subprocess.Popen.wait

    def until_it_hangs(process, timeout=None):
        if timeout is None:
            return wait(process)
        while not (tmp_path / "hangs").exists():
            assert process.poll() is None
            time.sleep(0.01)
        return wait(process, 0.01)

    monkeypatch.setattr(subprocess.Popen, "wait", until_it_hangs)
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo before; touch {tmp_path}/hangs; sleep 60"
    done = here("", ["sh", "-c", script], b"", 60.0)
    assert (done.code, done.stdout) == (None, "before\n")
    assert_ends(int((tmp_path / "child").read_text()))


def test_a_connection_kept_open_behind_holds_up_nothing():
    """As ssh's ControlPersist does: a process of its own session keeps the standard error."""
    done = here("", ["sh", "-c", "setsid sleep 60 & echo $!"], b"", 30.0)
    assert done.code == 0
    os.kill(int(done.stdout), signal.SIGKILL)


def test_commands_die_with_the_launcher(tmp_path):
    script = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 60"
    code = f"from launcher.shell import here; here('', ['sh', '-c', {script!r}], b'', 60)"
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    while not (tmp_path / "pid").exists():
        assert launcher.poll() is None
        time.sleep(0.01)
    launcher.kill()
    launcher.wait()
    assert_ends(int((tmp_path / "pid").read_text()))


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError(f"process {pid} lives on")


def test_signals_held_back_by_the_launcher_reach_the_command():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        assert here("", ["sh", "-c", "kill -TERM $$; echo alive"], b"", 10).code == -signal.SIGTERM
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_in_folder(tmp_path):
    folder = tmp_path / "某 folder"
    folder.mkdir()
    assert here("", in_folder(str(folder), ["pwd"]), b"", 10).stdout == f"{folder}\n"
    assert here("", in_folder(str(folder / "none"), ["pwd"]), b"", 10).code != 0


def test_no_such_program_here():
    with pytest.raises(LauncherError, match="no-such-program"):
        here("", ["no-such-program"], b"", 10)


def test_on_all_keeps_the_order_and_the_number_at_once():
    lock, running, most = threading.Lock(), set(), 0

    def shell(host, command, stdin, limit_s):
        nonlocal most
        with lock:
            running.add(host)
            most = max(most, len(running))
        time.sleep(0.01)
        with lock:
            running.remove(host)
        return Done(0, " ".join(command), "")

    hosts = [f"node{number}" for number in range(100, 0, -1)]
    done = on_all(shell, hosts, lambda host: ["echo", host], 1.0, at_once=7)
    assert list(done) == hosts
    assert done["node42"].stdout == "echo node42"
    assert 1 < most <= 7
    assert on_all(shell, [], lambda host: [host], 1.0) == {}


def test_on_all_begins_nothing_more_after_an_error():
    begun = []

    def shell(host, command, stdin, limit_s):
        begun.append(host)
        if host == "0":
            raise LauncherError("no ssh here")
        time.sleep(0.05)
        return Done(0, "", "")

    with pytest.raises(LauncherError, match="no ssh here"):
        on_all(shell, [str(number) for number in range(500)], lambda host: [host], 1.0, at_once=2)
    assert len(begun) < 500


@pytest.mark.parametrize(
    ("done", "found", "remedy"),
    [
        (Done(255, "", "root@n1: Permission denied (publickey).\r\n"), "refuses the key", "ssh-copy-id n1"),
        (Done(255, "", "ssh: Could not resolve hostname n1: …\r\n"), "name is unknown", "spelling"),
        (Done(255, "", "ssh: connect to host n1 port 22: Connection refused\r\n"), "no ssh server", "sshd"),
        (
            Done(255, "", "ssh: connect to host n1 port 22: Connection timed out\r\n"),
            "no connection",
            "firewall",
        ),
        (
            Done(255, "", "Host key verification failed.\r\n"),
            "does not know the host's key",
            "ssh-keygen -R n1",
        ),
        (Done(255, "", "something new\n"), "ssh failed: something new", "without a password"),
        (Done(None, "", ""), "no answer within 15 s", "hangs"),
        (
            Done(127, "", "env: '/x/python': No such file or directory\n"),
            "/x/python cannot be started",
            "same",
        ),
        (Done(1, "", "srun: error: Unable to create step for job 3: …\n"), "starts no step", "sinfo"),
        (Done(1, "", "Permission denied of its own\n"), "ended there with code 1", "by hand"),
    ],
)
def test_refusals_are_explained(done, found, remedy):
    trouble = explain("n1", done, 15.0, "/x/python")
    assert found in trouble.found
    assert remedy in trouble.remedy


def test_a_real_refusal(monkeypatch):
    monkeypatch.delenv("MEDSFT_SSH_ARGS", raising=False)
    if subprocess.run(["sh", "-c", "command -v ssh"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no ssh on PATH")
    monkeypatch.setenv("MEDSFT_SSH_ARGS", "-F none -p 1")
    done = ssh("127.0.0.1", ["true"], b"", 10)
    assert "no ssh server" in explain("127.0.0.1", done, 10, "python").found
