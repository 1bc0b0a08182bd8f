"""The report's page: what it shows, half-written files, and how a browser sees it."""

import json
import re
import shutil
import subprocess

import pytest
from browser import CHROMIUM
from typer.testing import CliRunner

from medsft.cli import app
from medsft.errors import UserError
from medsft.monitor.run import read_run
from medsft.monitor.run_page import run_page


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def run(tmp_path):
    """A run that is still going on: a skipped step without loss, and a line that is half written."""
    folder = tmp_path / "运行 <1>"
    folder.mkdir()
    lines = [
        {"kind": "train", "step": step, "loss": None if step == 3 else 5 / step, "tokens_per_s": 100.0 + step}
        for step in range(1, 7)
    ]
    lines.append({"kind": "validation", "step": 6, "loss": 1.5})
    lines.append({"kind": "checkpoint", "step": 6, "stall_s": 0.1})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "train", "st', encoding="utf-8")
    (folder / "run.json").write_text(
        json.dumps({"num_steps": 9, "flags": {"learning_rate": 5e-5}}), encoding="utf-8"
    )
    return folder


def first_chart(page):
    """The one of the training loss."""
    return page.split("<h2>Learning")[1].split("<figure>")[1]


def test_a_run_that_goes_on_is_shown(run):
    assert report(run).exit_code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "6 / 9" in page
    assert "unreadable lines of metrics.jsonl, left out 无法读取的行: 9" in page
    assert "not finished" in page
    assert "运行 &lt;1&gt;" in page
    assert "<1>" not in page
    assert "learning_rate" in page
    assert not re.search(r"(src|href)=|url\(|<script", page)
    assert "Content-Security-Policy" in page


def test_a_missing_value_is_a_gap(run):
    loss = first_chart(run_page([read_run(run)]))
    assert loss.count("<polyline") == 2


def test_runs_lie_over_each_other(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "evaluation").mkdir()
    (other / "evaluation" / "evaluation.json").write_text('{"scores": {"bleu_4": 7.25}}', encoding="utf-8")
    page = tmp_path / "both.html"
    assert report(run, other, "--output", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert first_chart(text).count("<polyline") == 4
    assert "7.25" in text


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report(tmp_path)


def test_a_run_without_a_report_yet_makes_a_page(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_bytes(b"\xff\x00[1]\n")
    assert "<figure>" not in run_page([read_run(tmp_path)])
    metrics.write_text('{"kind": "train", "step": "<script>"}\n', encoding="utf-8")
    assert "<script>" not in run_page([read_run(tmp_path)])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_charts(run, tmp_path):
    report(run)
    picture = tmp_path / "page.png"
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    command += ["--enable-logging=stderr", "--window-size=1180,1000", f"--screenshot={picture}"]
    done = subprocess.run(
        [*command, (run / "report.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000  # an empty page of this size is 5 kB
    assert (run / "report.html").read_text(encoding="utf-8").count("<figure>") == 4
