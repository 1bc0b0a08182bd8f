"""Tables in Markdown whose text may be anybody's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

# What Markdown would read as orders: links and pictures that a text brings would be loaded.
_ORDERS = re.compile(r"([\\`*_\[\]#~|!$])")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells show their texts as they are, line ends included."""

    def line(cells: Sequence[str]) -> str:
        safe = (_ORDERS.sub(r"\\\1", escape(cell, quote=False)).replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(safe)} |\n"

    return line(head) + line(["---"] * len(head)) + "".join(map(line, rows))
