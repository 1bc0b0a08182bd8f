"""Curves laid out for the macro `line_chart` of charts.html.jinja: numbers in, places in a picture out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, float | None]
"""x and y; None leaves a gap."""

COLOURS = ("#1f6fb4", "#d1602b", "#2f8f4e", "#8a4fb0", "#b8860b", "#777777")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 520, 230, 62, 26, 10, 12


def colour_of(number: int) -> str:
    """Colour of the curve of that number; they come again after the last."""
    return COLOURS[number % len(COLOURS)]


@dataclass(frozen=True)
class Series:
    """One curve and the signs on it: (x, y, sign, what it says)."""

    name: str
    colour: str
    points: Sequence[Point]
    marks: Sequence[tuple[float, float, str, str]] = ()


@dataclass(frozen=True)
class Label:
    """Text at a place of an axis."""

    place: float
    text: str
    anchor: str = "end"


@dataclass(frozen=True)
class Line:
    """A stretch of a curve without a gap; `end` is its last place."""

    name: str
    colour: str
    points: str
    end: tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A sign in the picture."""

    x: float
    y: float
    sign: str
    text: str
    colour: str


@dataclass(frozen=True)
class Chart:
    """A picture of curves; places count from the upper left corner, in the units of its view box."""

    title: str
    x_labels: Sequence[Label]
    y_labels: Sequence[Label]
    lines: Sequence[Line]
    marks: Sequence[Mark]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT


def line_chart(title: str, series: Sequence[Series], x_text: Callable[[float], str]) -> Chart | None:
    """The chart of some curves; None where there is no value and no sign. `x_text` writes a place of x."""
    known = [(x, y) for curve in series for x, y in curve.points if y is not None]
    known += [(x, y) for curve in series for x, y, *_ in curve.marks]
    if not known:
        return None
    low, high = min(y for _, y in known), max(y for _, y in known)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    # What cannot be negative gets no axis below zero.
    low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin
    last = max(x for x, _ in known)
    first = min(x for x, _ in known)
    width = (last - first) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - first) / width * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP)
        return round(right, 1), round(down, 1)

    ends = [(first, "start"), (last, "end")] if last > first else [(first, "start")]
    lines = []
    for curve in series:
        for stretch in stretches(curve.points):
            places = [place(*point) for point in stretch]
            text = " ".join(f"{x},{y}" for x, y in places)
            lines.append(Line(curve.name, curve.colour, text, places[-1]))
    return Chart(
        title,
        [Label(place(x, low)[0], x_text(x), anchor) for x, anchor in ends],
        [Label(place(first, value)[1], f"{value:,.6g}") for value in round_values(low, high)],
        lines,
        [Mark(*place(x, y), sign, text, one.colour) for one in series for x, y, sign, text in one.marks],
    )


def round_values(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, two to seven of them; low < high."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def stretches(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """Runs of points without a gap between them."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]
