"""What a person sees on a terminal, and what the log file beside it holds."""

import logging
import os
import pty
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from medsft.monitor.metrics import Metrics, Save
from medsft.monitor.reporter import open_reporter
from medsft.monitor.sink import Sample
from medsft.run_folder import RunFolder

METRICS = Metrics(20, 0.5, 2.25, 5e-5, 1.0, 1234.5, 600.0, 48, 3000, 0.979, 0, 0.5, mfu=0.325)
SAVE = Save(step=20, stall_s=0.21, write_s=3.4, num_bytes=1_200_000_000)


@contextmanager
def terminal(monkeypatch, term="xterm-256color"):
    """stdout is a terminal of 100 columns, and rank 0 logs to it; gives what has been printed there."""
    master, slave = pty.openpty()
    printed = bytearray()

    def read():
        while True:
            try:
                printed.extend(os.read(master, 1 << 16))
            except OSError:  # the other end is closed
                return

    reader = threading.Thread(target=read)
    reader.start()
    screen = os.fdopen(slave, "w", encoding="utf-8")
    handler = logging.StreamHandler(screen)
    log = logging.getLogger("medsft")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", screen)
        patch.setenv("COLUMNS", "100")
        patch.setenv("TERM", term)
        patch.setattr(log, "handlers", [handler])
        patch.setattr(log, "propagate", False)
        level = log.level
        log.setLevel(logging.INFO)
        try:
            yield lambda: printed.decode()
            assert sys.stdout is screen and handler.stream is screen, "stdout was not given back"
        finally:
            log.setLevel(level)
            screen.close()
            reader.join(10)
            os.close(master)


def tell(reporter):
    reporter.train(METRICS)
    reporter.samples(20, [Sample("头痛\n怎么办", "去\x1b[31m医院", "")])
    reporter.checkpoint(SAVE)
    reporter.train(replace(METRICS, step=40, loss=1.5))


def test_a_bar_has_the_figures_and_a_table_comes_at_the_end(monkeypatch, tmp_path):
    with terminal(monkeypatch) as printed:
        with open_reporter(RunFolder(tmp_path), 40, True) as reporter:
            tell(reporter)
        reporter.finish(40, 1.25, 20, {})
    shown = printed()
    assert "loss 2.2500  1,234 tokens/s  MFU 32.5%" in shown and "40/40" in shown
    assert "lr 5.00e-05" not in shown  # of the plain line
    assert "checkpoint written: 1.2 GB" in shown
    assert "头痛 怎么办 -> 去[31m医院" in shown  # what a model says gives a terminal no orders
    assert "1.2500 at best, after step 20" in shown and "│ steps" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is seen
    log = (tmp_path / "logs" / "terminal.log").read_text(encoding="utf-8")
    assert "\x1b" not in log
    lines = log.splitlines()
    assert sum("lr 5.00e-05" in line for line in lines) == 2
    assert any(line.endswith("1.2500 at best, after step 20") for line in lines)
    assert any("checkpoint written" in line for line in lines)


def test_a_run_that_is_stopped_leaves_the_terminal_as_it_was(monkeypatch, tmp_path):
    with terminal(monkeypatch) as printed:
        with pytest.raises(KeyboardInterrupt), open_reporter(RunFolder(tmp_path), 40, True) as reporter:
            tell(reporter)
            raise KeyboardInterrupt
        logging.getLogger("medsft").info("lr 5.00e-05 afterwards")
    assert printed().rstrip().endswith("lr 5.00e-05 afterwards")
    assert "│ steps" not in printed()


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch, tmp_path):
    with terminal(monkeypatch, "dumb") as printed:
        with open_reporter(RunFolder(tmp_path), 40, True) as reporter:
            tell(reporter)
        reporter.finish(40, None, None, {})
    assert "\x1b" not in printed()
    assert printed().count("lr 5.00e-05") == 2


def test_a_log_file_that_cannot_grow_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "terminal.log").symlink_to("/dev/full")
    with terminal(monkeypatch) as printed:
        with open_reporter(RunFolder(tmp_path), 40, True) as reporter:
            tell(reporter)
        reporter.finish(40, 1.25, 20, {})
    assert printed().count("terminal.log cannot be written") == 1
    assert "Traceback" not in printed() and "1.2500 at best" in printed()
