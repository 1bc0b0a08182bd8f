"""What ranks print, through real pipes; and the signs of life that they give."""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.ranks import output as output_module
from launcher.ranks.heartbeat import Heartbeat, Silence
from launcher.ranks.output import RankOutput, Screen

PATIENCE_S = 60.0


class Reader:
    """A terminal that reads along."""

    def __init__(self) -> None:
        read, self.end = os.pipe()
        self._pipe = os.fdopen(read, "rb")
        self._thread = threading.Thread(target=self._run)
        self.content = b""
        self._thread.start()

    def _run(self) -> None:
        self.content = self._pipe.read()

    def read_all(self) -> bytes:
        os.close(self.end)
        self._thread.join(PATIENCE_S)
        self._pipe.close()
        return self.content


class RankPipes:
    """A rank's two streams, as seen by the rank."""

    def __init__(self, log: Path | None, screens: tuple[Screen, Screen]):
        self.output = RankOutput(log, screens)
        out, self.out = os.pipe()
        err, self.err = os.pipe()
        self.output.attach(out, err)

    def print(self, data: bytes, to_err: bool = False) -> None:
        while data:
            data = data[os.write(self.err if to_err else self.out, data) :]

    def wait_until_kept(self, line: str) -> None:
        """The two streams are read by two threads: only what one has read comes before the other's."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.output.last_lines(1) != [line]:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    def end(self) -> None:
        os.close(self.out)
        os.close(self.err)
        self.output.drain(PATIENCE_S)
        self.output.close()


@contextmanager
def screen_of(descriptor: int) -> Iterator[Screen]:
    screen = Screen(descriptor)
    try:
        yield screen
    finally:
        screen.close()


def through_one_screen(prints: list[list[bytes]], log: Path | None = None) -> bytes:
    """What a terminal shows of ranks that print these pieces at the same time."""
    reader = Reader()
    with screen_of(reader.end) as screen:
        ranks = [RankPipes(log, (screen, screen)) for _ in prints]
        threads = [
            threading.Thread(target=lambda rank=rank, pieces=pieces: [rank.print(piece) for piece in pieces])
            for rank, pieces in zip(ranks, prints, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rank in ranks:
            rank.end()
    return reader.read_all()


class TestLines:
    def test_lines_of_several_ranks_are_never_mixed(self):
        """Bursts longer than what is read at once, cut in the middle of lines."""
        text = {
            rank: b"".join(b"%d:%05d %s\n" % (rank, n, b"x" * (n % 97)) for n in range(8000))
            for rank in (1, 2, 3)
        }
        pieces = [[whole[at : at + 70_001] for at in range(0, len(whole), 70_001)] for whole in text.values()]
        shown = through_one_screen(pieces)
        assert len(shown) == sum(map(len, text.values()))
        for rank, whole in text.items():
            lines = [line for line in shown.splitlines(keepends=True) if line.startswith(b"%d:" % rank)]
            assert b"".join(lines) == whole

    def test_a_last_line_without_its_end_gets_one(self):
        shown = through_one_screen([[b"no end"], [b"none either"]])
        assert sorted(shown.splitlines(keepends=True)) == [b"no end\n", b"none either\n"]

    def test_progress_bars_are_shown_while_they_grow(self, tmp_path):
        reader = Reader()
        with screen_of(reader.end) as screen:
            rank = RankPipes(tmp_path / "log", (screen, screen))
            rank.print(b" 10%\r 20%\r 30")
            rank.wait_until_kept(" 20%")
            assert rank.output.last_lines(9) == [" 10%", " 20%"]
            rank.end()
        assert reader.read_all() == b" 10%\r 20%\r 30\n"

    def test_a_line_that_never_ends_is_passed_on_in_pieces(self, tmp_path):
        whole = b"y" * 1_000_000
        shown = through_one_screen([[whole]], tmp_path / "log")
        assert shown.replace(b"\n", b"") == whole
        assert len(shown.splitlines()) > 5
        assert (tmp_path / "log").read_bytes().partition(b"\n")[2] == whole + b"\n"

    def test_the_last_lines_of_both_streams_are_kept_but_not_for_ever(self):
        reader = Reader()
        with screen_of(reader.end) as screen:
            rank = RankPipes(None, (screen, screen))
            rank.print(b"".join(b"line %d\n" % n for n in range(1000)))
            rank.print(b"z" * 60_000 + b"\n")
            rank.wait_until_kept("z" * 1000)
            rank.print("Traceback 错误 \udcff\n".encode(errors="surrogateescape"), to_err=True)
            rank.end()
            lines = rank.output.last_lines(3)
            assert lines == ["line 999", "z" * 1000, "Traceback 错误 \ufffd"]
            assert len(rank.output.last_lines(10**6)) == 40
        reader.read_all()


class TestLog:
    def test_a_further_start_goes_on_in_the_same_file(self, tmp_path):
        log = tmp_path / "日志 rank-00000.log"
        for text in (b"first\nhalf", b"second\n"):
            through_one_screen([[text]], log)
        lines = log.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if not line.startswith("--- ")] == ["first", "half", "second"]
        began = (
            rf"--- started \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d on {re.escape(os.uname().nodename)}"
        )
        assert re.fullmatch(began, lines[0])
        assert re.fullmatch(began, lines[3])

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
    def test_a_full_disk_is_said_once_and_the_rank_goes_on(self):
        shown = through_one_screen([[b"one\n", b"two\n" * 50_000, b"three\n"]], Path("/dev/full"))
        lines = shown.decode().splitlines()
        assert lines.count("two") == 50_000
        assert lines[-1] == "three"
        assert [line for line in lines if line.startswith("launcher: ")] == [
            "launcher: /dev/full ends here: [Errno 28] No space left on device"
        ]


class TestScreen:
    def test_a_terminal_that_stands_still_holds_nobody_up_and_what_it_missed_is_counted(
        self, monkeypatch, tmp_path
    ):
        monkeypatch.setattr(output_module, "_MOST_WAITING", 100_000)
        read, write = os.pipe()
        screen = Screen(write)
        rank = RankPipes(tmp_path / "log", (screen, screen))
        num_lines = 40_000
        rank.print(b"".join(b"line %06d\n" % n for n in range(num_lines)))  # blocks if the screen does
        rank.end()
        log = (tmp_path / "log").read_bytes()
        assert log.count(b"\nline ") == num_lines
        # It moves again.
        reader = threading.Thread(target=self._read_on, args=(read, shown := bytearray()))
        reader.start()
        screen.close()
        os.close(write)
        reader.join(PATIENCE_S)
        # More than one such line is possible: the first burst may find the screen's thread not yet awake.
        said = re.findall(rb"launcher: (\d+) lines left out here; the logs have them\n", shown)
        num_left_out = sum(map(int, said))
        assert num_left_out > 0
        assert shown.count(b"line 0") + num_left_out == num_lines

    @staticmethod
    def _read_on(descriptor: int, into: bytearray) -> None:
        with open(descriptor, "rb") as pipe:
            into += pipe.read()

    def test_a_terminal_that_never_moves_again_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(output_module, "_LAST_WORDS_S", 0.2)
        read, write = os.pipe()
        screen = Screen(write)
        for _ in range(100):
            screen.write(b"x" * 10_000 + b"\n")
        screen.close()
        os.close(read)

    def test_a_reader_that_is_gone_takes_no_memory(self):
        read, write = os.pipe()
        os.close(read)
        with screen_of(write) as screen:
            for _ in range(2000):
                screen.write(b"x" * 10_000 + b"\n")
            deadline_s = time.monotonic() + PATIENCE_S
            while screen._thread.is_alive():
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            screen.write(b"more\n")
            assert not screen._waiting
        os.close(write)

    def test_a_terminal_that_does_not_block(self):
        reader = Reader()
        flags = fcntl.fcntl(reader.end, fcntl.F_GETFL)
        fcntl.fcntl(reader.end, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        text = b"".join(b"%07d\n" % n for n in range(100_000))
        with screen_of(reader.end) as screen:
            screen.write(text)
        assert reader.read_all() == text


class TestHeartbeat:
    @staticmethod
    def clock(monkeypatch) -> list[float]:
        now = [100.0]
        monkeypatch.setattr("launcher.ranks.heartbeat.time.monotonic", lambda: now[0])
        return now

    def test_the_same_content_is_silence(self, tmp_path, monkeypatch):
        now = self.clock(monkeypatch)
        beat = Heartbeat(tmp_path / "心 beat")
        assert beat.silence() is None
        now[0] = 500.0
        beat.path.write_text(json.dumps({"place": "步骤 3", "number": 1}), encoding="utf-8")
        assert (beat.silence().seconds, beat.silence().place) == (0.0, "步骤 3")
        now[0] = 507.0
        assert beat.silence().seconds == 7.0

    def test_beats_from_one_place_are_life_and_no_progress(self, tmp_path, monkeypatch):
        now = self.clock(monkeypatch)
        beat = Heartbeat(tmp_path / "beat")
        shapes = [
            ({"place": "step 3", "progress": 5, "number": 1}, 0.0),
            ({"place": "step 3", "progress": 5, "number": 2}, 10.0),
            ({"place": "step 3", "progress": 6, "number": 3}, 0.0),
            ({"place": "步骤 4", "progress": 6, "number": 4}, 0.0),
            ({"place": "步骤 4", "progress": 6, "number": 5}, 10.0),
        ]
        for content, still_s in shapes:
            beat.path.write_text(json.dumps(content), encoding="utf-8")
            assert beat.silence() == Silence(0.0, still_s, content["place"])
            now[0] += 10.0
        assert beat.silence() == Silence(10.0, 20.0, "步骤 4")

    @pytest.mark.parametrize("content", [b"\xe6\xad", b"{", b"[1]", b'{"where": 1}', b"7"])
    def test_what_cannot_be_read_is_a_sign_of_life_too(self, tmp_path, content):
        beat = Heartbeat(tmp_path / "beat")
        beat.path.write_bytes(content)
        assert beat.silence().place == "somewhere"

    def test_every_change_of_what_cannot_be_read_is_progress(self, tmp_path, monkeypatch):
        now = self.clock(monkeypatch)
        beat = Heartbeat(tmp_path / "beat")
        for content in ("one", "two"):
            beat.path.write_text(content)
            assert beat.silence().still_s == 0.0
            now[0] += 10.0
        assert beat.silence().still_s == 10.0
