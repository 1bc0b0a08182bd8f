"""The comparison for programs, and for `medsft report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medsft.evaluation.findings import Findings
from medsft.evaluation.scores import SCORE_NAMES
from medsft.files import write_json


def write_facts(path: Path, base: Path, tuned: Path, findings: Findings, faults: Sequence[str]) -> None:
    """Writes a JSON object; `faults` are those of `Findings.faults`. Raises OSError."""
    write_json(path, {"base": str(base), "tuned": str(tuned), **facts(findings, faults)})


def facts(findings: Findings, faults: Sequence[str]) -> dict[str, Any]:
    """All that was found, in plain values: losses in nats, scores 0 to 100, counts; None: there is none."""
    return {
        "faults": list(faults),
        "losses": [
            {"kind": loss.name, "base": _finite(loss.base), "tuned": _finite(loss.tuned)}
            for loss in findings.losses
        ],
        "scores": [
            {"kind": kind, "score": name, "base": getattr(before, name), "tuned": getattr(after, name)}
            for kind, (before, after) in findings.scores.items()
            for name in SCORE_NAMES
            if getattr(before, name) is not None
        ],
        "accuracies": [asdict(accuracy) for accuracy in findings.accuracies],
        "answers": [
            {
                "question": item.question.query,
                "kind": item.question.kind,
                "expected": item.question.expected or None,
                "base": item.base,
                "base_exact": item.base_exact if item.question.expected else None,
                "tuned": item.tuned,
                "tuned_exact": item.tuned_exact if item.question.expected else None,
            }
            for item in findings.answered
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
