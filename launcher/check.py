"""`python -m launcher check`, and the check before a start: are all hosts fit for this job?"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import place, preflight
from launcher.errors import LauncherError
from launcher.exit_codes import FINISHED, USER_ERROR
from launcher.job import Job
from launcher.make_job import make_job
from launcher.place import Place
from launcher.preflight.table import Report
from launcher.run_folder import OUTPUT_FLAGS, find_path
from launcher.shell import InterruptedWork
from launcher.signals import held_back
from launcher.supervision.watch import Grace, watch

Say = Callable[[str], None]

_REPOSITORY = Path(__file__).resolve().parents[1]
_COLLECTIVE = Path("medsft") / "allreduce.py"
# The whole of the test, from the start of its processes, in seconds.
_COLLECTIVE_S = 120.0
# For the first host to give the result back, in seconds.
_FETCH_S = 15.0
_DATA_FLAGS = ("--train_file", "--validation_file")


def check(options: argparse.Namespace, environment: Mapping[str, str], say: Say) -> int:
    """Prints the table, or JSON; the exit code is 2 when something is red. Raises `LauncherError`."""
    where = place.choose(options, environment)
    job = make_job(options, where, None, environment)
    report = preflight.check(
        where.nodes,
        where.transport.shell,
        _settings(options, job, environment),
        say,
        collective=lambda: run_collective(where, job, options.start_timeout, say),
    )
    flags = ("--train_file", "--output_dir")
    unseen = [flag for flag in flags if find_path(job.arguments, (flag,)) is None]
    if unseen:
        note = (
            f"Not looked at, for want of {' and '.join(unseen)} on the command line or a line of --config: "
            "data or output folder."
        )
        report = replace(report, notes=(*report.notes, note))
    if options.json:
        sys.stdout.write(report.json())
    else:
        sys.stdout.write(report.table(colour=sys.stdout.isatty() and not environment.get("NO_COLOR")))
    return FINISHED if report.ok else USER_ERROR


def before_start(
    options: argparse.Namespace, where: Place, job: Job, environment: Mapping[str, str], say: Say
) -> Report:
    """The same without the collective test, which the start itself soon makes up for."""
    return preflight.check(where.nodes, where.transport.shell, _settings(options, job, environment), say)


def _settings(options: argparse.Namespace, job: Job, environment: Mapping[str, str]) -> preflight.Settings:
    ranks = dict(environment) | dict(job.environment)
    output = find_path(job.arguments, OUTPUT_FLAGS)
    return preflight.settings(
        options,
        python=job.python,
        repository=str(_repository_of(job.script)),
        folder=str(Path.cwd()),
        data=[path for flag in _DATA_FLAGS if (path := find_path(job.arguments, (flag,))) is not None],
        output=output,
        master_port=job.master_port or None,
        use_gpus=False if ranks.get("DS_ACCELERATOR") == "cpu" else None,
    )


def _repository_of(script: Path) -> Path:
    """Where the code lies that ranks run: medsft/train.py takes what lies beside it, wherever it is started.

    For any other script that of this launcher.
    """
    path = script.absolute()
    return path.parents[1] if path.parts[-2:] == ("medsft", "train.py") else _REPOSITORY


def run_collective(where: Place, job: Job, start_limit_s: float, say: Say) -> Mapping[str, Any]:
    """Runs medsft/allreduce.py on every slot; what it measured.

    Raises `LauncherError` when it fails, and `KeyboardInterrupt` when a signal asked to stop it.
    """
    # Rank 0 writes on the first host, which need not share a folder with this machine.
    result = f"/tmp/medsft-check-{secrets.token_hex(8)}.json"
    test = replace(
        job,
        script=_REPOSITORY / _COLLECTIVE,
        arguments=("--output", result, "--timeout", f"{_COLLECTIVE_S / 2:.0f}"),
        logs=None,
    )
    try:
        with (
            held_back() as signals,
            where.transport.started(test, signals, start_limit_s, say) as ranks,
        ):
            end = watch(ranks, signals, Grace(5.0, 5.0), _COLLECTIVE_S, say)
    except InterruptedWork as error:
        raise KeyboardInterrupt from error
    except OSError as error:
        raise LauncherError(f"the collective test could not be run: {error}") from error
    if end.stop_asked:
        raise KeyboardInterrupt
    if end.kind != "finished":
        raise LauncherError(end.failure or end.message or f"the collective test ended with {end.exit_code}")
    host = where.nodes[0].host
    done = where.transport.shell(host, ["sh", "-c", 'cat -- "$0" && rm -- "$0"', result], b"", _FETCH_S)
    # A login shell may have printed something before.
    text = done.stdout[max(0, done.stdout.find("{\n")) :]
    if done.code != 0 or not text:
        why = done.stderr.strip() or f"code {done.code}"
        raise LauncherError(f"what the collective test measured, {result} on {host}, cannot be read: {why}")
    return json.loads(text)
