"""Stop strings, whole and in pieces."""

import pytest

from medsft.inference.stop_strings import StopStrings

CASES = [
    ("abcdef", ["cd"], "ab", True),
    ("abcdef", ["x"], "abcdef", False),
    ("abcde", ["de", "bc"], "a", True),
    ("aaab", ["aab"], "a", True),  # a beginning within a beginning
    ("ab##", ["###"], "ab##", False),  # held back, then told
    ("abc", [], "abc", False),
    ("头痛。多休息", ["。"], "头痛", True),
    ("abc", ["abc", "a"], "", True),
]


@pytest.mark.parametrize(("text", "stops", "expected", "is_reached"), CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_the_text_ends_at_the_first(text, stops, expected, is_reached, size):
    found = StopStrings(stops)
    pieces = [found.add(text[start : start + size]) for start in range(0, len(text), size)]
    assert "".join([*pieces, found.end()]) == expected
    assert found.is_reached == is_reached


def test_only_what_may_be_a_beginning_is_held_back():
    found = StopStrings(["\n\n问："])
    assert [found.add(piece) for piece in ("好。\n", "多", "喝水\n\n", "答")] == [
        "好。",
        "\n多",
        "喝水",
        "\n\n答",
    ]
