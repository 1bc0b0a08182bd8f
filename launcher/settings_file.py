"""The file of settings that a training is given by --config: the few lines of it that the launcher needs."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import zip_longest
from pathlib import Path

# A value on the line of its name: in quotes that hide nothing, or plain, as YAML 1.2 has it (section 7.3).
_DOUBLE, _SINGLE = r'"(?P<double>[^"\\]*)"', r"'(?P<single>[^']*)'"
_PLAIN = r"""(?P<plain>[^\s\[\]{}>|*&!%#@`"',?:-](?:(?!:(?:\s|$)|\s\#).)*?)"""
_LINE = re.compile(rf"\w+[ \t]*:[ \t]+(?:{_DOUBLE}|{_SINGLE}|{_PLAIN})[ \t]*(?:(?<=[ \t])\#.*)?")
_NOTHING = ("", "null", "~")
# What stands at the margin of a plain file of settings; anything else may be another way to write a name.
_AT_THE_MARGIN = re.compile(r"\s|#|---|\.\.\.|-(?:\s|$)|\w+[ \t]*:")


def value(path: Path, names: Collection[str]) -> str | None:
    """What the last line `name: value` of one of `names` says; None where that cannot be told for sure.

    The launcher has no YAML but the standard library: lists, and values that go on on the next line, are as
    good as none.
    """
    try:
        if not path.is_file():
            return None  # a pipe can be read once, and that is the training's to do
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return None  # which the training itself explains
    if not all(map(_AT_THE_MARGIN.match, lines)):
        return None
    found = None
    for line, following in zip_longest(lines, lines[1:], fillvalue=""):
        if re.match(rf"(?:{'|'.join(map(re.escape, names))})[ \t]*:", line):
            found = None if _goes_on(following) else _value_of(line)
    return found


def _value_of(line: str) -> str | None:
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    text = next(part for part in match.group("double", "single", "plain") if part is not None)
    return None if text in _NOTHING else text


def _goes_on(following: str) -> bool:
    """Whether the line after a value may belong to it."""
    return following[:1] in (" ", "\t") and not following.lstrip().startswith("#")
