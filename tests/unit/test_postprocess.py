import random

import pytest

from medsft.inference.postprocess import postprocess, postprocess_stream


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
    assert "".join(postprocess_stream(pieces)) == postprocess(text)


def test_plain_text_is_streamed_at_once():
    assert list(postprocess_stream(["你", "好", ",", "世界"])) == ["你", "好", "，世界"]
