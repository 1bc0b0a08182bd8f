"""YAML files of texts with {placeholders}: read and looked into."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import yaml

from medsft.errors import UserError


def read_texts(path: Path, what: str) -> Any:
    """The content of a YAML file; `UserError` that calls it `what` where it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"The {what} {path} cannot be read as YAML: {error}.") from error


def placeholders_in(text: str) -> set[str]:
    """Names in braces; ValueError for a brace that is not closed or not opened."""
    try:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"a stray brace ({error})") from error


def in_braces(names: set[str]) -> str:
    """How placeholders are written, for messages."""
    return ", ".join(f"{{{name}}}" for name in sorted(names)) or "no placeholder"
