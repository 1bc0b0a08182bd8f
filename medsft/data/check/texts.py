"""Faults that show in the text of one example, whatever the others are. Pure functions.

Each is meant to reject only what deserves it: short answers ("心肌炎。") and unfinished punctuation are no
faults. What can be mended without knowing more is mended in `mending`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from medsft.data.check.fault import Fault
from medsft.data.records import Example
from medsft.data.template import bare_question

_CONTROL = re.compile(
    r"\[g?MASK\]|\[sMASK\]|\[(?:PAD|CLS|SEP|UNK|UNUSED\d*)\]|<(?:sop|eop|bos|eos|pad|unk|mask|sep)>|</?s>"
    r"|<\|[^|<>]{1,30}\|>|\[/?INST\]|<</?SYS>>|\[Round \d+\]|<n>|###\s*(?:Instruction|Response)",
    re.IGNORECASE,
)
_ID_NUMBER = re.compile(
    r"(?<!\d)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\d)"
)
_PERSONAL = (
    ("mobile number", re.compile(r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![\d.])")),
    ("telephone number", re.compile(r"(?<!\d)0\d{2,3}[-－]\d{7,8}(?!\d)")),
    ("e-mail address", re.compile(r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}")),
    ("account", re.compile(r"(?:微信|QQ|qq|WeChat|wechat)(?:号|群)?\s*[:：是为]?\s*[A-Za-z0-9_-]{5,}")),
)
_MACHINE = re.compile(
    r"作为(?:一[个名位款])?(?:AI|人工智能|(?:大型)?语言模型|智能助手|聊天机器人)|我是(?:一[个名])?(?:AI|人工智能|语言模型)"
    r"|(?:抱歉|对不起)[，,].{0,12}(?:无法|不能|没有办法)|as an ai\b|language model",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"(?:好的|当然|没问题)[，,！!。]?\s*(?:以下|下面|这是|我)|(?:以下|下面)是(?:根据|我|关于您|为您)|Sure[,!]"
)
_HIDDEN = re.compile(
    r"(?:根据|结合|由|从|依据|参考|按照)(?:上述|以上|上面|所述|所给|所提供|提供|给出|给定|已知|该|此|这些|您提供)?的?知识(?!产权)"
    r"|(?:两个|第[一二]个|上述|以上|所提供的|给出的|给定的|该|此)知识|知识(?:点|库|图谱)?(?:中|里|所述|没有|未)"
)
_NO_SUBJECT = re.compile(
    r"(?:请问)?(?:对于|关于|在)?(?:(?:以上|上述|这|那|该)?(?:两|2|二|几)[种个]?(?:不同的?)?|(?:该|此|这[种个]))"
    r"(?:疾病|病症|病(?![人例史])|知识)"
)
_PROGRAM = re.compile(r"\s*(?:\[\s*['\"\[{]|\{\s*['\"]|\(\s*['\"])")
_BROKEN = re.compile(
    "\ufffd|锟斤拷|烫烫烫|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|(?:[ÃÂ][\x80-\xbf]){2}|(?:\\\\u[0-9a-f]{4}){2}"
)
_REPEATED = re.compile(r"(.{2,24}?)\1{4,}|(\S)\2{9,}", re.DOTALL)
_OPEN_CLOSE = {"(": ")", "《": "》", "“": "”", "【": "】", "「": "」"}
_CHINESE = re.compile(r"[㐀-鿿]")
_MIN_CHINESE = 0.2
_MIN_LETTERS = 60
"""A few names of medicines in Latin letters are an answer, not another language."""
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def _texts(example: Example) -> str:
    return "\n".join([*(text for pair in example.history for text in pair), example.query, example.response])


def control_token(example: Example) -> Fault | None:
    """A model's own signs written out: as text they teach it to print them."""
    found = _CONTROL.search(_texts(example))
    return Fault("control token", found.group()) if found else None


def personal_data(example: Example) -> Fault | None:
    """Numbers and addresses that belong to a person; the detail hides the most of them."""
    text = _texts(example)
    for match in _ID_NUMBER.finditer(text):
        number = match.group().upper()
        if "10X98765432"[sum(map(int.__mul__, map(int, number[:17]), _WEIGHTS)) % 11] == number[17]:
            return Fault("personal data", f"ID number {number[:3]}…")
    for what, pattern in _PERSONAL:
        if found := pattern.search(text):
            return Fault("personal data", f"{what} {found.group()[:3]}…")
    return None


def boilerplate(example: Example) -> Fault | None:
    """Answers that speak of being a machine, refuse, or open like a chat program."""
    start = example.response.lstrip()[:60]
    found = _MACHINE.search(start) or _OPENING.match(start)
    return Fault("boilerplate", found.group()) if found else None


def hidden_knowledge(example: Example) -> Fault | None:
    """Question or answer speak of "the knowledge" that a prompt held and that a user never sees."""
    for text in (bare_question(example.query), example.response):
        if found := _HIDDEN.search(text):
            return Fault("speaks of hidden knowledge", found.group())
    return None


def no_subject(example: Example) -> Fault | None:
    """A question about "this disease" or "these two" that names none, with no earlier round that could."""
    if example.history:
        return None
    found = _NO_SUBJECT.match(bare_question(example.query).strip())
    return Fault("question without its subject", found.group()) if found else None


def program_text(example: Example) -> Fault | None:
    """An answer that is a list or an object of a programming language."""
    if _PROGRAM.match(example.response) and example.response.rstrip().endswith(("]", "}", ")")):
        return Fault("program text", example.response.strip()[:20])
    return None


def broken_text(example: Example) -> Fault | None:
    """Characters that come from a wrong encoding; an answer that breaks off."""
    if found := _BROKEN.search(_texts(example)):
        return Fault("broken characters", repr(found.group()))
    answer = example.response.rstrip()
    if answer.endswith(("，", "、", "：", ",", ":")):
        return Fault("breaks off", f"ends in {answer[-1]}")
    answer = answer.replace("（", "(").replace("）", ")")  # one of each width is a slip, not an end
    for opening, closing in _OPEN_CLOSE.items():
        if answer.rfind(opening) > answer.rfind(closing):
            return Fault("breaks off", f"{opening} is never closed")
    return None


def repetition(example: Example) -> Fault | None:
    """An answer caught in a loop."""
    found = _REPEATED.search(example.response)
    return Fault("repeats itself", found.group()[:20]) if found else None


def no_content(example: Example) -> Fault | None:
    """Question or answer without a single letter, sign or digit."""
    for name, text in (("question", bare_question(example.query)), ("answer", example.response)):
        if not any(character.isalnum() for character in text):
            return Fault("no content", f"the {name} is {text.strip()[:20]!r}")
    return None


def not_chinese(example: Example) -> Fault | None:
    """An answer in another language, told by its share of Chinese among its letters."""
    letters = [character for character in example.response if character.isalpha()]
    share = sum(bool(_CHINESE.match(letter)) for letter in letters) / max(len(letters), 1)
    if len(letters) >= _MIN_LETTERS and share < _MIN_CHINESE:
        return Fault("not Chinese", f"{share:.0%} of its letters are")
    return None


Check = Callable[[Example], Fault | None]

CHECKS: tuple[Check, ...] = (
    no_content,
    broken_text,
    control_token,
    personal_data,
    boilerplate,
    hidden_knowledge,
    no_subject,
    program_text,
    repetition,
)
"""Those that hold for any language; the first fault found counts."""


def first_fault(example: Example, checks: tuple[Check, ...]) -> Fault | None:
    """The first fault that one of the checks finds."""
    for check in checks:
        if fault := check(example):
            return fault
    return None
