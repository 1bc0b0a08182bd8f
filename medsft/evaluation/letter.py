"""The letter that a written answer to a multiple-choice question gives.

The first rule that applies decides, on the text in normal width (NFKC):

1. What is ruled out does not count: a letter after 不是, 不选, 并非, 排除, or before 错误, 不正确, 不对.
2. The answer begins with a letter (`A`, `(A)`, `A. 北京`, `A 北京`). With several (`A、B`) it is none.
3. A letter that is said to be the answer: 答案是A, 答案：A, 选A, 应选 A, 正确选项为A, the answer is A. With
   several different ones it is none.
4. Only one letter stands anywhere in it.
5. It has no letter, and names the text of one option only; the longest counts where one is part of another.

Letters count where they stand alone: not within a word, and `A` not before an English word, where it is an
article. Else the question is unanswered.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from medsft.knowledge.mentions import Names

_SAYS = (
    r"(?:答案(?:应该?)?[是为选]?|正确的(?:选项|答案)?[是为]|正确选项[是为]?|选择?(?!项)"
    r"|(?i:answer(?:\s+is)?))"
)
_BETWEEN = r"\s*[:(\[【「'\"*\s]*"


def letter_in(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that `answer` gives; None where that is not clear. `options`: by letter."""
    text = unicodedata.normalize("NFKC", answer).strip()
    letters = "".join(options)
    if text.upper() in options:
        return text.upper()
    alone = rf"(?<![A-Za-z0-9])([{letters}])(?![A-Za-z0-9]|\s+[a-z])"
    text = re.sub(rf"(?:不是|不应?选|并非|排除){_BETWEEN}{alone}", "", text)
    text = re.sub(rf"{alone}\s*(?:选?项)?\s*(?:是?错误|不正确|不对)", "", text)
    start = re.match(rf"[\s(\[【「'\"*]*{alone}(?:\s*(?:[、,/&和及与或]|\s)\s*{alone})*", text)
    if start:
        return _only(re.findall(alone, start.group()))
    for found in (re.findall(_SAYS + _BETWEEN + alone, text), re.findall(alone, text)):
        if found:
            return _only(found)
    plain = {unicodedata.normalize("NFKC", option).strip(): letter for letter, option in options.items()}
    return _only([plain[name] for name in Names(plain).found_in(text)])


def _only(letters: list[str]) -> str | None:
    return letters[0] if len(set(letters)) == 1 else None
