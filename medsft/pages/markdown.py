"""Markdown whose text may be anybody's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

# What Markdown would read as orders: links and pictures that a text brings would be loaded.
_ORDERS = re.compile(r"([\\`*_\[\]#~|!$])")


def plain(text: str) -> str:
    """A text that is shown as it is, line ends included."""
    return _ORDERS.sub(r"\\\1", escape(text, quote=False)).replace("\n", "<br>")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells show their texts as they are."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(plain, cells))} |\n"

    return line(head) + line(["---"] * len(head)) + "".join(map(line, rows))
