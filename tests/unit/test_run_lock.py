"""Who may write in a run folder, decided between real processes."""

import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medsft.errors import UserError
from medsft.run_lock import LOCK, OWNER, SOFT_LOCK, claim, read_owner

REPOSITORY = Path(__file__).resolve().parents[2]

# Claims argv[1] and holds it until its input ends, or says why not. flock fails with error number argv[2], as
# it does on a file system without locks; "-" leaves it alone. A bare package stands for medsft's own, which
# would import torch first.
HOLD = """
import os, sys, types
sys.modules["medsft"] = types.ModuleType("medsft")
sys.modules["medsft"].__path__ = ["medsft"]
if sys.argv[2] != "-":
    import fcntl
    def flock(descriptor, operation):
        raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))
    fcntl.flock = flock
from pathlib import Path
from medsft.errors import UserError
from medsft.run_lock import claim
try:
    lock = claim(Path(sys.argv[1]), patience_s=0.3)
except UserError as error:
    print(f"refused: {error}", flush=True)
    sys.exit(2)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""

NO_FLOCK = [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "运行 one"


@pytest.fixture
def start():
    """Starts a process that claims a folder; returns it and the line it said. All are killed at the end."""
    with contextlib.ExitStack() as processes:

        def begin(path, flock_error=None, host=None, **environment):
            command = [sys.executable, "-c", HOLD, str(path), str(flock_error or "-")]
            if host is not None:
                command = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host, *command]
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.callback(end, process)
            return process, process.stdout.readline().strip()

        yield begin


def end(process):
    """SIGKILL, and the process is reaped."""
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.fixture
def other_host():
    """Name of a host that processes can be started on: this one in a name space of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--uts", "true"]).returncode != 0:
        pytest.skip("a second host name needs unshare and the right to use it")
    return "node-seven"


def test_a_new_folder_is_made_and_tells_who_holds_it(folder, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with claim(folder / "a" / "b") as lock:
        owner = json.loads((folder / "a" / "b" / OWNER).read_text())
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
        assert owner["job"] == "Slurm job 4711"
        assert owner["since"].endswith("+00:00")
        assert read_owner(lock.path) == lock.owner
    assert not (folder / "a" / "b" / OWNER).exists()
    lock.release()  # once more does nothing


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"file/run cannot be written"):
        claim(tmp_path / "file" / "run")


@pytest.mark.parametrize("flock_error", [None, *NO_FLOCK])
def test_a_live_owner_is_named_and_its_folder_refused(folder, start, flock_error):
    owner, said = start(folder, flock_error, SLURM_JOB_ID="88")
    assert said == "held"
    second, said = start(folder, flock_error)
    assert said.startswith("refused: ") and second.wait() == 2
    for part in (f"process {owner.pid} ", f"host {socket.gethostname()} ", "(Slurm job 88)", str(folder)):
        assert part in said
    owner.stdin.close()  # it releases
    assert owner.wait() == 0
    assert start(folder, flock_error)[1] == "held"


@pytest.mark.parametrize("flock_error", [None, *NO_FLOCK])
def test_the_lock_of_a_killed_owner_is_recovered(folder, start, flock_error):
    owner, said = start(folder, flock_error)
    assert said == "held"
    end(owner)
    assert read_owner(folder).pid == owner.pid
    second, said = start(folder, flock_error)
    assert said == "held"
    assert read_owner(folder).pid == second.pid
    assert start(folder, flock_error)[1].startswith(f"refused: --output_dir {folder} is in use")


def test_a_recovered_lock_is_told_to_the_log_and_a_released_one_is_not(folder, start, caplog):
    caplog.set_level(logging.INFO, "medsft")
    with claim(folder):
        pass
    claim(folder).release()
    assert not caplog.records
    owner, _ = start(folder)
    end(owner)
    claim(folder).release()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert f"process {owner.pid} on host" in record.message and "is gone" in record.message


def test_an_owner_that_is_just_ending_is_waited_for(folder, start):
    owner, _ = start(folder)
    # The claim begins while the owner lives: it closes its input, and so ends, when the claim is waiting.
    waiting = logging.Handler()
    waiting.emit = lambda record: owner.stdin.close()
    logger = logging.getLogger("medsft.run_lock")
    logger.addHandler(waiting)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        claim(folder, patience_s=60).release()
    finally:
        logger.setLevel(level)
        logger.removeHandler(waiting)
    assert owner.wait() == 0


def test_a_soft_lock_of_another_host_is_refused_with_the_file_to_remove(folder, start, other_host):
    owner, said = start(folder, errno.ENOLCK, host=other_host, SLURM_JOB_ID="99")
    assert said == "held"
    end(owner)  # which this host, as far as it knows, cannot see
    _, said = start(folder, errno.ENOLCK)
    assert said.startswith("refused: ")
    for part in (
        f"on host {other_host} (Slurm job 99)",
        socket.gethostname(),
        f"remove {folder / SOFT_LOCK} ",
    ):
        assert part in said
    (folder / SOFT_LOCK).unlink()
    assert start(folder, errno.ENOLCK)[1] == "held"


def test_the_kernels_lock_of_a_dead_owner_on_another_host_is_recovered(folder, start, other_host):
    owner, said = start(folder, host=other_host)
    assert said == "held"
    assert f"on host {other_host}" in start(folder)[1]
    end(owner)
    assert start(folder)[1] == "held"


def test_a_run_that_gets_no_answer_about_locks_keeps_out_of_one_that_did(folder, start):
    owner, said = start(folder)
    assert said == "held"
    assert f"process {owner.pid} " in start(folder, errno.ENOLCK)[1]
    end(owner)
    assert start(folder, errno.ENOLCK)[1] == "held"


def test_a_run_that_gets_no_answer_and_cannot_see_the_owner_is_refused(folder, start, other_host):
    owner, _ = start(folder, host=other_host)
    end(owner)
    _, said = start(folder, errno.ENOLCK)
    assert f"remove {folder / OWNER} " in said
    (folder / OWNER).unlink()
    assert start(folder, errno.ENOLCK)[1] == "held"


def test_a_soft_lock_keeps_out_a_run_that_gets_the_kernels(folder, start):
    owner, said = start(folder, errno.ENOSYS)
    assert said == "held"
    assert f"process {owner.pid} " in start(folder)[1]
    end(owner)
    assert (folder / SOFT_LOCK).exists()
    with claim(folder):
        assert (folder / LOCK).exists()
    assert not (folder / SOFT_LOCK).exists()


def test_an_owner_file_that_says_nothing_does_not_matter(folder):
    folder.mkdir()
    for content in (b"", b"\xff\xfe", b"[]", b'{"host": 1}'):
        (folder / OWNER).write_bytes(content)
        assert read_owner(folder) is None
        claim(folder).release()


def test_the_owner_file_of_a_successor_stays(folder):
    """Somebody removed the lock by hand, and another run holds the folder now."""
    lock = claim(folder)
    other = json.loads((folder / OWNER).read_text()) | {"pid": 1}
    (folder / OWNER).write_text(json.dumps(other))
    lock.release()
    assert read_owner(folder).pid == 1
