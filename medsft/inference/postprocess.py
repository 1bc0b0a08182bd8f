"""The reference's last touch on an answer, whole and streamed.

SentencePiece turns full-width punctuation into half-width; the released `process_response` turns it back
where it stands beside a Chinese character, and replaces the placeholder of the training date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
_DATE = ("[[训练时间]]", "2023年")
_CHINESE = "[\u4e00-\u9fff]"
_BESIDE_CHINESE = re.compile(
    f"(?<={_CHINESE})[{''.join(_FULL_WIDTH)}]|[{''.join(_FULL_WIDTH)}](?={_CHINESE})"
)


def postprocess(text: str) -> str:
    """Strips, fills in the date, makes punctuation beside Chinese characters full-width."""
    text = text.strip().replace(*_DATE)
    return _BESIDE_CHINESE.sub(lambda found: _FULL_WIDTH[found.group()], text)


def _settled_length(text: str) -> int:
    """Length of the beginning of `text` that no later character can change."""
    end = len(text.rstrip())
    for size in range(min(len(_DATE[0]) - 1, end), 0, -1):
        if _DATE[0].startswith(text[end - size : end]):
            return end - size
    return end - 1 if end and text[end - 1] in _FULL_WIDTH else end


def postprocess_stream(pieces: Iterable[str]) -> Iterator[str]:
    """`postprocess` for text that arrives in pieces; the pieces yielded add up to the same answer."""
    raw, shown = "", 0
    for piece in pieces:
        raw += piece
        ready = postprocess(raw[: _settled_length(raw)])
        # What stands behind the cut decides about the punctuation before it, never about less than that.
        if len(ready) > shown:
            yield ready[shown:]
            shown = len(ready)
    rest = postprocess(raw)
    if len(rest) > shown:
        yield rest[shown:]
