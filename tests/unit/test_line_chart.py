"""Curves as places in a picture."""

import pytest

from medsft.pages.line_chart import Series, line_chart, round_values


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.3, 7.1, [0, 2, 4, 6]),
        (0.9898, 0.9931, [0.99, 0.991, 0.992, 0.993]),
        (-5.0, 5.0, [-4, -2, 0, 2, 4]),
        (4764.0, 12_056.0, [6000, 8000, 10_000, 12_000]),
        (2.01, 8.2, [4, 6, 8]),
    ],
)
def test_an_axis_has_round_values(low, high, values):
    assert round_values(low, high) == pytest.approx(values)


@pytest.mark.parametrize("value", [1e-300, 1e-12, 0.07, 3.0, 1e9, -2e-7])
def test_a_constant_curve_has_an_axis_too(value):
    chart = line_chart("x", [Series("a", "red", [(1, value), (5, value)])], str)
    assert 2 <= len(chart.y_labels) <= 7
    assert all(0 <= label.place <= chart.height for label in chart.y_labels)


def test_counts_that_are_zero_stand_on_the_axis():
    chart = line_chart("skipped", [Series("a", "red", [(1, 0.0), (5, 0.0)])], str)
    assert [label.text for label in chart.y_labels] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_numbers_are_written_as_people_do():
    chart = line_chart("tokens/s", [Series("a", "red", [(1, 4764.0), (5, 12_056.0)])], str)
    assert "10,000" in [label.text for label in chart.y_labels]


def test_signs_beyond_the_curve_stand_in_the_picture():
    """A checkpoint is written after the last step is reported, or before the first."""
    marks = [(9.0, 50.0, "◆", "checkpoint")]
    chart = line_chart("progress", [Series("a", "red", [(0, 0), (5, 20)], marks)], str)
    (mark,) = chart.marks
    assert chart.left <= mark.x <= chart.width and 0 <= mark.y <= chart.height
