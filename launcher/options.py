"""The launcher's command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from launcher import preflight
from launcher.errors import LauncherError

TRANSPORT_NAMES = ("local", "pdsh", "openmpi", "slurm")

_EPILOG = """\
Everything after SCRIPT goes to the script untouched, so flags of the launcher come before it:

  python -m launcher run --num-gpus 8 medsft/train.py --deepspeed ds_configs/zero3.json ...
  python -m launcher run --hostfile hostfile medsft/train.py --deepspeed ds_configs/zero3.json ...

Exit code: 0 all ranks finished; 2 something was wrong with flags, files or settings; 3 diverged; 4 crashed
again and again without a new checkpoint, so it is not to be requeued; 75 checkpointed, wants to be started
again; else the exit code of the first rank that failed, or 128 + n when signal n ended it or the job.
"""


class _Parser(argparse.ArgumentParser):
    """Argument parser whose complaints are one paragraph, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise LauncherError(f"{message}. `{self.prog} --help` lists the flags.")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line; `action` says what is asked for. Raises `LauncherError`."""
    parser = _Parser(prog="python -m launcher", description="Gets a run onto its nodes.", allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="COMMAND", dest="action")
    run = actions.add_parser(
        "run",
        help="start SCRIPT once for every slot and watch it to its end",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_place(run)
    _add_start(run)
    run.add_argument("--dry-run", action="store_true", help="show the commands and their environment only")
    _add_end(run)
    preflight.add_arguments(run.add_argument_group("the check before the start"))
    _add_script(run)
    check = actions.add_parser(
        "check",
        help="look at every host before anything is started there",
        description="Looks at every host: can it be reached, and is it fit for the run? SCRIPT and its "
        "arguments, where given, name the data and the output folder.",
        allow_abbrev=False,
    )
    _add_place(check)
    _add_start(check)
    preflight.add_arguments(check.add_argument_group("the check"))
    check.add_argument("--json", action="store_true", help="print JSON instead of the table")
    _add_script(check, nargs=argparse.REMAINDER)
    node = actions.add_parser(
        "node",
        help="under srun with a task for each rank: run SCRIPT as that rank (`run` uses it for its agents)",
        allow_abbrev=False,
    )
    node.add_argument("--job", metavar="ID", help="the launch that this host is part of (set by `run`)")
    node.add_argument(
        "--world-size", "--world_size", type=int, metavar="N", help="refuse any other number of tasks"
    )
    _add_script(node, nargs=argparse.REMAINDER)
    receive = actions.add_parser("receive", help="take a host's part of a job (used by `run`)")
    receive.add_argument("--job", metavar="ID", required=True)
    return parser.parse_args(arguments)


def _add_place(command: argparse.ArgumentParser) -> None:
    parser = command.add_argument_group("where")
    parser.add_argument("--hostfile", "-H", type=Path, metavar="FILE", help='"host slots=N" lines')
    parser.add_argument(
        "--transport",
        choices=["auto", *TRANSPORT_NAMES],
        default="auto",
        help="how hosts are reached (default: auto, which is slurm inside an allocation, pdsh with a "
        "hostfile, else local)",
    )
    parser.add_argument(
        "--num-nodes", "--num_nodes", type=int, metavar="N", help="hosts to take (default: all)"
    )
    parser.add_argument(
        "--num-gpus",
        "--num_gpus",
        type=int,
        metavar="N",
        help="ranks on each host (default: its slots, or one for each visible GPU; without GPUs one, on the "
        "CPU)",
    )
    parser.add_argument(
        "--include", metavar="LIST", help='hosts and their slots to take, like "node1@node2:0,2"'
    )
    parser.add_argument("--exclude", metavar="LIST", help="hosts and their slots to leave out")


def _add_start(command: argparse.ArgumentParser) -> None:
    parser = command.add_argument_group("start")
    parser.add_argument(
        "--master-addr",
        "--master_addr",
        metavar="A",
        default="",
        help="address of the first host for the ranks' meeting (default: that by which the others reach it)",
    )
    parser.add_argument(
        "--master-port",
        "--master_port",
        type=int,
        metavar="P",
        help="port for the ranks' meeting (default: a free one; if P is taken: another)",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="environment variable for the ranks, may be given again and again; NAME alone: as it is here",
    )
    parser.add_argument(
        "--start-timeout",
        type=_seconds,
        default=120.0,
        metavar="SECONDS",
        help="a host that has not answered by then is lost (default: 120)",
    )


def _add_end(command: argparse.ArgumentParser) -> None:
    parser = command.add_argument_group("watching, and starting again")
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=15.0,
        metavar="SECONDS",
        help="time for ranks to end when another one has failed, before they are killed (default: 15)",
    )
    parser.add_argument(
        "--stop-grace",
        type=_seconds,
        default=900.0,
        metavar="SECONDS",
        help="time for ranks to write a checkpoint and end after Ctrl-C or SIGTERM, before they are killed "
        "(default: 900; a third Ctrl-C kills them at once)",
    )
    parser.add_argument(
        "--hang-timeout",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="a rank that has given signs of life, or whose peers have, and then none for so long hangs: the "
        "job is ended (default: 300); one that lives and gets no further is only told of",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start a crashed job again, until N restarts in a row have brought no new checkpoint (default: "
        "0, never); new ones are looked for in checkpoints/ of the script's --output_dir",
    )
    parser.add_argument(
        "--restart-delay",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="wait before a restart, twice as long each time without a new checkpoint, at most 60 (default: "
        "1)",
    )
    parser.add_argument(
        "--max-requeues",
        type=int,
        default=0,
        metavar="N",
        help="inside a Slurm batch job: put the job back into the queue when its run has checkpointed, "
        "because the time limit is near or the job is preempted, N times at most (default: 0, never)",
    )
    parser.add_argument(
        "--allow-shrink",
        action="store_true",
        help="start again without hosts that the check finds unfit; with a global batch size each step keeps "
        "its examples",
    )


def _add_script(parser: argparse.ArgumentParser, nargs: str = argparse.PARSER) -> None:
    # One argument of both: argparse drops a "--" that stands between two.
    parser.add_argument(
        "script", metavar="SCRIPT", nargs=nargs, help="Python file to run, then its own arguments"
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} must be a number of seconds, 0 or more")
    return value
