"""Whether a run that is over inside a batch job goes back into Slurm's queue, and putting it there.

Measured with Slurm 22.05, for a batch script that execs into the launcher:

- `scancel`: SIGCONT and SIGTERM reach the script, and the steps; SIGKILL follows after KillWait (30 s).
  JobState is COMPLETING before the first signal arrives, and CANCELLED in the end, whatever the exit code.
- Preemption by requeueing, with a GraceTime: at its start the steps get SIGCONT and SIGTERM and the script
  nothing; JobState stays RUNNING, PreemptTime is set. A job that ends within the grace is FAILED with any
  code but 0, so it has to be requeued before. At the end of the grace SIGTERM goes to all, and Slurm has
  requeued the job already: JobState=COMPLETING, Restarts one more than SLURM_RESTART_COUNT.
- `--signal=B:USR1@600`: SIGUSR1 reaches the script, by sbatch's manual up to a minute early; JobState stays
  RUNNING. At the time limit itself: SIGTERM, JobState=COMPLETING, Reason=TimeLimit.
- `scontrol requeue` from within: accepted at once, SIGTERM follows within milliseconds, and the exit code
  counts for nothing any more. The job keeps its number, waits two minutes (Reason=BeginTime) and starts with
  SLURM_RESTART_COUNT one higher (unset in the first run). With --no-requeue it is refused.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launcher.errors import LauncherError
from launcher.exit_codes import CHECKPOINTED, DIVERGED, FINISHED, USER_ERROR, describe
from launcher.signals import PASSED_ON, STOPPING

_LIMIT_S = 30.0
"""For slurmctld to answer; scontrol's own patience is longer than the time left before a kill."""


@dataclass(frozen=True)
class JobRecord:
    """A job as slurmctld sees it.

    state: JobState, like RUNNING or COMPLETING. can_requeue: sbatch --requeue, or the cluster's default.
    num_restarts: requeues so far, counting one that has been decided on while the job is still ending.
    is_batch: sbatch, not salloc. is_preempted: its place was given to another job, and its grace runs.
    """

    state: str
    can_requeue: bool
    num_restarts: int
    is_batch: bool
    is_preempted: bool


@dataclass(frozen=True)
class Decision:
    """Whether to requeue, and a line for people that says why or why not."""

    requeue: bool
    why: str


def decide(
    asked_by: int | None,
    record: JobRecord,
    restart_count: int,
    max_requeues: int,
    has_progressed: bool = True,
) -> Decision:
    """For a run that could go on.

    `asked_by`: the signal that asked the launcher to stop, None when the ranks stopped by themselves
    (the file STOP, or signals that went to the job's steps); `restart_count`: SLURM_RESTART_COUNT;
    `max_requeues`: 0 for never; `has_progressed`: whether there is a newer checkpoint than at the start of
    the job, without which the next one would get no further than this one. Requeues made
    by Slurm itself count like our own.
    """
    if max_requeues == 0:
        return Decision(False, "requeueing is not asked for (--max-requeues 0)")
    if record.num_restarts > restart_count:
        return Decision(False, "Slurm has requeued the job itself")
    if record.state != "RUNNING":
        return Decision(False, f"the job is being ended by scancel or by Slurm (JobState={record.state})")
    if not record.is_batch:
        return Decision(False, "this is no batch job (sbatch), so there is no script to start again")
    cause = _cause(asked_by, record)
    if not cause.requeue:
        return cause
    if not has_progressed and not record.is_preempted:
        return Decision(
            False,
            f"{cause.why}, but too early for the run to have got anywhere; give the job more --time, or "
            "a --signal closer to its end",
        )
    if not record.can_requeue:
        return Decision(False, f"{cause.why}, but the job was submitted without --requeue")
    if restart_count >= max_requeues:
        times = "once" if restart_count == 1 else f"{restart_count} times"
        return Decision(
            False, f"{cause.why}, but the job was requeued {times} already (--max-requeues {max_requeues})"
        )
    return Decision(True, f"{cause.why} (requeue {restart_count + 1} of at most {max_requeues})")


def _cause(asked_by: int | None, record: JobRecord) -> Decision:
    if record.is_preempted:
        return Decision(True, "the job is preempted")
    if asked_by == signal.SIGUSR1:
        return Decision(True, "SIGUSR1 came, as before the time limit")
    if asked_by is None:
        return Decision(False, "neither the time limit nor preemption asked the run to stop")
    return Decision(
        False, f"{signal.Signals(asked_by).name} asked the run to stop, which only a person sends here"
    )


def parse_record(shown: str) -> JobRecord:
    """From what `scontrol show job -o` prints. Raises `LauncherError` when a field is missing."""
    # Names and paths are people's own text, and may look like fields.
    fields = re.sub(r" JobName=.*? UserId=", " UserId=", shown, count=1, flags=re.DOTALL)
    fields = fields.partition(" Command=")[0]
    preempted_at = re.search(r"(?:^|\s)PreemptTime=(\S+)", fields)
    return JobRecord(
        state=_field(fields, "JobState", r"\S+"),
        can_requeue=_field(fields, "Requeue", r"[01]") == "1",
        num_restarts=int(_field(fields, "Restarts", r"[0-9]+")),
        is_batch=_field(fields, "BatchFlag", r"[0-9]+") != "0",
        is_preempted=preempted_at is not None and preempted_at.group(1) not in ("None", "Unknown", "(null)"),
    )


def _field(fields: str, name: str, pattern: str) -> str:
    match = re.search(rf"(?:^|\s){name}=({pattern})(?=\s|$)", fields)
    if match is None:
        raise LauncherError(
            f"`scontrol show job -o` prints no {name}=, so nobody can tell whether the job is to be "
            f"requeued. It prints: {fields.strip()[:500]!r}"
        )
    return match.group(1)


def read_record(job_id: str) -> JobRecord:
    """Asks slurmctld, for at most 30 s. Raises `LauncherError` when it gives no answer."""
    return parse_record(_scontrol("show", "job", "-o", job_id))


def requeue(job_id: str) -> None:
    """Puts a job back into the queue, in at most 30 s. Slurm sends it SIGTERM at once.

    Raises `LauncherError` when Slurm refuses or gives no answer.
    """
    _scontrol("requeue", job_id)


def check(max_requeues: int) -> None:
    """Raises `LauncherError` for a number of requeues that makes no sense."""
    if max_requeues < 0:
        raise LauncherError(f"--max-requeues {max_requeues} must be 0 or more; 0 requeues nothing.")


def after_run(
    exit_code: int | None,
    asked_by: int | None,
    environment: Mapping[str, str],
    max_requeues: int,
    has_progressed: bool,
    say: Callable[[str], None],
) -> bool:
    """Requeues this process's batch job if it is to be; whether it has, and `say` gets a line for people.

    To be called last, when all ranks have ended: from here on signals that ask to stop are ignored, for Slurm
    sends SIGTERM to a job that is requeued, and a second SIGUSR1 may come while it answers.

    A run that has checkpointed (75) goes on as `decide` says. Any other that is not over for good (0, 2, 3),
    and one that could not be started at all (`exit_code` None), may have lost its ranks, agents or checks to
    a preemption, whose SIGTERM comes to the job's steps: it is requeued if Slurm says so, and else nothing is
    said. Does nothing outside of Slurm and with `max_requeues` 0. Where Slurm gives no answer a line says so.
    """
    job_id = environment.get("SLURM_JOB_ID")
    if job_id is None or exit_code in (FINISHED, USER_ERROR, DIVERGED) or max_requeues == 0:
        return False
    # A second scancel is seen in JobState.
    for signum in STOPPING | PASSED_ON:
        signal.signal(signum, signal.SIG_IGN)
    try:
        record = read_record(job_id)
        if exit_code != CHECKPOINTED and not record.is_preempted:
            return False
        restart_count = int(environment.get("SLURM_RESTART_COUNT", "0"))
        decision = decide(asked_by, record, restart_count, max_requeues, has_progressed)
        if decision.requeue:
            requeue(job_id)
    except LauncherError as error:
        if exit_code == CHECKPOINTED:
            say(f"the job was not requeued: {error} By hand: scontrol requeue {job_id}")
        else:
            say(f"whether Slurm preempted the job is not known: {error}")
        return False
    say(f"job {job_id} {'is requeued' if decision.requeue else 'is not requeued'}: {decision.why}")
    return decision.requeue


def _scontrol(*words: str) -> str:
    line = " ".join(("scontrol", *words))
    try:
        done = subprocess.run(
            ["scontrol", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
            # Out of the way of signals that are meant for the launcher's group.
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as error:
        raise LauncherError(f"`{line}` gave no answer for {_LIMIT_S:g} s: is slurmctld down?") from error
    except OSError as error:
        raise LauncherError(f"`{line}` cannot be started: {error.strerror}.") from error
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or describe(done.returncode)
        raise LauncherError(f"`{line}` failed: {said}.")
    return done.stdout
