"""`python -m launcher`, installed as `medsft-launch`: starts a training script on every slot."""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from launcher import ports, restart, slots, supervise, transport
from launcher.command import Command
from launcher.errors import LauncherError
from launcher.exit_codes import FINISHED, USER_ERROR
from launcher.hostfile import read_hostfile
from launcher.job import Job, Node, existing_script, parse_environment

_EPILOG = """\
Everything after SCRIPT goes to the script untouched, so flags of the launcher come before it:

  python -m launcher run --num-gpus 8 medsft/train.py --deepspeed ds_configs/zero3.json ...

Exit code: 0 all ranks finished; 2 something was wrong with flags, files or settings; 3 diverged; 4 crashed
again and again without a new checkpoint, so it is not to be requeued; 75 checkpointed, wants to be started
again; else the exit code of the first rank that failed, or 128 + n when signal n ended it or the job.
"""


class _Parser(argparse.ArgumentParser):
    """Argument parser whose complaints are one paragraph, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise LauncherError(f"{message}. `{self.prog} --help` lists the flags.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the return value is the exit code."""
    try:
        options = _parser().parse_args(arguments)
        return options.command(options)
    except LauncherError as error:
        _say(str(error))
        return USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m launcher", description="Gets a run onto its nodes.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check", help="read a hostfile strictly, before DeepSpeed's launcher is given it", allow_abbrev=False
    )
    check.set_defaults(command=_check)
    check.add_argument("--hostfile", type=Path, required=True, metavar="FILE", help='"host slots=N" lines')
    run = commands.add_parser(
        "run",
        help="start SCRIPT once for every slot and watch it to its end",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.set_defaults(command=_run)
    run.add_argument(
        "--num-gpus",
        "--num_gpus",
        type=int,
        metavar="N",
        help="ranks to start (default: one for each visible GPU; without GPUs one, on the CPU)",
    )
    run.add_argument(
        "--transport",
        choices=["auto", *transport.TRANSPORTS],
        default="auto",
        help="how ranks are started (default: auto)",
    )
    run.add_argument(
        "--master-port",
        "--master_port",
        type=int,
        metavar="P",
        help="port for the ranks' meeting (default: a free one; if P is taken: another)",
    )
    run.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="environment variable for the ranks, may be given again and again",
    )
    run.add_argument(
        "--grace",
        type=float,
        default=15.0,
        metavar="SECONDS",
        help="time for ranks to end when another one has failed, before they are killed (default: 15)",
    )
    run.add_argument(
        "--stop-grace",
        type=float,
        default=900.0,
        metavar="SECONDS",
        help="time for ranks to write a checkpoint and end after Ctrl-C or SIGTERM, before they are killed "
        "(default: 900; a third Ctrl-C kills them at once)",
    )
    run.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start a crashed job again, until N restarts in a row have brought no new checkpoint (default: "
        "0, never); new ones are looked for in checkpoints/ of the script's --output_dir",
    )
    run.add_argument(
        "--restart-delay",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="wait before a restart, twice as long each time without a new checkpoint, at most 60 (default: "
        "1)",
    )
    run.add_argument("--dry-run", action="store_true", help="show the commands and their environment only")
    # One argument of both: argparse drops a "--" that stands between two.
    run.add_argument(
        "script", metavar="SCRIPT", nargs=argparse.PARSER, help="Python file to run, then its own arguments"
    )
    return parser


def _check(options: argparse.Namespace) -> int:
    nodes = read_hostfile(options.hostfile)
    for node in nodes:
        sys.stdout.write(f"{node.host}: {node.num_slots} slots\n")
    num_ranks = sum(node.num_slots for node in nodes)
    sys.stdout.write(f"{len(nodes)} hosts, {num_ranks} ranks\n")
    return FINISHED


def _run(options: argparse.Namespace) -> int:
    if sys.platform != "linux":
        raise LauncherError(f"the launcher watches its ranks with means of Linux; this is {sys.platform}.")
    for flag, seconds in (("--grace", options.grace), ("--stop-grace", options.stop_grace)):
        if not 0 <= seconds < float("inf"):
            raise LauncherError(f"{flag} {seconds} must be a number of seconds, 0 or more.")
    if options.max_restarts < 0:
        raise LauncherError(
            f"--max-restarts {options.max_restarts} must be 0 or more; 0 starts nothing again."
        )
    if not 0 <= options.restart_delay <= restart.LONGEST_DELAY_S:
        raise LauncherError(
            f"--restart-delay {options.restart_delay} must be a number of seconds from 0 to "
            f"{restart.LONGEST_DELAY_S:.0f}."
        )
    job = _job(options, os.environ)
    if options.master_port not in (None, job.master_port):
        _say(f"port {options.master_port} is taken; using {job.master_port} instead")
    to_commands = transport.choose(options.transport)
    if options.dry_run:
        for command in to_commands(job):
            sys.stdout.write(f"{command.name}: {command.shown()}\n")
        return FINISHED

    # The same at each start: a restart knows by it what this launch has begun, and goes on with that.
    job = replace(job, environment=(*job.environment, ("MEDSFT_LAUNCH", uuid.uuid4().hex)))

    def commands() -> tuple[Command, ...]:
        # By the time of a restart the port may be another program's.
        return to_commands(replace(job, master_port=ports.free_port(job.master_port)))

    grace = supervise.Grace(options.grace, options.stop_grace)
    policy = restart.Policy(options.max_restarts, options.restart_delay)
    checkpoints = None
    if policy.max_restarts > 0:
        checkpoints = restart.checkpoints_folder(job.arguments)
        if checkpoints is None:
            _say(
                "--output_dir is not among the script's own arguments, so new checkpoints cannot be seen: "
                "every restart counts as one without."
            )
    end = restart.run(commands, grace, policy, checkpoints, _say)
    if end.message is not None:
        _say(end.message)
    return end.exit_code


def _say(line: str) -> None:
    sys.stderr.write(f"launcher: {line}\n")


def _job(options: argparse.Namespace, environment: Mapping[str, str]) -> Job:
    """The job that the flags ask for; `environment` is the one the launcher was started in."""
    name, *arguments = options.script
    script = existing_script(name)
    settings = dict(parse_environment(options.env))
    seen = dict(environment) | settings
    num_slots = slots.count_slots(options.num_gpus, seen, slots.list_nvidia_gpus)
    if "OMP_NUM_THREADS" not in seen:
        # Without it every rank takes a thread for each core, and the ranks get in each other's way.
        num_cores = len(os.sched_getaffinity(0))
        settings["OMP_NUM_THREADS"] = str(max(1, num_cores // num_slots))
    return Job(
        nodes=(Node("localhost", num_slots),),
        python=sys.executable,
        script=script,
        arguments=tuple(arguments),
        environment=tuple(settings.items()),
        master_address="127.0.0.1",
        master_port=ports.free_port(options.master_port),
    )


if __name__ == "__main__":
    sys.exit(main())
