"""Where a tuned model comes from, kept beside its weights."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import medsft
from medsft.errors import UserError
from medsft.files import write_json

FILE_NAME = "medsft.json"
"""Beside config.json in every model folder that a run wrote."""


@dataclass(frozen=True)
class Provenance:
    """Base model, data and flags of a run, and how far it had come.

    prompt_template is what a question must be wrapped in to match the training data; chat reads it.
    train_loss is the last reported one, in nats a supervised token; None before the first, and where
    all its steps were skipped.
    """

    base_model: str
    data_fingerprint: str
    prompt_template: str
    flags: Mapping[str, Any]
    versions: Mapping[str, str]
    step: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    train_loss: float | None = None

    def origin(self) -> dict[str, Any]:
        """What is known before the first step."""
        return {
            "base_model": self.base_model,
            "data_fingerprint": self.data_fingerprint,
            "prompt_template": self.prompt_template,
            "flags": dict(self.flags),
            "versions": dict(self.versions),
        }


def software_versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("torch", "deepspeed", "transformers", "safetensors", "sentencepiece")
    return {
        "medsft": medsft.__version__,  # a clone need not be installed
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Writes the file into a model folder."""
    write_json(folder / FILE_NAME, {"format": 1, **asdict(provenance)})


def trained_template(folder: Path) -> str:
    """Form of the questions a model was trained with; chatglm where its folder does not say.

    Raises `UserError` for a damaged file.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return "chatglm"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["prompt_template"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and give --prompt_template.") from error
