"""Names and values as graphs hold them -> the texts that sentences are made of."""

from __future__ import annotations

import re

from medsft.data.files import NOT_UTF8, BadRecord

MAX_VALUE_CHARACTERS = 200
"""A longer text is a paragraph, not a value that a sentence could name."""

# Full-width letters and digits are the same words; Chinese punctuation is left alone.
_TO_HALF_WIDTH = {
    code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
}
_SAYS_NOTHING = {"无", "暂无", "不详", "未知", "不明", "-", "—", "/", "null", "none", "n/a", "nan"}
_EDGES = " ,，、;；。.:："
_SEPARATORS = re.compile(r"[、；;|]")


def clean_text(text: str) -> str:
    """White space made single, full-width letters and digits made plain, punctuation at the ends dropped.

    Raises `BadRecord` for text that UTF-8 cannot express (half a surrogate pair).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(NOT_UTF8, f"character {error.start + 1} of a text") from error
    return " ".join(text.translate(_TO_HALF_WIDTH).split()).strip(_EDGES)


def clean_name(field: str, value: object) -> str:
    """The one name that a field holds; `BadRecord` for none and for several."""
    items = value if isinstance(value, list) else [value]
    if len(items) == 1 and isinstance(items[0], str | int | float) and not isinstance(items[0], bool):
        text = clean_text(str(items[0]))
        if text and len(text) <= MAX_VALUE_CHARACTERS:
            return text
    raise BadRecord(f"{field} must be one text", f"it is {_short(value)}")


def clean_values(field: str, value: object) -> tuple[list[str], int]:
    """Different values of a relation, and how many were left out.

    A text that is a list itself (恶心、呕吐) is taken apart. Left out are values that say nothing (无, 不详),
    paragraphs, and repetitions. Raises `BadRecord` for what is neither text nor number.
    """
    texts: list[str] = []
    num_left_out = 0
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise BadRecord("wrong type", f"{field} holds a {type(item).__name__}, not text")
        parts = [clean_text(part) for part in _SEPARATORS.split(str(item))]
        useful = [
            part
            for part in parts
            if part and part.casefold() not in _SAYS_NOTHING and len(part) <= MAX_VALUE_CHARACTERS
        ]
        num_left_out += sum(map(bool, parts)) - len(useful)
        texts += useful
    distinct = list(dict.fromkeys(texts))
    return distinct, num_left_out + len(texts) - len(distinct)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + " …"
