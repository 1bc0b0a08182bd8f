"""The letter that a written answer to a multiple-choice question gives, or the letters.

The first rule that applies decides, on the text in normal width (NFKC). For a question with one right option:

1. What is ruled out does not count: a letter after 不是, 不选, 并非, 排除, or before 错误, 不正确, 不对.
2. The answer begins with a letter (`A`, `(A)`, `A. 北京`, `A 北京`). With several (`A、B`) it is none.
3. A letter that is said to be the answer: 答案是A, 答案：A, 选A, 应选 A, 正确选项为A, the answer is A. With
   several different ones it is none.
4. Only one letter stands anywhere in it.
5. It has no letter, and names the text of one option only; the longest counts where one is part of another.

For a question that may have several, all letters count that the first rule to find any finds, and letters may
stand together (`ACD`, `A、C和D`):

1. As above.
2. The answer begins with two letters or more, and not with a word (ACE抑制剂).
3. Letters that are said to be the answer, as above, or followed by 正确 or 对.
4. Letters that stand alone anywhere.
5. The options whose texts it names.

Letters count where they stand alone or together: not within a word, and `A` not before an English word, where
it is an article. Else the question is unanswered.
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
_OPEN = r"[\s(\[【「'\"*]*"
_BETWEEN = r"[:\s(\[【「'\"*]*"
_ITEM = r"\s*(?:选?项)?\s*"
_WRONG = r"(?:是?错误|不正确|不对)"
_RIGHT = r"(?:都|均|是)*(?:正确|对(?!\w))"


def letter_in(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that `answer` gives; None where that is not clear. `options`: by letter."""
    text, letters = _normal(answer), "".join(options)
    if text.upper() in options:
        return text.upper()
    alone = _standing(f"[{letters}]")
    text = re.sub(rf"(?:不是|不应?选|并非|排除){_BETWEEN}{alone}", "", text)
    text = re.sub(rf"{alone}{_ITEM}{_WRONG}", "", text)
    start = re.match(rf"{_OPEN}{alone}(?:\s*(?:[、,/&和及与或]|\s)\s*{alone})*", text)
    if start:
        return _only(re.findall(alone, start.group()))
    for found in (re.findall(_SAYS + _BETWEEN + alone, text), re.findall(alone, text)):
        if found:
            return _only(found)
    return _only(_named(text, options))


def letters_in(answer: str, options: Mapping[str, str]) -> str | None:
    """The letters of all options that `answer` gives, as `ACD`; None where it gives none."""
    text, letters = _normal(answer), "".join(options)
    if text and set(text.upper()) <= set(letters):
        return _joined(text.upper())
    next_one = rf"\s*[、/&和及与]?\s*[{letters}]"
    together = _standing(rf"[{letters}](?:{next_one})*")
    # After a comma a new sentence may begin: 答案是BD,A不常见.
    listed = _standing(rf"[{letters}](?:{next_one}|\s*,\s*[{letters}](?![^\W和及与]))*")
    text = re.sub(rf"(?:不是|不应?选|并非|排除){_BETWEEN}{together}", "", text)
    text = re.sub(rf"{together}{_ITEM}{_WRONG}", "", text)
    start = re.match(rf"{_OPEN}{listed}(?![^\W选项])", text)
    if start and len(found := _joined(start.group(1))) > 1:
        return found
    said = re.findall(_SAYS + _BETWEEN + listed, text) + re.findall(together + _ITEM + _RIGHT, text)
    for found in (said, re.findall(_standing(f"[{letters}]"), text), _named(text, options)):
        if found:
            return _joined("".join(found))
    return None


def _normal(answer: str) -> str:
    return unicodedata.normalize("NFKC", answer).strip()


def _standing(letters: str) -> str:
    """Letters that belong to no word, as a group."""
    return rf"(?<![A-Za-z0-9])({letters})(?![A-Za-z0-9]|\s+[a-z])"


def _named(text: str, options: Mapping[str, str]) -> list[str]:
    plain = {_normal(option): letter for letter, option in options.items()}
    return [plain[name] for name in Names(plain).found_in(text)]


def _only(letters: list[str]) -> str | None:
    return letters[0] if len(set(letters)) == 1 else None


def _joined(text: str) -> str:
    """Its letters in order, each once."""
    return "".join(sorted(set(re.findall("[A-Z]", text))))
