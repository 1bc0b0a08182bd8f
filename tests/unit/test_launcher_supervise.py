"""How the end of a job follows from the ends of its ranks."""

import signal

import pytest

from launcher.command import Command
from launcher.exit_codes import describe, shell_code
from launcher.ranks.heartbeat import Silence
from launcher.ranks.process import RankProcess
from launcher.ranks.rank import Ended
from launcher.signals import held_back
from launcher.supervision import watch as watch_module
from launcher.supervision.job_end import RankEnd, classify, most_telling
from launcher.supervision.watch import Grace, watch


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
    monkeypatch.setattr(watch_module, "_LOOK_S", 0.02)


def end(rank: int, code: int, after_s: float = 1.0) -> RankEnd:
    return RankEnd(rank, f"rank {rank}", 1000 + rank, code, after_s)


@pytest.mark.parametrize(
    ("codes", "failed", "stop_signal", "kind", "exit_code"),
    [
        ((0, 0), (), None, "finished", 0),
        ((75, 75), (), None, "checkpointed", 75),
        ((0, 75), (), None, "checkpointed", 75),
        ((2, -15), (0,), None, "user error", 2),
        ((1, -15), (0,), None, "crashed", 1),
        ((3, 3), (0, 1), None, "diverged", 3),
        ((3, -15), (0,), None, "diverged", 3),
        ((-15, 130), (1,), None, "interrupted", 130),
        ((4, -15), (0,), None, "crashed", 4),
        ((-9, 1), (0,), None, "crashed", 137),
        ((75, -11), (1,), None, "crashed", 139),
        ((-2, -2), (), signal.SIGINT, "stopped", 130),
        ((-9, 1), (), signal.SIGTERM, "stopped", 143),
        ((0, 75), (), signal.SIGTERM, "checkpointed", 75),
        ((75, -9), (), signal.SIGTERM, "stopped", 143),
        ((0, 0), (), signal.SIGTERM, "finished", 0),
    ],
)
def test_classify(codes, failed, stop_signal, kind, exit_code):
    ends = [end(rank, code) for rank, code in enumerate(codes)]
    job_end = classify(ends, [ends[rank] for rank in failed], stop_signal)
    assert (job_end.kind, job_end.exit_code) == (kind, exit_code)


def test_ranks_have_the_word_on_user_errors_and_success():
    assert classify([end(0, 2)], [end(0, 2)], None).message is None
    assert classify([end(0, 0)], [], None).message is None


def test_a_crash_names_rank_process_and_cause():
    message = classify([end(3, -9, 12.4)], [end(3, -9, 12.4)], None).message
    assert "rank 3 (process 1003) failed after 12 s: ended by SIGKILL" in message
    assert "out of memory" in message
    assert "exit code is 137" in message
    assert "out of memory" not in classify([end(0, 1)], [end(0, 1)], None).message


def test_a_rank_that_stands_still_is_named_beside_the_one_that_failed():
    ends = [end(0, 1, 60.0), end(1, -9, 70.0)]
    job_end = classify(ends, ends[:1], None, frozen=["rank 1 (process 1001)"])
    for text in (job_end.message, job_end.failure):
        assert "rank 0 (process 1000) failed after 60 s: exit code 1, while rank 1 (process 1001)" in text


@pytest.mark.parametrize(
    ("failed", "cause"),
    [
        ([end(0, 1, 1.0), end(1, 1, 2.0)], 0),
        ([end(0, 1, 2.0), end(1, 1, 1.0)], 1),
        # Rank 0 says what the user did wrong, after its peer found the connection closed.
        ([end(0, 2, 2.0), end(1, 1, 1.0)], 0),
        ([end(0, 1, 1.0), end(1, -9, 1.0)], 1),
        ([end(0, 1, 1.0), end(1, -9, 1.5)], 1),
        ([end(0, 1, 1.0), end(1, -11, 1.0)], 1),
        # A communication library aborts its process when a peer is gone.
        ([end(0, 1, 1.0), end(1, -6, 1.5)], 0),
        ([end(0, -9, 1.0), end(1, 2, 1.0)], 1),
        ([end(0, 1, 1.0), end(1, 3, 2.0)], 1),
        ([end(0, 3, 1.0), end(1, 2, 2.0)], 1),
    ],
)
def test_most_telling(failed, cause):
    assert most_telling(failed).rank == cause


def test_exit_codes_as_a_shell_has_them():
    assert [shell_code(code) for code in (0, 2, 255, -9, -15)] == [0, 2, 255, 137, 143]
    assert describe(3) == "exit code 3"
    assert describe(-signal.SIGSEGV) == "ended by SIGSEGV"
    assert describe(-(signal.SIGRTMIN + 1)) == f"ended by signal {signal.SIGRTMIN + 1}"


def test_a_rank_that_does_not_follow_a_checkpoint_is_no_crash():
    job_end = classify([end(0, 75), end(1, -9, 31.0)], [], None)
    assert (job_end.kind, job_end.exit_code) == ("checkpointed", 75)
    assert "rank 1 did not follow" in job_end.message


class FakeRank:
    """Ends when it is told to by what it is sent, or does not."""

    def __init__(self, name: str, ends: dict[int, int], ended: int | None = None, silence=None):
        self.name, self.pid = name, 1
        self._ends, self._ended, self._silence = ends, ended, silence

    def ended(self) -> Ended | None:
        return None if self._ended is None else Ended(self._ended)

    def is_frozen(self) -> bool:
        return False

    def silence(self):
        return self._silence

    def send(self, signum: int) -> None:
        self._ended = self._ends.get(signum, self._ended)

    def last_lines(self, most: int):
        return [f"last of {self.name}"]


def test_a_straggler_after_a_checkpoint_is_ended_and_the_run_goes_on_later():
    ranks = [FakeRank("rank 0", {}, 75), FakeRank("rank 1", {signal.SIGKILL: -9})]
    with held_back() as signals:
        job_end = watch(ranks, signals, Grace(0.05, 1.0), 300.0, lambda line: None)
    assert (job_end.kind, job_end.exit_code) == ("checkpointed", 75)


def test_a_rank_that_never_gave_a_sign_of_life_hangs_when_others_did():
    said: list[str] = []
    dies = {signal.SIGTERM: -15}
    ranks = [
        FakeRank("rank 0", dies, silence=Silence(0.1, 0.1, "step 1")),
        FakeRank("rank 1", dies),
    ]
    with held_back() as signals:
        job_end = watch(ranks, signals, Grace(1.0, 1.0), 0.3, said.append)
    assert (job_end.kind, job_end.exit_code) == ("hung", 1)
    assert "no sign of life from rank 1 (process 1)" in job_end.failure and "rank 0" not in job_end.failure
    assert said == ["rank 1 printed last:\n    last of rank 1"]


@pytest.mark.parametrize(
    ("first", "asked", "kind", "exit_code"),
    [(1, None, "crashed", 1), (75, None, "checkpointed", 75), (None, signal.SIGTERM, "lost host", 137)],
)
def test_a_rank_that_sigkill_does_not_end_is_left_behind(monkeypatch, first, asked, kind, exit_code):
    monkeypatch.setattr(watch_module, "_KILLED_S", 0.05)
    monkeypatch.setattr(watch_module, "_SETTLE_S", 0.0)
    said: list[str] = []
    ranks = [FakeRank("rank 0", {signal.SIGTERM: -15}, first), FakeRank("rank 1", {})]
    with held_back() as signals:
        if asked is not None:
            signal.raise_signal(asked)
        job_end = watch(ranks, signals, Grace(0.05, 0.05), 300.0, said.append)
    assert (job_end.kind, job_end.exit_code) == (kind, exit_code)
    assert any("rank 1 (process 1) is left behind: it does not end" in line for line in said)


@pytest.mark.parametrize(
    ("signum", "silence", "kind", "exit_code", "told"),
    [
        (signal.SIGUSR1, None, "checkpointed", 75, True),
        # It had begun, and should have heeded it.
        (signal.SIGUSR1, Silence(0.1, 0.1, "step 1"), "crashed", 138, False),
        # That one is not for a while.
        (signal.SIGTERM, None, "stopped", 143, False),
    ],
)
def test_a_rank_that_a_signal_ends_before_it_began_is_no_crash(signum, silence, kind, exit_code, told):
    said: list[str] = []
    # The other one is further, and heeds it.
    ranks = [FakeRank("rank 0", {signum: -signum}, silence=silence), FakeRank("rank 1", {signum: 75})]
    with held_back() as signals:
        signal.raise_signal(signum)
        job_end = watch(ranks, signals, Grace(0.05, 5.0), 300.0, said.append)
    assert (job_end.kind, job_end.exit_code, job_end.asked_by) == (kind, exit_code, signum)
    assert (f"rank 0 left before its training began: ended by {signum.name}" in said) == told


def test_a_rank_that_gives_no_signs_of_life_has_begun_some_day(monkeypatch):
    monkeypatch.setattr(watch_module, "_BEGUN_S", 0.0)
    with held_back() as signals:
        signal.raise_signal(signal.SIGUSR1)
        ranks = [FakeRank("rank 0", {signal.SIGUSR1: -signal.SIGUSR1})]
        job_end = watch(ranks, signals, Grace(0.05, 5.0), 300.0, [].append)
    assert (job_end.kind, job_end.exit_code) == ("crashed", 138)


def test_a_rank_that_sends_itself_the_signal_has_crashed(monkeypatch):
    monkeypatch.setattr(watch_module, "_SETTLE_S", 0.0)
    with held_back() as signals:
        ranks = [FakeRank("rank 0", {}, ended=-signal.SIGUSR1)]
        assert watch(ranks, signals, Grace(0.05, 5.0), 300.0, [].append).kind == "crashed"


def test_reaping_has_a_limit():
    with held_back() as signals:
        process = RankProcess(Command("rank 0", ("sleep", "60"), ()), signals)
        process.reap(limit_s=0.01)
        assert process.ended() is None
        process.kill_group()
        process.reap()


@pytest.mark.parametrize(
    ("codes", "kind", "exit_code"),
    [
        # The disk is full while the checkpoint is written.
        ((2, 2), "user error", 2),
        ((1, 75), "crashed", 1),
        # One is killed for memory, the other waits for it: not for --stop-grace.
        ((-9, None), "crashed", 137),
        ((130, 130), "stopped", 130),
        ((-2, 75), "stopped", 130),
        # Before its handlers stand a rank dies of the signal, and its peer of the broken connection.
        ((-2, 1), "stopped", 130),
    ],
)
def test_a_failure_after_a_request_to_stop_is_told(codes, kind, exit_code):
    said: list[str] = []
    ranks = [
        FakeRank(f"rank {rank}", {signal.SIGKILL: -9} if code is None else {signal.SIGINT: code})
        for rank, code in enumerate(codes)
    ]
    with held_back() as signals:
        signal.raise_signal(signal.SIGINT)
        job_end = watch(ranks, signals, Grace(0.05, 5.0), 300.0, said.append)
    assert (job_end.kind, job_end.exit_code, job_end.stop_asked) == (kind, exit_code, True)
    assert ("rank 0 printed last:\n    last of rank 0" in said) == (kind == "crashed")
