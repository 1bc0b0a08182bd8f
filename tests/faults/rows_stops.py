"""Signals that ask a run to stop, at the worst moment and twice."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import psutil
from campaign import Campaign, leftovers, resumed_step
from jobs import Job, committed, frozen, last_step
from tally import Tally

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_SAVE_STEPS = 2


def ask_to_stop(campaign: Campaign, tally: Tally, quick: bool) -> None:
    """Row 11: TERM, USR1 and INT, twice, while a checkpoint is written, to a rank and to the launcher.

    In short: each signal to one of them.
    """
    run = campaign.new_run("asked to stop")
    for order, number in enumerate(_SIGNALS):
        for to_launcher in (order % 2 == 0,) if quick else (False, True):
            target = "the launcher" if to_launcher else "the last rank"
            tally.inject(f"{number.name} twice to {target}, the first in the middle of a save")
            reached = last_step(run)
            with campaign.start(run, save_steps=_SAVE_STEPS) as job:
                recovered_s = job.wait_for_step(reached + 1) - job.started_s
                ranks = job.ranks()
                pid = job.process.pid if to_launcher else ranks[-1].pid
                with ExitStack() as stack:
                    _freeze_in_a_save(job, ranks, stack)
                    os.kill(pid, number)
                    sent_s = time.monotonic()
                time.sleep(0.05)
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                tally.equal(job.end(), 75, f"exit code\n{job.text}\n")
                tally.detected_s.append(time.monotonic() - sent_s)
                if reached:
                    tally.recovered_s.append(recovered_s)
                    tally.steps_lost.append(reached - resumed_step(job.text))
                    tally.equal(tally.steps_lost[-1], 0, "steps lost")
                tally.says(job.text, [number.name, "Start again with the same command"])
                tally.check("Traceback" not in job.text, f"there is a traceback:\n{job.text}")
            tally.equal(committed(run)[-1], last_step(run), "step of the newest checkpoint")
            tally.equal(leftovers(run), [], "left over in the checkpoints folder")
            campaign.check_checkpoints(tally, run)
    campaign.finish(tally, run, last_step(run), save_steps=_SAVE_STEPS)
    tally.equal(tally.steps_lost[-1], 0, "steps lost")


def _freeze_in_a_save(job: Job, ranks: Sequence[psutil.Process], stack: ExitStack) -> None:
    """Has the ranks stand still, until `stack` is left, at a moment when a checkpoint is half written."""

    def is_saving() -> bool:
        return any(re.fullmatch(r"\.step-\d+\.tmp", name) for name in leftovers(job.run))

    while True:
        # A save of this toy takes a tenth of a second: look without a pause.
        while not is_saving():
            assert job.process.poll() is None, f"the run ended before a save was seen:\n{job.text}"
        with ExitStack() as attempt:
            attempt.enter_context(frozen(ranks))
            if is_saving():
                stack.enter_context(attempt.pop_all())
                return
