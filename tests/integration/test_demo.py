"""The demo is a user's first five minutes; it must end with a model that has learnt."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY, read_metrics


def run(script: str, out: Path, commands: Path) -> subprocess.CompletedProcess[str]:
    """A script of examples/, with `commands` the first folder to look for commands in."""
    return subprocess.run(
        ["bash", str(REPOSITORY / "examples" / script), str(out)],
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_the_demo_ends_with_exact_answers(tmp_path):
    out = tmp_path / "演示 输出"
    result = run("demo.sh", out, Path(sys.executable).parent)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "exact answers" in result.stdout
    scores = json.loads((out / "run" / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))[
        "scores"
    ]
    assert scores["exact"] >= 80
    comparison = (out / "run" / "evaluation" / "before-after.html").read_text(encoding="utf-8")
    report = (out / "run" / "report.html").read_text(encoding="utf-8")
    assert "心" in comparison and "<svg" in report
    assert "scores.exact" in report and "Samples" in report and "302" in report
    assert "before-after.html.json" in report
    assert (out / "run" / "DONE").exists()
    steps = sorted(path.name for path in (out / "run" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000400", "step-00000472"]
    losses = [line["loss"] for line in read_metrics(out / "run")]
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.slow
def test_what_was_learnt_is_recalled_in_unseen_words(tmp_path):
    """Above 90 % or it fails; about two minutes on two cores."""
    out = tmp_path / "记 忆"
    result = run("recall.sh", out, Path(sys.executable).parent)
    assert result.returncode == 0, result.stdout + result.stderr
    recall, generalisation = result.stdout.split("== Recall")[1].split("== Generalisation")
    for part in (recall, generalisation):
        assert "exact answers" in part and "facts 知识点" in part
    assert (out / "recall.html").exists() and (out / "generalisation.html").exists()


@pytest.mark.parametrize("code", [0, 1])
def test_too_little_recalled_fails_the_script(tmp_path, code):
    """With commands that only say what they were asked."""
    (tmp_path / "python").write_text("#!/bin/sh\n", encoding="utf-8")
    (tmp_path / "medsft").write_text(
        f'#!/bin/sh\necho "exact answers: $*"\ncase "$*" in *--min_exact\\ 0.9*) exit {code};; esac\n',
        encoding="utf-8",
    )
    for name in ("python", "medsft"):
        (tmp_path / name).chmod(0o755)
    result = run("recall.sh", tmp_path / "o", tmp_path)
    assert result.returncode == code
    assert "recall.jsonl" in result.stdout and ("test.jsonl" in result.stdout) == (code == 0)
