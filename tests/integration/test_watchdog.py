"""A rank that hangs is named, in real runs of three ranks; ranks that are only slow are left alone."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
from runs import REPOSITORY, free_port, launch

from medsft.engine.watchdog import Beat, Judge

WORKER = REPOSITORY / "tests" / "integration" / "watchdog_worker.py"
TIMEOUT_S = 6
NUM_STEPS = 6


def told(output: str) -> str:
    """The one line in which a run says why it ended."""
    (line,) = [line for line in output.splitlines() if line.startswith("medsft: ")]
    return line


def run(fault: str, rank: int, launcher: str, timeout_s: float = TIMEOUT_S, num_steps: int = NUM_STEPS):
    arguments = [str(value) for value in (fault, rank, timeout_s, num_steps)]
    return launch(arguments, 3, launcher, script=WORKER, timeout_s=200)


def silence_of(rank: int) -> re.Pattern[str]:
    return re.compile(
        rf"medsft: rank {rank} \(host {re.escape(socket.gethostname())}, pid \d+\) has not been heard from "
        rf"for {TIMEOUT_S} s; it was last seen in step 3: waiting for data; all ranks stop\. Start again "
        r"with the same command; the run goes on from its last checkpoint\."
    )


@pytest.mark.parametrize(
    ("rank", "launcher"),
    [
        pytest.param(0, "launcher", marks=pytest.mark.slow),
        pytest.param(2, "torchrun", marks=pytest.mark.slow),
        pytest.param(2, "launcher", marks=pytest.mark.slow),
        pytest.param(0, "torchrun", marks=pytest.mark.slow),  # which takes 30 s to kill a stopped process
    ],
)
def test_a_stopped_rank_is_named(rank, launcher):
    """With our launcher rank 0 keeps the store, and nobody gets an answer from it."""
    result = run("stop", rank, launcher)
    assert result.returncode == 1, result.stdout + result.stderr
    assert silence_of(rank).fullmatch(told(result.stderr))
    if launcher == "launcher":  # torchrun ends with one of its own
        assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_rank_that_sleeps_in_its_data_is_named():
    result = run("data", 1, "launcher")
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.fullmatch(
        rf"medsft: rank 1 \(host .*, pid \d+\) has been in step 3: waiting for data for {TIMEOUT_S} s while "
        r"others wait in step 3: computing; all ranks stop\. .*",
        told(result.stderr),
    )
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_uneven_ranks_that_are_stopped_for_a_while_are_left_alone():
    result = run("none", -1, "launcher", timeout_s=10, num_steps=30)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(result.stdout.splitlines()) == [f"rank {rank} is done" for rank in range(3)]
    assert "medsft: " not in result.stderr


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_rank_that_is_gone_is_named(rank):
    """Nobody supervises these ranks, as when the host of one is lost; with rank 0 the store goes."""
    environment = os.environ | {
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, "gone", str(rank), str(TIMEOUT_S), str(NUM_STEPS)],
            env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in ranks]
    codes = [process.returncode for process in ranks]
    assert codes == [-9 if number == rank else 1 for number in range(3)], outputs
    assert silence_of(rank).fullmatch(told("".join(outputs)))


class TestJudge:
    """Looks of one second each at a world of three, with a timeout of ten."""

    def beats(self, numbers, progress=(5, 5, 5)) -> dict[int, Beat]:
        return {
            rank: Beat(number, done, f"place {done}", f"主机{rank}", 100 + rank)
            for rank, (number, done) in enumerate(zip(numbers, progress, strict=True))
            if number is not None
        }

    def judge(self, rank: int = 1, store_keeper: str | None = None) -> Judge:
        judge = Judge(rank, 3, 10.0, 1.0, store_keeper)
        assert judge.look(0.0, self.beats((0, 0, 0)), 5) is None
        return judge

    def test_ranks_that_live_are_no_fault_however_long_they_stand(self):
        judge = self.judge()
        assert all(judge.look(1.0, self.beats((i, i, i)), 5) is None for i in range(1, 1000))

    def test_a_rank_whose_heart_stands_still(self):
        judge = self.judge()
        verdicts = [judge.look(1.0, self.beats((i, i, 0)), 5) for i in range(1, 11)]
        assert verdicts[:9] == [None] * 9
        assert verdicts[9].shared
        assert verdicts[9].text == (
            "rank 2 (host 主机2, pid 102) has not been heard from for 10 s; it was last seen in place 5"
        )

    def test_two_that_were_lost_together_are_named_together(self):
        judge = self.judge(rank=1)
        judge.look(1.0, self.beats((1, 1, 0)), 5)  # rank 0 was heard once more
        verdict = None
        for i in range(2, 11):
            verdict = judge.look(1.0, self.beats((1, i, 0)), 5)
        assert verdict.text == (
            "ranks 0 (host 主机0, pid 100) and 2 (host 主机2, pid 102) have not been heard from for 10 s; "
            "rank 0 was last seen in place 5"
        )

    def test_many_are_counted(self):
        judge = Judge(0, 9, 10.0, 1.0, None)
        for i in range(12):
            verdict = judge.look(1.0, {0: Beat(i, 5, "place", "a", 1)}, 5)
        assert verdict.text.startswith(
            "ranks 1 (not heard from before), 2 (not heard from before), 3 (not heard from before), "
            "4 (not heard from before) and 4 more have not been heard from for 10 s; rank 1 was last seen in "
            "its start"
        )

    def test_a_beat_now_and_then_is_enough(self):
        judge = self.judge()
        assert all(judge.look(1.0, self.beats((i, i, i // 9)), 5) is None for i in range(1, 1000))

    def test_a_rank_that_others_wait_for(self):
        judge = self.judge()
        verdicts = [judge.look(1.0, self.beats((i, i, i), (5, 4, 5)), 4) for i in range(1, 13)]
        assert verdicts[9] is None  # the first look only showed it there
        assert verdicts[11].text == (
            "rank 1 (host 主机1, pid 101) has been in place 4 for 10 s while others wait in place 5"
        )

    def test_the_last_of_all_is_the_one_waited_for(self):
        judge = self.judge()
        for i in range(1, 13):
            verdict = judge.look(1.0, self.beats((i, i, i), (6, 5, 4)), 5)
        assert verdict.text.startswith("rank 2 ")

    def test_time_that_all_spent_alike_does_not_count_against_the_last(self):
        judge = self.judge()
        for i in range(1, 1000):
            assert judge.look(1.0, self.beats((i, i, i)), 5) is None
        for i in range(1000, 1009):
            assert judge.look(1.0, self.beats((i, i, i), (6, 6, 5)), 6 if i > 1000 else 5) is None

    def test_who_gets_on_finds_no_fault(self):
        """Its collectives pass, so the others take part in them, whatever is wrong with their heartbeats."""
        judge = self.judge()
        assert all(judge.look(1.0, self.beats((i, i, 0)), i // 9) is None for i in range(1, 1000))
        judge = self.judge()
        assert all(judge.look(1.0, None, i // 9) is None for i in range(1, 1000))

    def test_a_silent_store_is_rank_0(self):
        judge = self.judge()
        verdicts = [judge.look(1.0, None, 5) for _ in range(10)]
        assert verdicts[:9] == [None] * 9
        assert not verdicts[9].shared
        assert verdicts[9].text.startswith("rank 0 (host 主机0, pid 100) has not been heard from for 10 s")

    def test_a_silent_store_of_somebody_else(self):
        judge = self.judge(store_keeper="the keeper")
        for _ in range(10):
            verdict = judge.look(1.0, None, 5)
        assert verdict.text == "the keeper has not answered for 10 s"

    def test_the_silence_of_the_store_is_not_that_of_the_ranks(self):
        """It answers before they could reach it again."""
        judge = self.judge()
        for _ in range(9):
            assert judge.look(1.0, None, 5) is None
        assert judge.look(1.0, self.beats((0, 0, 0)), 5) is None
        assert all(judge.look(1.0, self.beats((i, i, i)), 5) is None for i in range(1, 20))

    @pytest.mark.parametrize(("keeper", "speakers"), [(None, [1]), ("the keeper", [0])])
    def test_one_rank_of_a_host_speaks(self, keeper, speakers):
        def speaks(rank: int) -> bool:
            judge = Judge(rank, 3, 10.0, 1.0, keeper)
            judge.look(1.0, {other: Beat(1, 5, "place", "one host", other) for other in range(3)}, 5)
            return judge.speaks_for_its_host()

        assert [rank for rank in range(0 if keeper else 1, 3) if speaks(rank)] == speakers

    def test_a_rank_of_another_host_speaks_too(self):
        assert self.judge(rank=2).speaks_for_its_host()
