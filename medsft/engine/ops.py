"""DeepSpeed's compiled ops: built once for this kind of machine, under a lock that ends with its holder.

DeepSpeed compiles an op where it is first used, through `torch.utils.cpp_extension`, which keeps others out
by a file named `lock`. A build that is killed leaves it, and every later process waits for it for ever. Here
an op is made before it is used, while a lock of the kernel (flock) is held, and `lock` files without a
builder are found out:

- In our own folder, `$XDG_CACHE_HOME/medsft/torch_extensions/…`, nobody builds without the flock. Who holds
  it and sees `lock` knows that its builder is dead. The op's folder is then made anew, as compilers of the
  dead build may still be writing there.
- In a folder that the user named by TORCH_EXTENSIONS_DIR other programs may build, and they do not know of
  the flock. `lock` says neither who made it nor on which host, but a build that lives writes something every
  few minutes. So `lock` is waited for, and taken for left behind once nothing in the op's folder has been
  written for ten minutes. Nothing else is removed there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from medsft.engine.deepspeed_config import offloads_optimizer
from medsft.errors import UserError

if TYPE_CHECKING:
    from deepspeed.ops.op_builder.builder import OpBuilder

logger = logging.getLogger(__name__)

_VARIABLE = "TORCH_EXTENSIONS_DIR"
_LOCK = ".medsft.lock"
_BATON = "lock"
_DEAD = ".dead-"
# One source file takes a compiler a minute or two on a busy machine.
_ABANDONED_S = 600.0
# Longest wait for another process of ours; a whole build takes ten minutes on two busy cores.
_PATIENCE_S = 3600.0
_POLL_S = 0.5
_WHY = "the configuration offloads, for which DeepSpeed compiles a part of its own"
# What decides about the instructions that -march=native allows, x86 and Arm.
_CPU_FACTS = ("model name", "flags", "CPU implementer", "CPU part", "Features")


@dataclass(frozen=True)
class Op:
    """One of DeepSpeed's ops: its builder class, what people call it, how long it compiles, in words."""

    builder: str
    title: str
    duration: str


_CPU_ADAM = Op("CPUAdamBuilder", "CPU Adam", "about a minute")
# DeepSpeed loads the first with the second.
_NVME = (
    Op("PinMemoryBuilder", "pinned memory", "half a minute"),
    Op("AsyncIOBuilder", "asynchronous I/O", "a few minutes"),
)


def needed_ops(ds_config: Mapping[str, Any]) -> tuple[Op, ...]:
    """The ops that a settled configuration will use, in the order in which they are to be loaded."""
    zero = ds_config["zero_optimization"]
    devices = {(zero.get(name) or {}).get("device") for name in ("offload_optimizer", "offload_param")}
    return (
        *((_CPU_ADAM,) if offloads_optimizer(ds_config) else ()),
        *(_NVME if "nvme" in devices else ()),
    )


def prepare_ops(ds_config: Mapping[str, Any]) -> None:
    """Compiles the ops that a settled configuration will use, if need be, and loads them into this process.

    Every rank calls it, before it builds the optimiser; no collective. Where DeepSpeed was installed with
    its ops built, those are taken. Raises `UserError` for a folder that cannot be used, for a missing
    compiler or library, and when the compiler fails.
    """
    ops = needed_ops(ds_config)
    if not ops:
        return
    own = own_folder()
    folder = Path(os.environ.get(_VARIABLE) or own)
    os.environ[_VARIABLE] = str(folder)  # where DeepSpeed's builders look, now and later
    builders = {op: _builder(op) for op in ops}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for builder in builders.values():
            _check_tools(builder, folder / builder.name)
        for op, builder in builders.items():
            _load(op, builder, folder / builder.name, is_own=folder == own)
    except Timeout as error:
        raise UserError(
            f"another process has held {folder / _LOCK} for {_PATIENCE_S / 60:.0f} min, so DeepSpeed's ops "
            f"cannot be compiled in {folder}. End that process, or set {_VARIABLE} to another folder."
        ) from error
    except OSError as error:
        raise UserError(
            f"DeepSpeed's ops cannot be compiled in {folder} ({error}). Set {_VARIABLE} to a folder that can "
            "be written to, on a disk of this host."
        ) from error


def own_folder() -> Path:
    """Where ops are kept unless the user says otherwise, by versions of what they are built with, and CPU.

    An op uses every instruction that the CPU has: hosts of one home folder share it if their CPUs are alike.
    """
    import deepspeed
    import torch
    from deepspeed.accelerator import get_accelerator

    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():  # the XDG specification has relative ones ignored
        try:
            cache = Path("~/.cache").expanduser()
        except RuntimeError as error:
            raise UserError(
                f"there is no home folder to compile DeepSpeed's ops in ({error}). Set {_VARIABLE} to "
                "another folder."
            ) from error
    parts = (
        sys.implementation.cache_tag,
        f"torch-{torch.__version__}",
        f"deepspeed-{deepspeed.__version__}",
        get_accelerator().device_name(),
        _cpu_digest(),
    )
    return cache / "medsft" / "torch_extensions" / "_".join(parts)


def _cpu_digest() -> str:
    facts = [platform.machine()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        facts += [line for line in first.splitlines() if line.partition(":")[0].strip() in _CPU_FACTS]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _builder(op: Op) -> OpBuilder:
    import deepspeed.ops.op_builder

    return getattr(deepspeed.ops.op_builder, op.builder)()


def _is_installed(builder: OpBuilder) -> bool:
    """Whether DeepSpeed came with this op built."""
    from deepspeed.git_version_info import installed_ops

    return installed_ops.get(builder.name, False)


def _is_made(builder: OpBuilder, built: Path) -> bool:
    return _is_installed(builder) or (built / f"{builder.name}.so").exists()


def _check_tools(builder: OpBuilder, built: Path) -> None:
    """Raises `UserError` for what the builder will not find. Ninja and libraries are asked for every time."""
    if not _is_installed(builder):
        _check_ninja()
    if not _is_made(builder, built):
        _check_compiler()
    if builder.name == "async_io":
        _check_libraries(builder)


def _check_ninja() -> None:
    """Has the ninja that came with this Python taken before any other; the environment may not be activated.

    Another version would hold everything that this one has built for out of date, and the other way round.
    """
    beside_python = Path(sys.executable).parent / "ninja"
    if beside_python.exists():
        if shutil.which("ninja") != str(beside_python):
            path = os.environ.get("PATH", os.defpath)
            os.environ["PATH"] = f"{beside_python.parent}{os.pathsep}{path}"
    elif shutil.which("ninja") is None:
        raise UserError(
            f"{_WHY}, but there is no ninja. Install it: pip install ninja, or on Debian and Ubuntu apt "
            "install ninja-build."
        )


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(shlex.split(compiler)[0]) is None:
        raise UserError(
            f"{_WHY}, but there is no C++ compiler {compiler!r}. Install one (Debian and Ubuntu: apt install "
            "g++), or name one in CXX."
        )


def _check_libraries(builder: OpBuilder) -> None:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if not builder.is_compatible(verbose=False):
        raise UserError(
            f"{_WHY}, and for NVMe it needs libaio with its headers, which are not found. Install them "
            "(Debian and Ubuntu: apt install libaio-dev), or name their place in CFLAGS and LDFLAGS."
        )
    if torch.cuda.is_available() and CUDA_HOME is None:
        raise UserError(
            f"{_WHY}, and for NVMe it needs the CUDA toolkit, which is not found. Install that of CUDA "
            f"{torch.version.cuda}, or name its folder in CUDA_HOME."
        )


def _load(op: Op, builder: OpBuilder, built: Path, is_own: bool) -> None:
    if not _is_made(builder, built):
        logger.info("compiling DeepSpeed's %s, once, %s (in %s)", op.title, op.duration, built)
    lock = FileLock(built.parent / _LOCK, timeout=_PATIENCE_S, poll_interval=_POLL_S, fallback_to_soft=False)
    with lock:
        if is_own:
            _clear_dead_builds(built)
        else:
            _wait_for_strangers(built)
        try:
            builder.load(verbose=False)
        except (RuntimeError, ImportError) as error:
            raise UserError(
                f"{_WHY}, but {op.title} cannot be built in {built}: {_complaint(str(error))}. Mend that, or "
                "take a file of ds_configs that does not offload."
            ) from error


def _clear_dead_builds(built: Path) -> None:
    if (built / _BATON).exists():
        logger.info("%s was left by a build that was killed; it is made anew", built)
        # Out of the way first: compilers of that build may still live, and write where this one is to read.
        built.rename(Path(tempfile.mkdtemp(prefix=_DEAD, dir=built.parent)) / built.name)
    for dead in built.parent.glob(f"{_DEAD}*"):
        shutil.rmtree(dead, ignore_errors=True)


def _wait_for_strangers(built: Path) -> None:
    baton = built / _BATON
    is_told = False
    while baton.exists():
        silent_s = _silent_s(built)
        if silent_s > _ABANDONED_S:
            logger.warning("%s was left by a build that was killed; removed", baton)
            baton.unlink(missing_ok=True)
            return
        if not is_told:
            logger.warning(
                "waiting for the program that compiles in %s. If none does, remove %s; it is taken for left "
                "behind when nothing was written there for %.0f min.",
                built,
                baton,
                _ABANDONED_S / 60,
            )
            is_told = True
        time.sleep(_POLL_S)


def _silent_s(built: Path) -> float:
    """How long nothing was written in a folder, in seconds of its file server's own clock."""
    with tempfile.TemporaryFile(dir=built) as file:
        now_s = os.fstat(file.fileno()).st_mtime
    written_s = []
    for path in built.iterdir():
        try:
            written_s.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue  # a file of the build that came and went
    return now_s - max(written_s, default=now_s)


def _complaint(message: str) -> str:
    """What a failed build is about: the compiler's first error, or the last line."""
    if "Python.h" in message:
        return "Python.h is missing (Debian and Ubuntu: apt install python3-dev)"
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason given"]
    return next((line for line in lines if "error:" in line), lines[-1]).rstrip(".")
