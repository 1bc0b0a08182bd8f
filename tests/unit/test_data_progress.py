"""Progress of tokenising: a bar on a terminal, log lines elsewhere, nothing for quick work."""

import logging

import pytest

from medsft.data import progress
from medsft.data.progress import terminal_progress


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


def test_no_terminal_gets_log_lines(capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "_SHOW_AFTER_S", 0.0)
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    run(2)
    assert [record.getMessage() for record in caplog.records] == [
        "tokenising: 50 % of 1.0 MB",
        "tokenising: 100 % of 1.0 MB",
    ]
    assert capsys.readouterr() == ("", "")
