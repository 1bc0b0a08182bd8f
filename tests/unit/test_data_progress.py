"""Progress of tokenising: a bar on a terminal, log lines elsewhere, nothing for quick work."""

import logging

import pytest

from medsft.cli.progress import byte_progress
from medsft.data import progress
from medsft.data.progress import counting, duration, terminal_progress


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def run(num_reports: int = 3) -> None:
    with terminal_progress("tokenising") as report:
        for number in range(1, num_reports + 1):
            report(number * 500_000, num_reports * 500_000)


def test_quick_work_shows_nothing(capsys, caplog):
    caplog.set_level(logging.INFO)
    run()
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


def test_a_terminal_gets_a_bar_on_stderr(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)
    run()
    out, err = capsys.readouterr()
    assert not out
    assert "tokenising" in err and "100%" in err


def test_a_bar_of_bytes_says_how_many(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)
    with byte_progress("verifying", 2_600_000) as advance:
        advance(2_000_000)
        advance(600_000)
    assert "2.6/2.6 MB" in capsys.readouterr().err


def test_no_terminal_gets_log_lines(capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    run(2)
    assert [record.getMessage() for record in caplog.records] == [
        "tokenising: 50%, about 0 s left",
        "tokenising: 100%, about 0 s left",
    ]
    assert capsys.readouterr() == ("", "")


def test_times_for_people():
    assert [duration(seconds) for seconds in (3.4, 720, 12600)] == ["3 s", "12 min", "3.5 h"]


def test_bytes_are_counted():
    told = []
    advance = counting(lambda done, total: told.append((done, total)), 10)
    advance(3)
    advance(7)
    assert told == [(3, 10), (10, 10)]
