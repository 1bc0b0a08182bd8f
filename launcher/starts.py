"""The starts of one job, each on the hosts that are fit for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from signal import Signals

from launcher.check import before_start
from launcher.errors import LauncherError
from launcher.exit_codes import CRASHED
from launcher.job import Job, Node
from launcher.place import Place
from launcher.preflight.table import Report
from launcher.run_folder import RunFolder
from launcher.shell import InterruptedWork
from launcher.signals import is_asked_to_stop
from launcher.supervision.job_end import JobEnd
from launcher.supervision.watch import Grace, watch

Say = Callable[[str], None]


class Starts:
    """Runs a job once at each call, to the end of its ranks."""

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
        self._is_first = True

    def __call__(self, signals: Set[Signals]) -> JobEnd:
        """One start, to its end.

        Raises `LauncherError` when the first one is not possible at all, and `InterruptedWork` when a signal
        came before it.
        """
        is_first, self._is_first = self._is_first, False
        try:
            # Left out are hosts that have failed since, never some of those that were asked for.
            nodes = self._fit_nodes(may_shrink=self._options.allow_shrink and not is_first)
            if is_asked_to_stop():
                raise InterruptedWork("asked to stop")
            end = self._run_on(nodes, signals)
        except LauncherError as error:
            if is_first:
                raise
            # What has worked before may work again: a host that has just gone comes back, or is left out.
            message = str(error)
            return JobEnd("lost host", CRASHED, message, message.partition("\n")[0].rstrip(".:"))
        return finished_for_sure(end, self._folder)

    def _fit_nodes(self, may_shrink: bool) -> tuple[Node, ...]:
        """The job's nodes after a look at them."""
        report = before_start(self._options, self._where, self._job, self._environment, self._say)
        fit = fit_nodes(self._job.nodes, report, may_shrink)
        if not report.ok:
            self._say(f"going on without {' and '.join(report.bad_hosts)}:\n{report.table().rstrip()}")
        return fit

    def _run_on(self, nodes: tuple[Node, ...], signals: Set[Signals]) -> JobEnd:
        options = self._options
        job = on_nodes(self._job, nodes)
        if job.master_address != self._job.master_address:
            self._say(
                f"--master-addr {self._job.master_address} was for {self._job.nodes[0].host}; ranks meet at "
                f"{nodes[0].host}'s own address now"
            )
        with ExitStack() as stack:
            started = self._where.transport.started(job, signals, options.start_timeout, self._say)
            try:
                ranks = stack.enter_context(started)
            except OSError as error:
                raise LauncherError(f"the ranks could not be started: {error}.") from error
            grace = Grace(options.grace, options.stop_grace)
            return watch(ranks, signals, grace, options.hang_timeout, self._say)


def fit_nodes(nodes: Sequence[Node], report: Report, may_shrink: bool) -> tuple[Node, ...]:
    """Those of `nodes` that a job may start on: all of them, or without the bad ones if it may shrink.

    Raises `LauncherError` with the report's table when that is not enough, or none is left.
    """
    fit = tuple(node for node in nodes if node.host not in report.bad_hosts)
    if not report.ok and not (may_shrink and fit):
        names = " and ".join(report.bad_hosts)
        raise LauncherError(f"nothing was started, not fit for it: {names}.\n{report.table().rstrip()}")
    return fit


def on_nodes(job: Job, nodes: tuple[Node, ...]) -> Job:
    """The job on some of its nodes; an address to meet at holds only where the first of them is the same."""
    meets_there = nodes[0] == job.nodes[0]
    return replace(job, nodes=nodes, master_address=job.master_address if meets_there else "")


def finished_for_sure(end: JobEnd, folder: RunFolder | None) -> JobEnd:
    """The end, unless it is called finished and the run's own last file says otherwise."""
    if end.kind != "finished" or folder is None or not folder.lacks_done():
        return end
    failure = f"all ranks ended with exit code 0, but {folder.path} has no DONE, which a finished run writes"
    return JobEnd("crashed", CRASHED, f"{failure}. The launcher's exit code is {CRASHED}.", failure)
