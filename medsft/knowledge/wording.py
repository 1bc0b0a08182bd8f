"""Lists and facts as Chinese sentences name them."""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAMED = 8
"""An answer names no more values than this; longer lists end in 等."""


def join(values: Sequence[str], conjunction: str = "和") -> str:
    """A list as Chinese writes it: A、B和C; 以及 where 和 stands in a value; 等 after eight."""
    if len(values) > MAX_NAMED:
        return "、".join(values[:MAX_NAMED]) + "等"
    if len(values) < 2:
        return "".join(values)
    if conjunction == "和" and any("和" in value for value in values):
        conjunction = "以及"
    return "、".join(values[:-1]) + conjunction + values[-1]


def joined(values: Sequence[str]) -> dict[str, str]:
    """Both ways in which a template may name the values of a fact."""
    return {"values": join(values), "choices": join(values, "或")}
