"""`python -m launcher run`: from flags to a job, and from its start to its end."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace

from launcher import place, run_folder
from launcher.errors import LauncherError
from launcher.exit_codes import FINISHED
from launcher.hosts import ports
from launcher.make_job import make_job
from launcher.signals import held_back
from launcher.starts import Starts
from launcher.supervision import requeue, restart

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
            "--output_dir is neither among the script's own arguments nor on a line of --config, so new "
            "checkpoints cannot be seen: every restart counts as one without."
        )
    starts = Starts(options, where, job, folder, environment, say)
    newest_before = restart.newest_step(folder, say)
    # To the very end: a further signal must not cost the job its place in the queue.
    with held_back():
        try:
            end = restart.run(starts, policy, folder, say)
        except LauncherError:
            # What a check or a start needs on other hosts are steps of the job, which preemption ends first.
            requeue.after_run(None, None, environment, options.max_requeues, False, say)
            raise
        if end.message is not None:
            say(end.message)
        # Where the folder is not known there is nothing to judge by.
        has_progressed = folder is None or restart.newest_step(folder, say) != newest_before
        limit = options.max_requeues
        requeue.after_run(end.exit_code, end.asked_by, environment, limit, has_progressed, say)
    return end.exit_code
