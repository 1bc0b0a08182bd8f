"""What a host says about itself, as one JSON object on standard output.

Sent over standard input to the Python of each host, so that a host without the repository, or with an older
one, can say so. It therefore imports nothing of ours, and its syntax is one that Python 3.7 reads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

FORMAT = 1
NONCE_PREFIX = ".medsft-check-"
"""Names of the files that a check writes into the output folder begin so; it removes them again."""

_MIB = 2**20
# Files up to this size are hashed whole, in bytes.
_WHOLE = 64 * _MIB
# Of larger ones: size, and so many pieces of a mebibyte, spread evenly from the first to the last.
_NUM_PIECES = 48
# What a rank executes; everything else in the repository may differ.
_CODE_FOLDERS = ("launcher", "medsft", "ds_configs")
_CODE_SUFFIXES = (".py", ".json", ".yaml", ".jinja")
_PROGRAM_LIMIT_S = 10
# A shared folder may show a new file a little later on other hosts; seconds to wait for it.
_NONCE_WAIT_S = 2.0
# cgroup v1 says "no limit" with a number near 2**63.
_NO_LIMIT = 2**60


def probe(options: argparse.Namespace) -> dict[str, Any]:
    """All facts but those of the parts in `options.skip`; a part that fails is {"error": why}."""
    began = time.time()
    repository = Path(options.repository).absolute()
    moved = _guarded(lambda: os.chdir(options.folder))
    parts: dict[str, Callable[[], Any]] = {
        "packages": lambda: package_versions(options.package),
        "commit": lambda: {"error": moved["error"]} if moved else code_state(repository),
        "data": lambda: {path: _guarded(lambda path=path: fingerprint(Path(path))) for path in options.data},
        "gpus": gpus,
        "cores": lambda: len(os.sched_getaffinity(0)),
        "memory": lambda: memory(Path("/")),
        "disk": lambda: disk(options.output),
        "output": lambda: output_folder(options.output, options.nonce, options.role, options.nonce_folder),
        "files": limits,
        "port": lambda: port(options.port),
    }
    facts: dict[str, Any] = {
        "format": FORMAT,
        "hostname": socket.gethostname(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
    }
    facts.update({name: _guarded(part) for name, part in parts.items() if name not in options.skip})
    facts["clock"] = {"began": began, "ended": time.time()}
    return facts


def package_versions(names: Sequence[str]) -> dict[str, Any]:
    """Version of each package as installed, None for a missing one; nothing is imported."""
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:
        return {"error": "this Python is older than 3.8"}
    versions: dict[str, Any] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def code_state(repository: Path) -> dict[str, Any]:
    """Commit ("unknown" without git), whether tracked files differ from it, SHA-256 of the code itself.

    Raises `ValueError` where there is no code: what is not there cannot be alike.
    """
    files = sorted(_code_files(repository))
    if not files:
        raise ValueError(f"no code in {repository}: none of the folders {', '.join(_CODE_FOLDERS)}")
    commit = _program("git", "-c", "safe.directory=*", "-C", str(repository), "rev-parse", "HEAD")
    changes = _program(
        "git", "-c", "safe.directory=*", "-C", str(repository), "status", "--porcelain", "-uno"
    )
    return {
        "repository": str(repository),
        "commit": (commit or "unknown").strip(),
        "dirty": None if changes is None else bool(changes.strip()),
        "code": _code_digest(repository, files),
    }


def _code_digest(repository: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(
            f"{path.relative_to(repository)}\0{path.stat().st_size}\0".encode("utf-8", "surrogateescape")
        )
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _code_files(repository: Path) -> Iterator[Path]:
    for name in _CODE_FOLDERS:
        for folder, folders, names in os.walk(repository / name):
            folders[:] = [name for name in folders if name != "__pycache__"]
            yield from (Path(folder, name) for name in names if name.endswith(_CODE_SUFFIXES))


def fingerprint(path: Path) -> dict[str, Any]:
    """{"size", "sha256", "hashed"} of a file or folder.

    A file of up to 64 MiB is hashed whole; of a larger one its size and 48 pieces of 1 MiB, spread evenly
    from the first byte to the last; of a folder the names and sizes of the files directly in it.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        files = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(path) if entry.is_file())
        for name, size in files:
            digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        return {
            "size": sum(size for _, size in files),
            "sha256": digest.hexdigest(),
            "hashed": "names and sizes",
        }
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            offsets = range(0, size, _MIB)
        else:
            offsets = [(size - _MIB) * piece // (_NUM_PIECES - 1) for piece in range(_NUM_PIECES)]
            digest.update(f"{size}\0".encode())
        for offset in offsets:
            file.seek(offset)
            digest.update(file.read(_MIB))
    return {"size": size, "sha256": digest.hexdigest(), "hashed": "whole" if size <= _WHOLE else "sampled"}


def gpus() -> dict[str, Any]:
    """{"gpus": [{"index", "name", "memory_bytes", "driver"}], "visible"}; no nvidia-smi is no GPU.

    `visible`: CUDA_VISIBLE_DEVICES on this host, None when it is not set.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None:
        return {"gpus": [], "visible": visible}
    query = ["--query-gpu=index,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, timeout=_PROGRAM_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"nvidia-smi gave no answer for {_PROGRAM_LIMIT_S} s"}
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        said = (text + done.stderr.decode("utf-8", "replace")).strip()
        return {"error": f"nvidia-smi failed with code {done.returncode}: {said}"}
    return {"gpus": parse_gpus(text), "visible": visible}


def parse_gpus(text: str) -> list[dict[str, Any]]:
    """nvidia-smi's lines "index, name, MiB, driver" as objects; memory None where it says [N/A]."""
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 4:
            memory_bytes = int(words[2]) * _MIB if words[2].isdigit() else None
            found.append(
                {"index": words[0], "name": words[1], "memory_bytes": memory_bytes, "driver": words[3]}
            )
    return found


def memory(root: Path) -> dict[str, Any]:
    """{"total", "available"} in bytes, of the host or of this process's control group, whichever is less."""
    kib = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        kib[name] = int(rest.split()[0])
    total, available = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    for limit, used in _group_limits(root):
        if limit < total:
            total = limit
        available = min(available, max(0, limit - used))
    return {"total": total, "available": available}


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, memory in use) in bytes, of the control groups around this process that have a limit.

    Pages of files that can be dropped at once do not count as used.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, files, cache = root / "sys/fs/cgroup", ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            files, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
        else:
            continue
        folder = base / group.lstrip("/")
        # In a container the group is named as outside, and its files stand at the base.
        for candidate in [folder, *folder.parents]:
            try:
                limit = (candidate / files[0]).read_text().strip()
                used = int((candidate / files[1]).read_text())
                stat = dict(pair.split() for pair in (candidate / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):
                limit = "max"
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                yield int(limit), max(0, used - int(stat.get(cache, "0")))
            if candidate == base:
                break


def disk(output: str | None) -> dict[str, Any]:
    """Free bytes for a user where the output goes (nearest folder that exists), in /tmp and /dev/shm."""
    free = {}
    places = {"tmp": Path("/tmp"), "shm": Path("/dev/shm")}
    if output is not None:
        places["output"] = nearest(Path(output))
    for name, place in places.items():
        free[name] = _guarded(
            lambda place=place: {"folder": str(place), "free": shutil.disk_usage(place).free}
        )
    return free


def nearest(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    path = Path.cwd() / path
    return next(folder for folder in [path, *path.parents] if folder.is_dir())


def output_folder(
    output: str | None, nonce: str | None, role: str | None, folder: str | None
) -> dict[str, Any]:
    """{"folder", "nonce", "writable"}: whether this host shares the output folder, and may write there.

    Role "write" leaves a file with the nonce in the output folder, or in the nearest one above that exists;
    "read" looks for it in `folder`, where the writer says it is; "remove" takes it away. `nonce`: "written",
    "read", "removed", or what is wrong. Each host writes a file of its own, and removes it.
    """
    if output is None or nonce is None or role is None:
        return {}
    place = nearest(Path(output)) if folder is None else Path(folder)
    file = place / f"{NONCE_PREFIX}{nonce}"
    facts: dict[str, Any] = {"folder": str(place)}
    if role == "remove":
        if file.exists():
            file.unlink()
        facts["nonce"] = "removed"
        return facts
    if role == "write":
        file.write_text(nonce)
        facts["nonce"] = "written"
    else:
        facts["nonce"] = _read_nonce(file, nonce)
        if not place.is_dir():
            return facts
    own = place / f"{NONCE_PREFIX}{nonce}-{socket.gethostname()}-{os.getpid()}"
    try:
        own.write_text(nonce)
        own.unlink()
        facts["writable"] = True
    except OSError as error:
        facts["writable"] = str(error)
    return facts


def _read_nonce(file: Path, nonce: str) -> str:
    deadline = time.monotonic() + _NONCE_WAIT_S
    while True:
        try:
            list(file.parent.iterdir())  # has NFS ask its server again
            return "read" if file.read_text() == nonce else "other content"
        except FileNotFoundError:
            if time.monotonic() > deadline or not file.parent.is_dir():
                return "missing"
        except OSError as error:
            return str(error)
        time.sleep(0.1)


def limits() -> dict[str, Any]:
    """Open files, and locked memory in bytes (None: unlimited); whether the host has InfiniBand or RoCE."""
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infiniband = Path("/sys/class/infiniband")
    return {
        "open_files": None if open_files == resource.RLIM_INFINITY else open_files,
        "locked_bytes": None if locked == resource.RLIM_INFINITY else locked,
        "infiniband": infiniband.is_dir() and any(infiniband.iterdir()),
    }


def port(number: int | None) -> dict[str, Any]:
    """{"number", "free"}: whether a server could listen there now; empty when none is asked about."""
    if number is None:
        return {}
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", number))
            server.listen()
        except OSError:
            return {"number": number, "free": False}
    return {"number": number, "free": True}


def _program(*words: str) -> str | None:
    """What a program prints; None when there is none, it fails, or it takes too long."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # 1,000 hosts look at one repository
    try:
        done = subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_PROGRAM_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _guarded(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except (OSError, ValueError) as error:
        return {"error": str(error)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the facts that the flags ask for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher probe", description=__doc__, allow_abbrev=False)
    parser.add_argument("--repository", default=".", metavar="DIR", help="where the code lies")
    parser.add_argument("--folder", default=".", metavar="DIR", help="where the job runs")
    parser.add_argument("--package", action="append", default=[], metavar="NAME", help="version wanted")
    parser.add_argument("--data", action="append", default=[], metavar="PATH", help="file to fingerprint")
    parser.add_argument("--output", metavar="DIR", help="the run's output folder")
    parser.add_argument(
        "--nonce", metavar="WORD", help="word to leave in the output folder, or to find there"
    )
    parser.add_argument("--nonce-folder", metavar="DIR", help="where the writer has left it")
    parser.add_argument("--role", choices=["write", "read", "remove"], help="what to do with the nonce")
    parser.add_argument("--port", type=int, metavar="P", help="port to look at")
    parser.add_argument("--skip", action="append", default=[], metavar="PART", help="part to leave out")
    options = parser.parse_args(arguments)
    if options.role == "remove":
        os.chdir(options.folder)
        facts = {
            "output": _guarded(
                lambda: output_folder(options.output, options.nonce, "remove", options.nonce_folder)
            )
        }
    else:
        facts = probe(options)
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
