"""Whether an answer says yes or no."""

from __future__ import annotations

import re

VERDICT, YES, NO = "是否", "是", "否"
"""What a yes-no question asks for, among the facts of a pair, and what it may be."""

_YES = re.compile(r"(?:是的|对|会|可以|有|能|需要|是)[，。,]")
_NO = re.compile(r"(?:一般)?(?:不[，。,]|不[是会能应用可]|没有|否|并非)")


def verdict(answer: str) -> str | None:
    """YES or NO by the answer's first words; None where they say neither."""
    start = answer.strip()
    if _YES.match(start):
        return YES
    return NO if _NO.match(start) else None
