"""What a model wrote -> questions and answers; what can be repaired is, the rest gives nothing."""

from __future__ import annotations

import json
import re

_QUESTION = ("问题", "question", "提问", "Q", "q")
_ANSWER = ("回答", "answer", "答案", "A", "a")
_OBJECT = re.compile(r"\{[^{}]*\}", re.DOTALL)
_LINES = re.compile(
    r"问题?\s*\d*\s*[：:]\s*(.+?)\n+\s*(?:回答|答案|答)\s*\d*\s*[：:]\s*(.+?)(?=\n+\s*\d*[.、]?\s*问题?\s*\d*\s*[：:]|\Z)",
    re.DOTALL,
)


def parse_reply(text: str) -> tuple[list[tuple[str, str]], bool]:
    """(question, answer) pairs of a reply, and whether it was what was asked for: a JSON array, nothing else.

    Repaired are: text or code fences around the array, a trailing comma, an array that breaks off (its whole
    objects are taken), objects without an array, and plain lines of 问题：… 回答：…
    """
    try:
        value = json.loads(text)
        if isinstance(value, list):
            return _pairs(value), True
    except (ValueError, RecursionError):
        pass
    found = []
    for match in _OBJECT.finditer(text):
        try:
            found.append(json.loads(re.sub(r",\s*\}$", "}", match.group()), strict=False))
        except (ValueError, RecursionError):
            continue
    if pairs := _pairs(found):
        return pairs, False
    return [(question.strip(), answer.strip()) for question, answer in _LINES.findall(text)], False


def _pairs(items: list) -> list[tuple[str, str]]:
    pairs = []
    for item in items:
        if isinstance(item, dict):
            question, answer = (
                next((item[key] for key in keys if key in item), None) for keys in (_QUESTION, _ANSWER)
            )
            if isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip():
                pairs.append((question.strip(), answer.strip()))
    return pairs
