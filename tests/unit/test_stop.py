"""Signals and the file STOP: what a run does with them while it is set up, trains and finishes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from medsft.engine.stop import Stopped, StopRequest

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def make():
    """Makes a `StopRequest` in this process; its handlers go afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    yield lambda speaks=False: StopRequest(speaks)
    for number, handler in before.items():
        signal.signal(number, handler)


def exit_code(of: Callable[[], None]) -> int:
    """That of a process of its own that runs `of` and then ends with 0; -n when signal n ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            of()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "medsft: interrupted\n"),
        (signal.SIGTERM, 75, "medsft: SIGTERM: stopped before the training began\n"),
    ],
)
@pytest.mark.parametrize("speaks", [True, False])
def test_in_the_set_up_the_run_leaves_at_once(make, capfd, number, code, said, speaks):
    def run():
        make(speaks)
        signal.raise_signal(number)

    assert exit_code(run) == code
    assert capfd.readouterr() == ("", said if speaks else "")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_in_the_set_up_is_remembered(make, capfd, number):
    stop = make(speaks=True)
    assert stop.requested() is None
    signal.raise_signal(number)
    assert stop.requested() == number.name
    stop.arm()
    assert stop.requested() == number.name
    assert capfd.readouterr().err == f"medsft: {number.name}: stopping as soon as the set-up is done\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_in_training_a_signal_waits_for_the_end_of_the_step(make, capfd, number):
    stop = make(speaks=True)
    stop.arm()
    assert stop.requested() is None
    signal.raise_signal(number)
    assert stop.requested() == number.name
    assert capfd.readouterr().err == f"medsft: {number.name}: stopping after this step, with a checkpoint\n"


def test_a_second_signal_breaks_nothing(make, capfd):
    stop = make(speaks=True)
    stop.arm()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.raise_signal(number)
        assert stop.requested() == "SIGTERM"  # the first is the reason
    assert capfd.readouterr().err == (
        "medsft: SIGTERM: stopping after this step, with a checkpoint\n"
        "medsft: SIGINT: already stopping, the checkpoint is being written\n"
        "medsft: SIGUSR1: already stopping, the checkpoint is being written\n"
    )


def test_one_request_that_comes_twice_is_answered_once(make, capfd):
    """A terminal sends Ctrl-C to every process of its group, and the launcher passes on its own."""
    stop = make(speaks=True)
    stop.arm()
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "medsft: SIGINT: stopping after this step, with a checkpoint\n"
    stop._received_s -= 60
    signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "medsft: SIGINT: already stopping, the checkpoint is being written\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_model_is_written_there_is_nothing_to_stop(make, capfd, number):
    stop = make(speaks=True)
    stop.arm()
    stop.finishing()
    signal.raise_signal(number)
    assert stop.requested() is None
    assert capfd.readouterr().err == (
        f"medsft: {number.name}: the model is being written; the run ends by itself\n"
    )


def test_only_one_rank_answers(make, capfd):
    stop = make(speaks=False)
    stop.arm()
    for number in SIGNALS:
        signal.raise_signal(number)
    assert stop.requested() == "SIGTERM"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_forked_helper_ends_of_a_signal_and_says_nothing(make, capfd, number):
    stop = make(speaks=True)
    stop.arm()
    assert exit_code(lambda: signal.raise_signal(number)) == -number
    assert stop.requested() is None
    assert capfd.readouterr() == ("", "")


def test_a_signal_that_was_ignored_stays_ignored(make):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop = make()
    signal.raise_signal(signal.SIGINT)  # else the set-up would end here
    stop.arm()
    signal.raise_signal(signal.SIGINT)
    assert stop.requested() is None


def test_arming_takes_back_a_signal_that_a_library_took(make):
    stop = make()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    stop.arm()
    signal.raise_signal(signal.SIGUSR1)
    assert stop.requested() == "SIGUSR1"


def test_a_signal_from_outside_meets_a_sleeping_process(make):
    """As a launcher sends it, to a rank that waits."""
    ready, answer = os.pipe(), os.pipe()

    def run():
        stop = make()
        stop.arm()
        os.write(ready[1], b"!")
        while stop.requested() is None:
            time.sleep(0.01)
        os.write(answer[1], stop.requested().encode())

    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert os.read(answer[0], 100) == b"SIGTERM"
    for end in (*ready, *answer):
        os.close(end)


def test_that_nobody_listens_is_no_fault(make):
    """The terminal has gone, and with it the other end of stderr."""

    def run():
        stop = make(speaks=True)
        stop.arm()
        read_end, write_end = os.pipe()
        os.close(read_end)
        os.dup2(write_end, 2)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested() == "SIGTERM"

    assert exit_code(run) == 0


class TestFile:
    @pytest.fixture
    def file(self, tmp_path) -> Path:
        folder = tmp_path / "run 4 的结果"
        folder.mkdir()
        return folder / "STOP"

    def test_it_is_seen_and_cleared(self, make, file):
        stop = make()
        stop.watch(file)
        stop.arm()
        assert stop.requested() is None
        file.touch()
        assert stop.requested() == "STOP file"
        stop.clear()
        assert not file.exists()
        assert stop.requested() is None
        stop.clear()

    def test_one_from_before_the_run_is_removed_and_told(self, make, file, caplog):
        file.touch()
        stop = make()
        with caplog.at_level(logging.INFO):
            stop.watch(file)
        assert not file.exists()
        assert str(file) in caplog.text
        assert stop.requested() is None

    def test_one_that_comes_in_the_set_up_counts(self, make, file):
        stop = make()
        stop.watch(file)
        file.touch()
        stop.arm()
        assert stop.requested() == "STOP file"

    def test_a_folder_of_that_name_asks_for_nothing(self, make, file):
        file.mkdir()
        stop = make()
        stop.watch(file)
        assert stop.requested() is None
        stop.clear()
        assert file.is_dir()

    def test_a_rank_that_does_not_watch_sees_none(self, make, file):
        file.touch()
        assert make().requested() is None


def world(rank: int, size: int = 3) -> SimpleNamespace:
    return SimpleNamespace(rank=rank, size=size, is_main=rank == 0)


class TestVotes:
    def test_nobody_asked(self, make):
        stop = make()
        assert [stop.vote(world(rank)) for rank in range(3)] == [0, 0, 0]
        assert stop.verdict(0, world(0)) is None

    @pytest.mark.parametrize(
        ("who", "reason"), [({0, 1, 2}, "SIGUSR1"), ({1, 2}, "SIGUSR1 on rank 1"), ({2}, "SIGUSR1 on rank 2")]
    )
    def test_the_lowest_rank_that_was_asked_is_named(self, make, who, reason, caplog):
        quiet, asked = make(), make()
        signal.raise_signal(signal.SIGUSR1)  # the handler of the one made last
        votes = [(asked if rank in who else quiet).vote(world(rank)) for rank in range(3)]
        with caplog.at_level(logging.INFO):
            verdicts = {
                (asked if rank in who else quiet).verdict(max(votes), world(rank)) for rank in range(3)
            }
        assert verdicts == {reason}
        assert (reason in caplog.text) == (who != {0, 1, 2})  # those that were asked have answered themselves

    @pytest.mark.parametrize("number", SIGNALS)
    @pytest.mark.parametrize("size", [1, 2, 64])
    def test_every_signal_and_size(self, make, number, size):
        stop = make()
        stop.arm()
        signal.raise_signal(number)
        votes = [stop.vote(world(rank, size)) for rank in range(size)]
        assert stop.verdict(max(votes), world(0, size)) == number.name

    def test_the_file(self, make, tmp_path):
        stop = make()
        stop.watch(tmp_path / "STOP")
        (tmp_path / "STOP").touch()
        assert stop.verdict(stop.vote(world(0)), world(2)) == "STOP file"


def test_the_words_of_the_end():
    assert str(Stopped("SIGTERM", 12)) == (
        "SIGTERM: stopped after step 12, with a checkpoint. Start again with the same command and the run "
        "goes on from there."
    )
    assert "before the first step" in str(Stopped("SIGUSR1", 0))
    assert "checkpoint" not in str(Stopped("SIGUSR1", 0))
