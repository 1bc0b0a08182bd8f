"""Answers put right where nothing has to be known for it; each mend has a name that the report counts."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

# 根据知识，…  根据知识中的辅助检查可知，…  The prompt's wording, not an answer's.
_PROMPT_WORDS = re.compile(
    r"(?:根据|结合|依据)(?:上述|以上|所述|所给|所提供|提供|给出|已知)?的?知识(?:点|库|图谱)?(?:所述|可知)?"
    r"(?:中的?[^，。；]{0,24}?(?:可知|所述|显示)?)?[，,]\s*"
)


def _without_prompt_words(answer: str) -> str:
    return _PROMPT_WORDS.sub("", answer, count=1) if _PROMPT_WORDS.match(answer) else answer


def _list_as_sentence(answer: str) -> str:
    """['a', 'b'] -> a、b。 Anything but a flat list or set of texts is left as it is."""
    if not answer.startswith(("[", "{")):
        return answer
    try:
        value = ast.literal_eval(answer)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return answer
    if not isinstance(value, list | set) or not value or not all(isinstance(item, str) for item in value):
        return answer
    items = [item.strip().rstrip("。；，") for item in (value if isinstance(value, list) else sorted(value))]
    are_sentences = any(len(item) > 12 for item in items)
    return ("；" if are_sentences else "、").join(item for item in items if item) + "。"


def _closed(answer: str) -> str:
    return answer[:-1] + "。" if answer.endswith(("；", ";")) else answer


MENDS: dict[str, Callable[[str], str]] = {
    "blanks around the answer": str.strip,
    "list written as a sentence": _list_as_sentence,
    "words of a prompt dropped": _without_prompt_words,
    "last semicolon made a full stop": _closed,
}


def mend(answer: str) -> tuple[str, tuple[str, ...]]:
    """The answer as it should be, and the names of the mends that changed it; never an empty answer."""
    names = []
    for name, change in MENDS.items():
        changed = change(answer)
        if changed != answer and changed.strip("。 "):
            answer = changed
            names.append(name)
    return answer, tuple(names)
