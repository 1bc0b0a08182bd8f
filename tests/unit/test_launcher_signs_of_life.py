"""Which ranks hang, and which live and get no further: people are told of these, and nothing is ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher.command import Command
from launcher.ranks.heartbeat import Heartbeat, Silence
from launcher.ranks.process import RankProcess
from launcher.signals import held_back
from launcher.supervision import watch as watch_module
from launcher.supervision.job_end import JobEnd
from launcher.supervision.signs_of_life import SignsOfLife
from launcher.supervision.watch import Grace, watch

REPOSITORY = Path(__file__).resolve().parents[2]
# Beats as a training does, and stays where it is until it may go on.
STANDS_STILL = """
import os, sys, time
from pathlib import Path

sys.path.insert(0, "medsft/engine")
import heartbeat

heartbeat.INTERVAL_S = 0.02
heartbeat.start_heartbeat(os.environ, lambda: (7, "step 3: 等待数据"))
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""


class Told:
    """A rank of which this is known."""

    def __init__(self, number: int, silence: Silence | None, pid: int = 4711):
        self.name, self.pid, self.known = f"rank {number} on node{number}", pid, silence

    def silence(self) -> Silence | None:
        return self.known


@pytest.fixture
def now(monkeypatch) -> list[float]:
    clock = [1000.0]
    monkeypatch.setattr("launcher.supervision.signs_of_life.time.monotonic", lambda: clock[0])
    return clock


def test_ranks_that_get_no_further_are_told_of_once_in_each_period(now):
    said: list[str] = []
    signs = SignsOfLife(hang_timeout_s=300.0, still_s=300.0, say=said.append)
    ranks = [Told(number, None) for number in range(6)]
    for still_s in range(0, 1000, 10):
        now[0] = 1000.0 + still_s
        for number, rank in enumerate(ranks):
            rank.known = Silence(1.0, still_s - number if number < 5 else 0.0, "step 3")
        assert not signs.hanging(ranks)
    assert len(said) == 3
    assert said[0].startswith(
        "no progress from rank 0 on node0 (process 4711) for 310 s, after step 3; "
        "rank 1 on node1 (process 4711) for 309 s, after step 3; "
        "rank 2 on node2 (process 4711) for 308 s, after step 3; 2 more. Nothing is ended for it"
    )
    assert "`py-spy dump --pid 4711`" in said[0] and "shared disk" in said[0]


def test_a_rank_that_gets_on_is_not_told_of(now):
    said: list[str] = []
    signs = SignsOfLife(300.0, 300.0, said.append)
    rank = Told(0, Silence(1.0, 299.0, "step 3"))
    for now[0] in (1000.0, 2000.0, 3000.0):
        signs.hanging([rank])
    assert said == []


def test_ranks_without_any_sign_of_life_are_told_of_once(now):
    """They may be a script that gives none, so nobody is judged."""
    said: list[str] = []
    signs = SignsOfLife(300.0, 300.0, said.append)
    ranks = [Told(0, None), Told(1, None), Told(2, None, pid=0)]
    for now[0] in (1000.0, 1299.0, 1301.0, 1400.0, 9000.0):
        assert not signs.hanging(ranks)
    (line,) = said
    assert line.startswith(
        "no sign of life yet from rank 0 on node0 (process 4711); rank 1 on node1 (process 4711), 301 s after"
    )


def test_who_hangs_is_judged_from_the_first_sign_of_life_of_any(now):
    said: list[str] = []
    signs = SignsOfLife(100.0, 300.0, said.append)
    silent, alive = Told(0, None), Told(1, None)
    assert not signs.hanging([silent, alive])
    now[0] = 1200.0
    alive.known = Silence(1.0, 1.0, "step 1")
    assert not signs.hanging([silent, alive])
    now[0] = 1301.0
    assert signs.hanging([silent, alive]) == {silent: Silence(101.0, 101.0, "its start")}
    assert said == []


def test_a_real_rank_that_stands_still_is_named_and_left_alone(tmp_path, monkeypatch):
    """Its heartbeat goes on. It gets on when that has been said twice."""
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.02)
    said: list[str] = []
    beat = Heartbeat(tmp_path / "心跳")
    go_on = tmp_path / "go on"

    def say(line: str) -> None:
        # On a busy machine it may take its time to the first sign of life.
        if line.startswith(f"no progress from rank 0 (process {rank.pid}) for "):
            said.append(line)
        if len(said) == 2:
            go_on.touch()

    words = (sys.executable, "-c", STANDS_STILL, str(go_on))
    monkeypatch.chdir(REPOSITORY)
    with held_back() as signals:
        command = Command("rank 0", words, (("MEDSFT_HEARTBEAT", str(beat.path)),))
        rank = RankProcess(command, signals, heartbeat=beat)
        try:
            end = watch([rank], signals, Grace(1.0, 1.0), 60.0, say, still_s=0.3)
        finally:
            rank.kill_group()
            rank.reap()
    assert end == JobEnd("finished", 0, None)
    assert all(" s, after step 3: 等待数据. Nothing is ended" in line for line in said)
