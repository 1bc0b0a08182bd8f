import random

import pytest

from medsft.inference.postprocess import AnswerText, postprocess


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (" 你好,世界! ", "你好，世界！"),
        ("体温38,5度", "体温38,5度"),
        ("A,B", "A,B"),
        (",好", "，好"),
        ("病因:高血压;糖尿病?", "病因：高血压；糖尿病？"),
        ("截至[[训练时间]]", "截至2023年"),
        ("", ""),
    ],
)
def test_text_comes_out_as_the_release_does_it(raw, expected):
    assert postprocess(raw) == expected


def streamed(pieces, polish=True):
    """What is told when each piece is one token."""
    text = AnswerText(lambda ids: "".join(pieces[number] for number in ids), polish)
    told = [text.add(number) for number in range(len(pieces))] + [text.end()]
    assert "".join(told) == text.shown
    return [piece for piece in told if piece]


@pytest.mark.parametrize("seed", range(200))
def test_pieces_add_up_to_the_whole_and_are_never_taken_back(seed):
    chance = random.Random(seed)
    alphabet = ["好", "a", ",", "!", " ", "\n", "[", "]", "[[训练时间]]", "[[训练", "病,", ":", "1"]
    text = "".join(chance.choices(alphabet, k=chance.randint(0, 30)))
    pieces, rest = [], text
    while rest:
        size = chance.randint(1, 4)
        pieces.append(rest[:size])
        rest = rest[size:]
    assert "".join(streamed(pieces)) == postprocess(text)
    assert "".join(streamed(pieces, polish=False)) == text


def test_plain_text_is_streamed_at_once():
    assert streamed(["你", "好", ",", "世界"]) == ["你", "好", "，世界"]


def test_half_a_character_is_held_back():
    assert streamed(["你", "\ufffd", "\ufffd"]) == ["你", "\ufffd\ufffd"]
