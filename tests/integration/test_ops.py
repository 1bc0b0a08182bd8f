"""Compiled ops: builds that were killed, builds at the same time, and what is missing for a build."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import REPOSITORY

WORKER = REPOSITORY / "tests" / "integration" / "ops_worker.py"
PATIENCE_S = 600


def start(device: str = "cpu", **environment: object) -> subprocess.Popen:
    """A worker in a process group of its own, with nothing of this process's TORCH_EXTENSIONS_DIR."""
    inherited = {name: value for name, value in os.environ.items() if name != "TORCH_EXTENSIONS_DIR"}
    inherited["PATH"] = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    settings = {name: str(value) for name, value in environment.items()}
    return subprocess.Popen(
        [sys.executable, WORKER, device],
        cwd=REPOSITORY,
        env=inherited | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(REPOSITORY)} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def result(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


def wait_for(root: Path, pattern: str, process: subprocess.Popen) -> Path:
    """The first file of that pattern below `root`, once there is one."""
    while process.poll() is None:
        for found in root.rglob(pattern):
            return found
        time.sleep(0.02)
    pytest.fail(f"{pattern} was not seen: {process.communicate()}")


def kill_group(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("缓存 of ops")


@pytest.fixture(scope="module")
def built(cache) -> Path:
    """Folder of a finished CPU Adam in a cache where its first build was killed and two made the second."""
    killed = start(XDG_CACHE_HOME=cache)
    baton = wait_for(cache, "lock", killed)
    wait_for(baton.parent, "build.ninja", killed)  # the compiler is at work
    kill_group(killed)
    assert baton.exists()
    assert not (baton.parent / "cpu_adam.so").exists()

    both = [start(XDG_CACHE_HOME=cache) for _ in range(2)]
    for code, out, err in map(result, both):
        assert (code, out.splitlines()[-1:]) == (0, ["ready"]), out + err
    assert not baton.exists()
    assert not list(baton.parent.parent.glob(".dead-*"))
    return baton.parent


@pytest.mark.slow
def test_a_killed_build_is_made_anew_and_two_processes_share_it(built):
    assert built.name == "cpu_adam"
    assert (built / "cpu_adam.so").exists()


@pytest.mark.slow
def test_the_next_process_finds_it_made(built, cache):
    made_ns = (built / "cpu_adam.so").stat().st_mtime_ns
    # Python's environment is not activated, and another ninja, if there is one, is not to be asked.
    code, out, err = result(start(XDG_CACHE_HOME=cache, PATH="/usr/bin:/bin"))
    assert (code, out) == (0, "ready\n"), err
    assert (built / "cpu_adam.so").stat().st_mtime_ns == made_ns


@pytest.fixture
def of_the_user(built, tmp_path) -> Path:
    """A copy of the finished op in a folder that the user has chosen."""
    folder = tmp_path / "扩展 mine"
    shutil.copytree(built, folder / "cpu_adam")  # with its times, so nothing is to be compiled
    return folder


def age(op: Path, seconds: float) -> None:
    for file in op.iterdir():
        moment = time.time() - seconds
        os.utime(file, (moment, moment))


@pytest.mark.slow
def test_an_old_lock_in_the_users_folder_is_told_and_removed(of_the_user, cache):
    op = of_the_user / "cpu_adam"
    (op / "lock").touch()
    age(op, 3600)
    code, out, err = result(start(TORCH_EXTENSIONS_DIR=of_the_user, XDG_CACHE_HOME=cache))
    assert (code, out.splitlines()) == (
        0,
        [f"{op / 'lock'} was left by a build that was killed; removed", "ready"],
    ), err
    assert not (op / "lock").exists()


@pytest.mark.slow
def test_a_lock_of_another_program_in_the_users_folder_is_waited_for(of_the_user, cache):
    op = of_the_user / "cpu_adam"
    age(op, 3600)
    (op / "lock").touch()  # just now: somebody compiles
    worker = start(TORCH_EXTENSIONS_DIR=of_the_user, XDG_CACHE_HOME=cache)
    assert worker.stdout.readline().startswith(f"waiting for the program that compiles in {op}. If none does")
    assert (op / "lock").exists()
    assert worker.poll() is None
    (op / "lock").unlink()
    code, out, err = result(worker)
    assert (code, out) == (0, "ready\n"), err


def test_without_a_compiler(tmp_path):
    code, _, err = result(start(XDG_CACHE_HOME=tmp_path, CXX="no-such-compiler --fast"))
    assert code == 1
    assert "user error: " in err
    assert "'no-such-compiler --fast'" in err
    assert "apt install g++" in err


def test_without_libaio(tmp_path):
    # DeepSpeed looks for it by compiling a few lines of C.
    code, out, err = result(start("nvme", XDG_CACHE_HOME=tmp_path, CC="false"))
    assert (code, out) == (1, "")  # before anything is compiled
    assert "apt install libaio-dev" in err


def test_a_compiler_that_fails_is_quoted(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = -v ] && exec g++ -v\necho "x.cpp:1: error: no room" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    code, _, err = result(start(XDG_CACHE_HOME=tmp_path, CXX=compiler))
    assert code == 1
    assert "user error: " in err
    assert "CPU Adam cannot be built in" in err
    assert "x.cpp:1: error: no room" in err


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "cache").write_text("a file")
    code, _, err = result(start(XDG_CACHE_HOME=tmp_path / "cache"))
    assert code == 1
    assert "Not a directory" in err
    assert "TORCH_EXTENSIONS_DIR" in err


def test_nothing_is_made_without_offloading(tmp_path):
    code, out, err = result(start("none", XDG_CACHE_HOME=tmp_path))
    assert (code, out) == (0, ""), err
    assert not list(tmp_path.iterdir())
