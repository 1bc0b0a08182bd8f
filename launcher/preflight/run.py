"""Asks every host, has the answers judged, removes what it left behind."""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import LauncherError
from launcher.job import Node
from launcher.preflight import collective as collective_test
from launcher.preflight import probe
from launcher.preflight.answer import Answer, Limits, Needs
from launcher.preflight.collective import SlowLimits
from launcher.preflight.compare import compare
from launcher.preflight.findings import CHECKS, GREEN, RED, Finding, checks_to_skip
from launcher.preflight.reach import explain, last_words
from launcher.preflight.table import Report
from launcher.shell import Done, Shell, on_all

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "sentencepiece",
    "safetensors",
    "tensorboard",
    "mpi4py",
    "cpm_kernels",
    "datasets",
    "typer",
    "rich",
    "numpy",
    "filelock",
    "pyyaml",
    "psutil",
    "protobuf",
)
"""What setup.py asks for."""

_LIMIT_S = 15.0
# Time to take the nonce away again, when the host may hang, in seconds.
_REMOVAL_LIMIT_S = 5.0
_GIB = 2**30
# Runs what comes on standard input. The folder a remote shell starts in must not lend modules to it.
_BOOTSTRAP = "import sys; del sys.path[0]; exec(compile(sys.stdin.buffer.read(), 'probe.py', 'exec'))"


@dataclass(frozen=True)
class Settings:
    """What is asked of each host. Paths are as the hosts see them, relative ones to `folder`.

    python: the interpreter on the hosts. repository: where the code lies that is compared. folder: where the
    job runs. data: files and folders that must be alike. output: the run's
    output folder, None to leave it unchecked. master_port: the port asked for, None when one will be chosen.
    limit_s: seconds for each host. at_once: hosts asked at a time.
    """

    python: str
    repository: str
    folder: str
    data: tuple[str, ...] = ()
    output: str | None = None
    master_port: int | None = None
    packages: tuple[str, ...] = PACKAGES
    needs: Needs = field(default_factory=Needs)
    limits: Limits = field(default_factory=Limits)
    slow: SlowLimits = field(default_factory=SlowLimits)
    skip: frozenset[str] = frozenset()
    limit_s: float = _LIMIT_S
    at_once: int = 64


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """The flags of a check; `settings` reads them."""
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="NAME",
        help=f"leave a check out, may be given again and again: {', '.join(CHECKS)}",
    )
    parser.add_argument(
        "--check-timeout",
        type=float,
        default=_LIMIT_S,
        metavar="SECONDS",
        help="time for each host to answer a check (default: %(default)g)",
    )
    parser.add_argument(
        "--needs-memory", type=float, metavar="GIB", help="host memory that the run takes on each host"
    )
    parser.add_argument(
        "--needs-gpu-memory", type=float, metavar="GIB", help="memory that the run takes on each GPU"
    )
    parser.add_argument("--needs-disk", type=float, metavar="GIB", help="room that the run's output takes")


def settings(
    options: argparse.Namespace,
    python: str,
    repository: str,
    folder: str,
    data: Sequence[str] = (),
    output: str | None = None,
    master_port: int | None = None,
    use_gpus: bool | None = None,
) -> Settings:
    """From the flags of `add_arguments` and what else is known.

    Raises `LauncherError` for a check that does not exist and for senseless numbers.
    """
    if not 1 <= options.check_timeout < float("inf"):
        raise LauncherError(
            f"--check-timeout {options.check_timeout} must be a number of seconds, 1 or more."
        )
    return Settings(
        python=python,
        repository=repository,
        folder=folder,
        data=tuple(data),
        output=output,
        master_port=master_port,
        needs=Needs(
            memory_bytes=_bytes("--needs-memory", options.needs_memory),
            disk_bytes=_bytes("--needs-disk", options.needs_disk),
            gpu_memory_bytes=_bytes("--needs-gpu-memory", options.needs_gpu_memory),
            use_gpus=use_gpus,
        ),
        skip=checks_to_skip(options.skip),
        limit_s=options.check_timeout,
    )


def _bytes(flag: str, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 <= gib < float("inf"):
        raise LauncherError(f"{flag} {gib} must be a number of GiB, 0 or more.")
    return int(gib * _GIB)


def check(
    nodes: Sequence[Node],
    shell: Shell,
    settings: Settings,
    say: Callable[[str], None],
    collective: Callable[[], Mapping[str, Any]] | None = None,
) -> Report:
    """Asks all hosts and judges them; `say` gets a line for people.

    The first host is asked first and leaves a word in the output folder that the others then look for, all at
    the same time. No host holds up another for longer than the limit. `collective` runs medsft/allreduce.py
    on every slot and gives its result; it is called when nothing else is red, and its `LauncherError` becomes
    a finding. Raises `LauncherError` when the shell's own program is not there.
    """
    began = time.monotonic()
    asking = _Asking(shell, settings)
    try:
        answers, findings = asking.everybody(nodes)
    finally:
        asking.clean_up(nodes[0].host, say)
    findings += compare(answers, settings.needs, settings.limits, settings.skip)
    result, notes = None, []
    if collective is not None and "collective" not in settings.skip:
        if any(finding.level == RED for finding in findings):
            notes.append("The collective test was left out: something else is red.")
        else:
            result, judged = _collective(collective, [node.host for node in nodes], settings.slow)
            findings += judged
            if result is not None:
                notes.append(collective_test.describe(result))
    return Report(
        hosts=tuple(node.host for node in nodes),
        findings=tuple(findings),
        probes={answer.node.host: answer.probe for answer in answers},
        collective=result,
        notes=tuple(notes),
        seconds=time.monotonic() - began,
    )


def _collective(
    collective: Callable[[], Mapping[str, Any]], hosts: Sequence[str], slow: SlowLimits
) -> tuple[Mapping[str, Any] | None, list[Finding]]:
    try:
        result = collective()
        return result, collective_test.judge(result, hosts, slow)
    except (LauncherError, ValueError) as error:
        remedy = (
            "See that the hosts reach each other on the interface of the master's address (firewall, "
            "NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)."
        )
        return None, [Finding(host, "collective", RED, str(error).rstrip("."), remedy) for host in hosts]


class _Asking:
    """The questions of one check: its nonce, and where the first host has left it."""

    def __init__(self, shell: Shell, settings: Settings) -> None:
        self._shell = shell
        self._settings = settings
        self._nonce = secrets.token_hex(8)
        self._nonce_folder: str | None = None
        self._may_be_left = False
        self._source = Path(probe.__file__).read_bytes()

    def everybody(self, nodes: Sequence[Node]) -> tuple[list[Answer], list[Finding]]:
        """The answers, and a finding "reach" for every host (none when that is skipped)."""
        first, *rest = nodes
        self._may_be_left = self._settings.output is not None and "output" not in self._settings.skip
        done = self._ask([first.host], "write")
        answer = _read(done[first.host][0])
        if answer is not None:
            self._nonce_folder = (answer.get("output") or {}).get("folder")
        elif done[first.host][0].code is not None:
            self._may_be_left = False  # the probe never ran there
        # Where the first host says nothing, there is nothing to look for.
        done |= self._ask([node.host for node in rest], None if self._nonce_folder is None else "read")
        answers, findings = [], []
        for node in nodes:
            ended, asked_s, answered_s = done[node.host]
            probed = _read(ended)
            if probed is not None:
                answers.append(Answer(node, probed, asked_s, answered_s))
                findings.append(
                    Finding(node.host, "reach", GREEN, f"answered in {answered_s - asked_s:.1f} s")
                )
            else:
                trouble = explain(node.host, ended, self._settings.limit_s, self._settings.python)
                findings.append(Finding(node.host, "reach", RED, trouble.found, trouble.remedy))
        return answers, [] if "reach" in self._settings.skip else findings

    def clean_up(self, first: str, say: Callable[[str], None]) -> None:
        """Removes the nonce; says where it is when that fails."""
        if not self._may_be_left:
            return
        limit_s = min(_REMOVAL_LIMIT_S, self._settings.limit_s)
        done = self._shell(first, self._command("remove"), self._source, limit_s)
        answer = _read(done)
        if self._nonce_folder is not None and (answer or {}).get("output", {}).get("nonce") != "removed":
            why = last_words(done.stderr) or (answer or {}).get("output", {}).get("error", "no answer")
            say(
                f"{self._nonce_folder}/{probe.NONCE_PREFIX}{self._nonce} on {first} could not be removed "
                f"({why}); remove it by hand."
            )

    def _ask(self, hosts: Sequence[str], role: str | None) -> dict[str, tuple[Done, float, float]]:
        times: dict[str, tuple[float, float]] = {}

        def timed(host: str, command: Sequence[str], stdin: bytes, limit_s: float) -> Done:
            asked_s = time.time()
            done = self._shell(host, command, stdin, limit_s)
            times[host] = (asked_s, time.time())
            return done

        command = self._command(role)
        asked = on_all(
            timed, hosts, lambda _: command, self._settings.limit_s, self._settings.at_once, self._source
        )
        return {host: (done, *times[host]) for host, done in asked.items()}

    def _command(self, role: str | None) -> list[str]:
        wanted = self._settings
        # nvidia-smi is asked for either of two checks.
        unasked = wanted.skip if {"gpus", "driver"} <= wanted.skip else wanted.skip - {"gpus"}
        flags: list[tuple[str, str | None]] = [
            ("--repository", wanted.repository),
            ("--folder", wanted.folder),
            *(("--package", name) for name in wanted.packages),
            *(("--data", path) for path in wanted.data),
            *(("--skip", name) for name in sorted(unasked)),
        ]
        if wanted.output is not None:
            flags.append(("--output", wanted.output))
            if role is not None:
                flags += [("--role", role), ("--nonce", self._nonce), ("--nonce-folder", self._nonce_folder)]
        if role == "write" and wanted.master_port is not None:
            flags.append(("--port", str(wanted.master_port)))
        # One word each: a value may begin with a dash. env says alike on every shell that there is no Python.
        words = [f"{flag}={value}" for flag, value in flags if value is not None]
        return ["env", wanted.python, "-c", _BOOTSTRAP, *words]


def _read(done: Done) -> dict[str, Any] | None:
    """The probe among what a login shell may have printed before; None when there is none."""
    if done.code != 0:
        return None
    for line in reversed(done.stdout.splitlines()):
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict):
            return content
    return None
