"""`python -m launcher run`: from flags to a job, and from its start to its end."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from dataclasses import replace
from signal import Signals

from launcher import place, run_folder
from launcher.check import before_start
from launcher.errors import LauncherError
from launcher.exit_codes import CRASHED, FINISHED
from launcher.hosts import ports
from launcher.job import Job
from launcher.make_job import make_job
from launcher.place import Place
from launcher.run_folder import RunFolder
from launcher.supervision import requeue, restart
from launcher.supervision.watch import Grace, JobEnd, watch

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
    starts = _Starts(options, where, job, folder, environment, say)
    newest_before = restart.newest_step(folder, say)
    end = restart.run(starts, policy, folder, say)
    if end.message is not None:
        say(end.message)
    # Where the folder is not known there is nothing to judge by.
    has_progressed = folder is None or restart.newest_step(folder, say) != newest_before
    requeue.after_run(end.exit_code, end.asked_by, environment, options.max_requeues, has_progressed, say)
    return end.exit_code


class _Starts:
    """Starts a job again and again, each time on the hosts that are fit for it."""

    def __init__(
        self,
        options: argparse.Namespace,
        where: Place,
        job: Job,
        folder: RunFolder | None,
        environment: Mapping[str, str],
        say: Say,
    ):
        self._options = options
        self._where = where
        self._job = job
        self._folder = folder
        self._environment = environment
        self._say = say
        self._num_starts = 0

    def __call__(self, signals: Set[Signals]) -> JobEnd:
        """One start, to its end. Raises `LauncherError` when the first one is not possible at all."""
        job, options = self._job, self._options
        self._num_starts += 1
        if len(job.nodes) > 1 or self._where.transport.name != "local":
            report = before_start(
                options, replace(self._where, nodes=job.nodes), job, self._environment, self._say
            )
            fit = tuple(node for node in job.nodes if node.host not in report.bad_hosts)
            if not report.ok and self._num_starts == 1:
                raise LauncherError(f"nothing was started.\n{report.table().rstrip()}")
            if not report.ok and not (options.allow_shrink and fit):
                failure = f"{' and '.join(report.bad_hosts)}: not fit for a start"
                return JobEnd("lost host", CRASHED, f"{failure}.\n{report.table().rstrip()}", failure)
            if not report.ok:
                self._say(f"going on without {' and '.join(report.bad_hosts)}:\n{report.table().rstrip()}")
            job = replace(job, nodes=fit)
        grace = Grace(options.grace, options.stop_grace)
        try:
            with ExitStack() as stack:
                started = self._where.transport.started(job, signals, options.start_timeout, self._say)
                try:
                    ranks = stack.enter_context(started)
                except OSError as error:
                    raise LauncherError(f"the ranks could not be started: {error}.") from error
                end = watch(ranks, signals, grace, options.hang_timeout, self._say)
        except LauncherError as error:
            if self._num_starts == 1:
                raise
            # What has worked before may work again: a host that has just gone comes back, or is left out.
            return JobEnd("lost host", CRASHED, str(error), str(error))
        return finished_for_sure(end, self._folder)


def finished_for_sure(end: JobEnd, folder: RunFolder | None) -> JobEnd:
    """The end, unless it is called finished and the run's own last file says otherwise."""
    if end.kind != "finished" or folder is None or not folder.lacks_done():
        return end
    failure = f"all ranks ended with exit code 0, but {folder.path} has no DONE, which a finished run writes"
    return JobEnd("crashed", CRASHED, f"{failure}. The launcher's exit code is {CRASHED}.", failure)
