"""The job scripts in a real Slurm: to the end, over time limits, preemption, scancel and restarts of Slurm.

Rows 12 to 14 of the fault matrix. What a test has measured goes to its properties (`--junitxml`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from cluster import Cluster
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

PATIENCE_S = 150
NUM_STEPS = 150
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
ONE_NODE, MULTINODE = "slurm/train_8xa100.sh", "slurm/train_multinode.sh"
# The check's collective test is imports and nothing else here, but where a test is to see all as it stands.
QUICKLY = {"MEDSFT_LAUNCH_FLAGS": "--skip collective"}


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

    def end(self) -> dict[str, str]:
        """What Slurm knows when the job has ended, and nothing of it runs any more."""
        known = wait_for_state(self.cluster, self.number, ENDED, limit_s=PATIENCE_S)
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


def assert_same(training: Training, reference: Training) -> None:
    """Every step is there once, in order, with the same numbers, and the weights are the same bit by bit."""
    assert (training.output / "DONE").exists()
    assert [step for step, _, _ in curve(training.output)] == list(range(1, NUM_STEPS + 1))
    assert curve(training.output) == curve(reference.output)
    assert weights_hash(training.output) == weights_hash(reference.output)


def around_the_gap(training: Training, from_s: float) -> tuple[float, float]:
    """Seconds from `from_s` (since 1970) to the last step before the longest pause after it, and to the next."""
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
    training = train(MULTINODE, SHORT_STEPS, "--save_strategy", "no", NUM_GPUS="1", **QUICKLY)
    known = training.end()
    assert (known["JobState"], known["Restarts"], known["NumNodes"]) == ("COMPLETED", "0", "2")
    assert (training.output / "DONE").exists()
    assert "ranks: 2," in training.said()
    assert [record["loss"] for record in metrics(training.output)] == pytest.approx(expected, rel=1e-6, abs=0)


def test_before_the_time_limit_it_checkpoints_and_the_requeued_job_ends_alike(
    train, uninterrupted, record_property
):
    training = train(ONE_NODE, NUM_STEPS, NUM_GPUS="2", **QUICKLY)
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
