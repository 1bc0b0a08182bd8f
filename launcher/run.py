"""`python -m launcher run`: from flags to a job, and from its start to its end."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from signal import Signals

from launcher import place, ports, requeue, restart, run_folder, supervise
from launcher.environment import travelling
from launcher.errors import LauncherError
from launcher.exit_codes import CRASHED, FINISHED
from launcher.job import Job, existing_script, parse_environment
from launcher.place import Place
from launcher.ports import check_port
from launcher.run_folder import RunFolder
from launcher.supervise import Grace, JobEnd

Say = Callable[[str], None]


def run(options: argparse.Namespace, environment: Mapping[str, str], say: Say) -> int:
    """Runs a job to its end; returns the launcher's exit code. Raises `LauncherError`."""
    if sys.platform != "linux":
        raise LauncherError(f"the launcher watches its ranks with means of Linux; this is {sys.platform}.")
    policy = restart.policy(options.max_restarts, options.restart_delay)
    requeue.check(options.max_requeues)
    where = place.choose(options, environment)
    folder = run_folder.find(options.script[1:])
    job = make_job(options, where, folder, environment)
    if where.transport.name == "local" and options.master_port is not None:
        port = ports.free_port(options.master_port)
        if port != options.master_port:
            say(ports.taken(options.master_port, port))
        job = replace(job, master_port=port)
    if options.dry_run:
        for command in where.transport.commands(job):
            sys.stdout.write(f"{command.name}: {command.shown()}\n")
        return FINISHED
    # The same at each start: a restart knows by it what this launch has begun, and goes on with that.
    job = replace(job, environment=(*job.environment, ("MEDSFT_LAUNCH", uuid.uuid4().hex)))
    if policy.max_restarts > 0 and folder is None:
        say(
            "--output_dir is not among the script's own arguments, so new checkpoints cannot be seen: "
            "every restart counts as one without."
        )
    grace = Grace(options.grace, options.stop_grace)

    def start(signals: Set[Signals]) -> JobEnd:
        with where.transport.started(job, signals, options.start_timeout, say) as ranks:
            end = supervise.watch(ranks, signals, grace, options.hang_timeout, say)
        return finished_for_sure(end, folder)

    end = restart.run(start, policy, folder, say)
    if end.message is not None:
        say(end.message)
    requeue.after_run(end.exit_code, end.asked_by, environment, options.max_requeues, say)
    return end.exit_code


def make_job(
    options: argparse.Namespace, where: Place, folder: RunFolder | None, environment: Mapping[str, str]
) -> Job:
    """The job that the flags ask for; `environment` is the one the launcher was started in."""
    name, *arguments = options.script
    script = existing_script(name)
    if options.master_port is not None:
        check_port(options.master_port)
    settings = dict(parse_environment(options.env, environment))
    if where.transport.name != "local":
        settings = dict(travelling(environment)) | settings
    return Job(
        nodes=where.nodes,
        python=sys.executable,
        script=script,
        arguments=tuple(arguments),
        environment=tuple(settings.items()),
        master_address=options.master_addr,
        master_port=options.master_port or 0,
        logs=None if folder is None else folder.logs.absolute(),
    )


def finished_for_sure(end: JobEnd, folder: RunFolder | None) -> JobEnd:
    """The end, unless it is called finished and the run's own last file says otherwise."""
    if end.kind != "finished" or folder is None or not folder.lacks_done():
        return end
    failure = f"all ranks ended with exit code 0, but {folder.path} has no DONE, which a finished run writes"
    return JobEnd("crashed", CRASHED, f"{failure}. The launcher's exit code is {CRASHED}.", failure)
