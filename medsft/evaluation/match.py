"""Whether an answer is the expected one, and whether it names something."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from medsft.inference.postprocess import postprocess


def plain(text: str) -> str:
    """Without differences that the tokenizer does not keep: white space around, width of characters."""
    return " ".join(unicodedata.normalize("NFKC", postprocess(text)).split())


def same_answer(answer: str, expected: str) -> bool:
    """Equal but for white space around and for width of characters."""
    return plain(answer) == plain(expected)


def names(answer: str, text: str) -> bool:
    """Whether `text` stands in the answer, in any case and width; 8 does not stand in 18, nor 八 in 十八."""
    within, sought = plain(answer).casefold(), plain(text).casefold()
    at = within.find(sought)
    while at >= 0:
        end = at + len(sought)
        if not (
            _is_one_word(within[at - 1 : at], sought[0]) or _is_one_word(sought[-1], within[end : end + 1])
        ):
            return True
        at = within.find(sought, at + 1)
    return False


def is_right(answer: str, expected: str, accepted: Sequence[str]) -> bool:
    """Equal to what is expected, or naming one of the accepted texts."""
    return same_answer(answer, expected) or any(names(answer, text) for text in accepted)


def _is_one_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one number or one word in Latin letters."""
    both = (left, right)
    return all(map(str.isnumeric, both)) or all(item.isascii() and item.isalpha() for item in both)
