"""The demo is a user's first five minutes; it must end with a model that has learnt."""

import json
import os
import subprocess
import sys
from pathlib import Path

from runs import REPOSITORY, read_metrics


def test_the_demo_ends_with_exact_answers(tmp_path):
    out = tmp_path / "演示 输出"
    result = subprocess.run(
        ["bash", str(REPOSITORY / "examples" / "demo.sh"), str(out)],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "exact answers" in result.stdout
    scores = json.loads((out / "run" / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))[
        "scores"
    ]
    assert scores["exact"] >= 80
    comparison = (out / "before-after.html").read_text(encoding="utf-8")
    report = (out / "run" / "report.html").read_text(encoding="utf-8")
    assert "心" in comparison and "<svg" in report
    assert "scores.exact" in report and "Samples" in report and "302" in report
    assert (out / "run" / "DONE").exists()
    steps = sorted(path.name for path in (out / "run" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000400", "step-00000472"]
    losses = [line["loss"] for line in read_metrics(out / "run")]
    assert losses[-1] < 0.1 * losses[0]
