"""Token ids of an answer -> its text, whole and streamed, with the reference's last touch.

SentencePiece turns full-width punctuation into half-width; the released `process_response` turns it back
where it stands beside a Chinese character, and replaces the placeholder of the training date.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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


class AnswerText:
    """The text of one answer, told piece by piece as its tokens come; nothing told is ever taken back.

    With `polish` the pieces add up to `postprocess` of the text, else to the text as it was decoded.
    """

    def __init__(self, decode: Callable[[list[int]], str], polish: bool) -> None:
        self._decode = decode
        self._polish = polish
        self._ids: list[int] = []
        self.shown = ""

    def add(self, token: int) -> str:
        """What one more token settles; often nothing. All tokens are decoded: one means little by itself."""
        self._ids.append(token)
        raw = self._decode(self._ids)
        # A character that is spelled in bytes is complete only with its last byte.
        return "" if raw.endswith("\ufffd") else self._show(raw, raw[: _settled_length(raw)])

    def end(self) -> str:
        """What is left once the last token has come."""
        raw = self._decode(self._ids)
        return self._show(raw, raw)

    def _show(self, raw: str, settled: str) -> str:
        # What stands behind the cut decides about the punctuation before it, never about less than that.
        ready = postprocess(settled) if self._polish else raw
        piece = ready[len(self.shown) :]
        self.shown += piece
        return piece
