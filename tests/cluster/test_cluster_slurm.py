"""The job scripts in a real Slurm: to the end, over time limits, preemption, scancel and restarts of Slurm.

Rows 12 to 14 of the fault matrix. What a test has measured goes to its properties (`--junitxml`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from cluster import LOGIN, Cluster
from slurm_jobs import job, submit, wait_for_state
from toy_training import (
    ENVIRONMENT,
    PYTHON,
    SHORT_STEPS,
    curve,
    last_step,
    local_losses,
    make_toy,
    metrics,
    step_flags,
    weights_hash,
)

# Longest waits, in seconds; the machine may be busy.
PATIENCE_S = 150
NUM_STEPS = 100
# So long, in seconds, a long training takes: more than Slurm lets a job of three minutes train, which is the
# 105 to 165 s before its signal without the start of the ranks; and less than it lets it in three times.
LONG_TRAINING_S = 180
LONG_S = 1800
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
ONE_NODE, MULTINODE = "slurm/train_8xa100.sh", "slurm/train_multinode.sh"


@dataclass(frozen=True)
class Training:
    """A training that was submitted: job number, output folder, the job's log."""

    cluster: Cluster
    number: int
    output: Path
    log: Path

    def said(self) -> str:
        """The log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def job(self) -> dict[str, str]:
        """What Slurm knows of it."""
        return job(self.cluster, self.number)

    def wait_for_step(self, step: int) -> None:
        """Returns when so many steps are done. Fails when the job has ended before."""
        self.wait_until(lambda: last_step(self.output) >= step, f"step {step}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Returns when it is so. Fails when the job has ended before, or after the time limit."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S} s: {what}\n{self.said()}"
            assert self.job()["JobState"] not in ENDED, f"ended before: {what}\n{self.said()}"
            time.sleep(0.1)

    def end(self, limit_s: float = PATIENCE_S) -> dict[str, str]:
        """What Slurm knows when the job has ended, and nothing of it runs any more."""
        known = wait_for_state(self.cluster, self.number, ENDED, limit_s)
        wait_until(lambda: not self.processes(), "no process is left")
        return known

    def processes(self) -> list[str]:
        """Command lines of ranks, agents and launchers on all hosts."""
        return [
            process.command
            for host in self.cluster.names
            for word in ("medsft/train.py", "-m launcher")
            for process in self.cluster.processes_on(host, word)
        ]

    def signal_as_before_the_limit(self) -> float:
        """Sends what `--signal=B:USR1@600` sends; the time it was, in seconds since 1970."""
        now_s = time.time()
        done = self.cluster.run_on("ctl", ["scancel", "--signal=USR1", "--batch", str(self.number)])
        assert done.returncode == 0, done.stderr
        return now_s


def wait_until(condition: Callable[[], bool], what: str, limit_s: float = 30) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {what}"
        time.sleep(0.1)


LIGHT_RANK = """
import os, signal, sys, time
from pathlib import Path

def checkpoint(number, frame):
    (folder / "asked").touch()
    # At once: Slurm, the agent and the launcher all send the signal, and Python's end heeds it no more.
    os._exit(75)

folder = Path(sys.argv[1])
if "SLURM_RESTART_COUNT" in os.environ:
    sys.exit(0)
signal.signal(signal.SIGTERM, checkpoint)
(folder / "ready").touch()
while True:
    time.sleep(0.1)
"""


# As a training is while Python imports: it heeds no signal yet.
STARTING_RANK = """
import os, sys, time
from pathlib import Path

if "SLURM_RESTART_COUNT" in os.environ:
    sys.exit(0)
(Path(sys.argv[1]) / "ready").touch()
time.sleep(600)
"""


def submit_light(
    cluster: Cluster, tmp_path: Path, rank_text: str, environment: dict[str, str] | None = None
) -> Training:
    """Submits a job on node1 whose rank trains nothing."""
    rank, batch = tmp_path / "rank 一.py", tmp_path / "batch.sh"
    rank.write_text(rank_text, encoding="utf-8")
    batch.write_text(
        "#!/bin/bash\n#SBATCH --requeue --open-mode=append --exclusive --nodelist=node1\n"
        f"exec {PYTHON} -m launcher run --num-gpus 1 --max-requeues 5 "
        f"'{rank}' '{tmp_path}'\n",
        encoding="utf-8",
    )
    log = tmp_path / "log"
    return Training(
        cluster, submit(cluster, f"--output={log}", batch, environment=environment), tmp_path, log
    )


@pytest.fixture
def light(cluster, tmp_path) -> Training:
    """A job on node1 whose rank checkpoints at SIGTERM; in its second life it finishes at once."""
    training = submit_light(cluster, tmp_path, LIGHT_RANK)
    training.wait_until((tmp_path / "ready").exists, "the rank is ready")
    return training


def push_out(training: Training) -> float:
    """A job in the partition `urgent` takes node1; the time it was, in seconds since 1970."""
    now_s = time.time()
    urgent = ("--partition=urgent", "--exclusive", "--nodelist=node1", "--output=/dev/null", "--wrap=true")
    submit(training.cluster, *urgent)
    return now_s


@pytest.fixture(scope="module")
def train(cluster, tmp_path_factory):
    """Submits a job script with the toy model."""
    toy = make_toy(tmp_path_factory.getbasetemp())

    def submitted(
        script: str, num_steps: int, *flags: str, options: tuple[str, ...] = (), **environment: str
    ) -> Training:
        # slurm.conf of the cluster allows blanks everywhere; sbatch replaces % in the log's name.
        folder = tmp_path_factory.mktemp("job")
        training = {
            "MODEL": str(toy.model),
            "TRAIN_FILE": str(toy.data),
            "OUTPUT_DIR": str(folder / "the run 一"),
            "DS_CONFIG": "ds_configs/zero3_cpu.json",
            "PYTHON": PYTHON,
        }
        environment = ENVIRONMENT | training | environment
        log = folder / "job log.txt"
        number = submit(
            cluster,
            f"--output={log}",
            *options,
            script,
            *step_flags(num_steps),
            *flags,
            environment=environment,
        )
        return Training(cluster, number, Path(environment["OUTPUT_DIR"]), log)

    return submitted


@pytest.fixture(scope="module")
def uninterrupted(train):
    """The script for one node as it stands, with two ranks."""
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2")
    return training, training.end()


@pytest.fixture(scope="module")
def many_steps(uninterrupted) -> int:
    """As many as this machine, as busy as it is, trains in `LONG_TRAINING_S`."""
    times = [record["time"] for record in metrics(uninterrupted[0].output)]
    return round(LONG_TRAINING_S * (len(times) - 1) / (times[-1] - times[0]))


@pytest.fixture(scope="module")
def long_uninterrupted(train, many_steps):
    """The script for one node with two ranks, for longer."""
    training = train(ONE_NODE, many_steps, "--save_strategy", "no", NUM_GPUS="2")
    assert training.end(limit_s=LONG_S)["JobState"] == "COMPLETED"
    return training


def assert_same(training: Training, reference: Training) -> None:
    """Every step is there once, in order, with the same numbers, and the weights are the same bit by bit."""
    assert (training.output / "DONE").exists()
    steps = [step for step, _, _ in curve(training.output)]
    assert steps == list(range(1, last_step(reference.output) + 1))
    assert curve(training.output) == curve(reference.output)
    assert weights_hash(training.output) == weights_hash(reference.output)


def around_the_gap(training: Training, from_s: float) -> tuple[float, float]:
    """Seconds from `from_s` (since 1970) to the last step before the longest pause, and to the next."""
    times = [record["time"] for record in metrics(training.output)]
    before, after = max(pairwise(times), key=lambda pair: pair[1] - pair[0])
    return before - from_s, after - from_s


def test_the_script_for_one_node_completes(uninterrupted):
    training, known = uninterrupted
    assert (known["JobState"], known["ExitCode"], known["Restarts"]) == ("COMPLETED", "0:0", "0")
    assert known["TresPerNode"] == "gres:gpu:8"
    assert (training.output / "DONE").exists()
    assert "ranks: 2," in training.said()
    assert last_step(training.output) == NUM_STEPS
    logs = sorted(path.name for path in (training.output / "logs").iterdir())
    assert logs == ["rank-00000.log", "rank-00001.log"]


def test_the_script_for_several_nodes_has_the_losses_of_one_local_process(train, tmp_path_factory):
    expected = local_losses(tmp_path_factory.getbasetemp())
    training = train(MULTINODE, SHORT_STEPS, "--save_strategy", "no", NUM_GPUS="1")
    known = training.end()
    assert (known["JobState"], known["Restarts"], known["NumNodes"]) == ("COMPLETED", "0", "2")
    assert (training.output / "DONE").exists()
    assert "ranks: 2," in training.said()
    assert [record["loss"] for record in metrics(training.output)] == pytest.approx(expected, rel=1e-6, abs=0)


def test_before_the_time_limit_it_checkpoints_and_the_requeued_job_ends_alike(
    train, uninterrupted, record_property
):
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2")
    training.wait_for_step(10)
    asked_s = training.signal_as_before_the_limit()
    known = training.end()
    assert (known["JobState"], known["Restarts"], known["ExitCode"]) == ("COMPLETED", "1", "0:0")
    said = training.said()
    assert f"job {training.number} is requeued: SIGUSR1 came, as before the time limit" in said
    # The log was appended to.
    assert said.index("is requeued") < said.index("going on from") < said.index("model written to")
    assert_same(training, uninterrupted[0])
    stopped_s, back_s = around_the_gap(training, asked_s)
    record_property("row 12: signal to the last step", f"{stopped_s:.2f} s")
    record_property("row 12: signal to the next step of the requeued job", f"{back_s:.1f} s")


def test_scancel_ends_a_job_for_good(light):
    assert light.cluster.run_on("node2", ["scancel", str(light.number)]).returncode == 0
    known = light.end()
    assert (known["JobState"], known["Restarts"]) == ("CANCELLED", "0")
    assert (light.output / "asked").exists()
    assert f"job {light.number} is not requeued: the job is being ended by scancel" in light.said()


@pytest.mark.slow
def test_a_preempted_job_is_requeued_once(light):
    push_out(light)
    known = light.end()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1")
    assert (light.output / "asked").exists()
    assert f"job {light.number} is requeued: the job is preempted" in light.said()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mark", "said_first"),
    [("checking", "nothing was started, not fit for it: node1"), ("ready", "SIGTERM")],
)
def test_a_job_preempted_in_its_first_seconds_is_requeued_once(mark, said_first, cluster, tmp_path):
    """While its host is looked at, and while its rank imports."""
    if mark == "checking":
        # Takes its time, once, for as long as the check allows.
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\ntouch "{tmp_path}/checking"; rm "$0"; exec sleep 60\n')
        program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{LOGIN['PATH']}"}
    training = submit_light(cluster, tmp_path, STARTING_RANK, path)
    training.wait_until((tmp_path / mark).exists, mark)
    push_out(training)
    known = training.end()
    said = training.said()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1"), said
    assert said_first in said
    assert f"job {training.number} is requeued: the job is preempted" in said


@pytest.mark.slow
def test_three_requeues_leave_no_trace_in_the_numbers(train, uninterrupted, record_property):
    """Row 12."""
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2")
    for step in (5, 25, 45):
        training.wait_for_step(step)
        training.signal_as_before_the_limit()
        training.wait_until(lambda: training.job()["JobState"] != "RUNNING", "the job is requeued")
        record_property("row 12: steps when it was requeued", last_step(training.output))
    known = training.end()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "3")
    assert training.said().count("is requeued: SIGUSR1") == 3
    assert_same(training, uninterrupted[0])


@pytest.mark.slow
def test_a_real_time_limit(train, many_steps, long_uninterrupted, record_property):
    """Row 12, with the signal from Slurm itself."""
    limits = ("--time=3", "--signal=B:USR1@15")
    training = train(ONE_NODE, many_steps, "--save_strategy", "no", options=limits, NUM_GPUS="2")
    known = training.end(limit_s=LONG_S)
    assert known["JobState"] == "COMPLETED"
    assert int(known["Restarts"]) >= 1
    assert training.said().count("is requeued: SIGUSR1 came") == int(known["Restarts"])
    assert_same(training, long_uninterrupted)
    record_property(
        "row 12: steps, and requeues by a time limit of three minutes", f"{many_steps}, {known['Restarts']}"
    )


@pytest.mark.slow
def test_a_cancelled_training_goes_on_in_a_new_job(train, uninterrupted, record_property):
    """Row 13."""
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2")
    training.wait_for_step(5)
    cancelled_s = time.monotonic()
    assert training.cluster.run_on("ctl", ["scancel", str(training.number)]).returncode == 0
    known = training.end()
    record_property("row 13: scancel to nothing left", f"{time.monotonic() - cancelled_s:.1f} s")
    assert (known["JobState"], known["Restarts"]) == ("CANCELLED", "0")
    assert "is not requeued: the job is being ended by scancel" in training.said()
    assert not (training.output / "DONE").exists()
    assert 5 <= last_step(training.output) < NUM_STEPS
    again = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2", OUTPUT_DIR=str(training.output))
    assert again.end()["JobState"] == "COMPLETED"
    assert "going on from" in again.said()
    assert_same(again, uninterrupted[0])


@pytest.mark.slow
def test_a_preempted_training_ends_alike(train, uninterrupted, record_property):
    """Row 13."""
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2", options=("--nodelist=node1",))
    training.wait_for_step(5)
    pushed_s = push_out(training)
    known = training.end()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1")
    said = training.said()
    assert "is requeued: the job is preempted" in said
    assert said.index("is requeued") < said.index("going on from")
    assert_same(training, uninterrupted[0])
    stopped_s, back_s = around_the_gap(training, pushed_s)
    record_property("row 13: the urgent job's start to the last step", f"{stopped_s:.2f} s")
    record_property("row 13: the urgent job's start to the next step", f"{back_s:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["slurmd", "slurmctld"])
def test_a_training_outlives_a_restart_of_slurm(daemon, train, uninterrupted, cluster, record_property):
    """Row 14."""
    training = train(MULTINODE, NUM_STEPS, NUM_GPUS="1")
    training.wait_for_step(5)
    hosts = ("ctl",) if daemon == "slurmctld" else ("node1", "node2")
    killed_s = time.time()
    for host in hosts:
        cluster.stop(host, daemon)
    time.sleep(1)
    assert last_step(training.output) < NUM_STEPS
    for host in hosts:
        cluster.start(host, daemon)
    cluster.wait_until_slurm_answers()
    known = training.end()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "0")
    assert_same(training, uninterrupted[0])
    before_s, after_s = around_the_gap(training, killed_s)
    record_property(
        f"row 14: longest pause of the training, {daemon} restarted", f"{after_s - before_s:.2f} s"
    )


@pytest.mark.slow
def test_a_checkpointed_job_is_requeued_though_slurmctld_is_away_for_seconds(
    train, uninterrupted, cluster, record_property
):
    """Row 14."""
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2")
    training.wait_for_step(5)
    host = training.job()["NodeList"]
    (launcher,) = cluster.processes_on(host, "-m launcher run")
    cluster.stop("ctl", "slurmctld")
    asked_s = time.time()
    launcher.send(signal.SIGUSR1)
    wait_until(lambda: (training.output / "checkpoints" / "latest").exists(), "there is a checkpoint")
    time.sleep(5)
    assert "requeued" not in training.said()
    cluster.start("ctl", "slurmctld")
    cluster.wait_until_slurm_answers()
    known = training.end()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1")
    assert_same(training, uninterrupted[0])
    _, back_s = around_the_gap(training, asked_s)
    record_property("row 14: signal, slurmctld away, to the next step", f"{back_s:.1f} s")


@pytest.mark.slow
def test_a_host_that_is_drained_keeps_its_job_until_it_is_requeued_elsewhere(
    train, uninterrupted, cluster, record_property
):
    """Row 14."""
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2")
    training.wait_for_step(5)
    host = training.job()["NodeList"]
    drained = cluster.run_on("ctl", ["scontrol", "update", f"nodename={host}", "state=drain", "reason=test"])
    assert drained.returncode == 0, drained.stderr
    training.wait_for_step(10)
    asked_s = training.signal_as_before_the_limit()
    known = training.end()
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1")
    assert known["NodeList"] != host
    assert_same(training, uninterrupted[0])
    _, back_s = around_the_gap(training, asked_s)
    record_property("row 14: drained host, signal to the next step elsewhere", f"{back_s:.1f} s")


@pytest.mark.slow
def test_a_job_whose_slurmd_stays_away_is_requeued_once_on_other_hosts(
    train, many_steps, long_uninterrupted, cluster, record_property
):
    """Row 14: until Slurm gives the host up, after half a minute, the training goes on."""
    training = train(MULTINODE, many_steps, "--save_strategy", "steps", "--save_steps", "50", NUM_GPUS="1")
    training.wait_for_step(5)
    assert training.job()["NodeList"] == "node[1-2]"
    lost_s = time.time()
    cluster.stop("node2", "slurmd")
    training.wait_until(lambda: training.job()["Restarts"] == "1", "Slurm gives the host up")
    record_property("row 14: slurmd gone to the job's requeue", f"{time.time() - lost_s:.1f} s")
    wait_until(lambda: not cluster.processes_on("node2", "medsft/train.py"), "no rank is left on node2")
    record_property("row 14: slurmd gone to no rank left on its host", f"{time.time() - lost_s:.1f} s")
    known = training.end(limit_s=LONG_S)
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1")
    assert known["NodeList"] == "node[1,3]"
    assert_same(training, long_uninterrupted)
    _, back_s = around_the_gap(training, lost_s)
    record_property("row 14: slurmd gone to the next step on other hosts", f"{back_s:.1f} s")
