"""The demo is a user's first five minutes; it must end with a model that has learnt."""

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
    assert (out / "run" / "DONE").exists()
    steps = sorted(path.name for path in (out / "run" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000400", "step-00000472"]
    losses = [line["loss"] for line in read_metrics(out / "run")]
    assert losses[-1] < 0.1 * losses[0]
