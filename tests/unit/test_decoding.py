"""Answers decoded side by side: the tokens that each gets alone, and those of the released code."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medsft.chatglm.weights import load_model
from medsft.errors import UserError
from medsft.inference.decoding import Decoder
from medsft.inference.sampling import Sampling

TINY = Path(__file__).parents[1] / "golden" / "tiny"
GOLDEN = json.loads((TINY / "reference.json").read_text(encoding="utf-8"))["greedy"]
GREEDY = Sampling(max_new_tokens=24, greedy=True)
DRAWN = Sampling(max_new_tokens=20, temperature=3.0, top_p=0.95, top_k=200, seed=7)


@pytest.fixture(scope="module")
def model():
    model = load_model(TINY, "fp32")
    model.config.eos_token_id = None  # the reference's continuations do not stop
    return model


def finished(decoder, *rows):
    while decoder.rows:
        decoder.step()
    return [row.answer_ids for row in rows]


def alone(model, prompt, sampling):
    decoder = Decoder(model)
    (answer,) = finished(decoder, decoder.add(prompt, sampling))
    return answer


@pytest.mark.parametrize("example", GOLDEN, ids=lambda example: f"{len(example['prompt'])} tokens")
def test_greedy_continuations_of_the_reference(model, example):
    assert alone(model, example["prompt"], GREEDY) == example["greedy"]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("head_start", [0, 1, 9])
def test_rows_that_join_later_disturb_nobody(model, order, head_start):
    """Short before long and long before short; a third joins when the first has left."""
    first, second = GOLDEN[::order]
    decoder = Decoder(model)
    rows = [decoder.add(first["prompt"], GREEDY)]
    for _ in range(head_start):
        decoder.step()
    rows.append(decoder.add(second["prompt"], replace(GREEDY, max_new_tokens=5)))
    for _ in range(10):
        decoder.step()
    rows.append(decoder.add(second["prompt"], GREEDY))
    answers = finished(decoder, *rows)
    assert answers == [first["greedy"], second["greedy"][:5], second["greedy"]]
    assert [row.finish for row in rows] == ["length"] * 3


def test_a_row_that_is_dropped_disturbs_nobody(model):
    long, short = sorted(GOLDEN, key=lambda example: -len(example["prompt"]))
    decoder = Decoder(model)
    dropped, kept = decoder.add(long["prompt"], GREEDY), decoder.add(short["prompt"], GREEDY)
    decoder.step()
    decoder.leave([dropped])
    assert finished(decoder, kept) == [short["greedy"]]
    assert len(dropped.answer_ids) == 2


def test_the_end_token_ends_an_answer_and_is_not_part_of_it(model):
    example = GOLDEN[0]
    end = example["greedy"][3]
    model.config.eos_token_id = end
    try:
        decoder = Decoder(model)
        row = decoder.add(example["prompt"], GREEDY)
        assert finished(decoder, row) == [example["greedy"][: example["greedy"].index(end)]]
        assert row.finish == "stop"
    finally:
        model.config.eos_token_id = None


def test_a_seed_gives_the_same_answer_in_any_company(model):
    prompts = [example["prompt"] for example in GOLDEN]
    expected = [alone(model, prompt, DRAWN) for prompt in prompts]
    assert expected == [alone(model, prompt, DRAWN) for prompt in prompts]
    decoder = Decoder(model)
    assert finished(decoder, *(decoder.add(prompt, DRAWN) for prompt in prompts)) == expected
    assert alone(model, prompts[0], replace(DRAWN, seed=8)) != expected[0]


def test_settings_do_what_they_say(model):
    prompt, greedy = GOLDEN[0]["prompt"], GOLDEN[0]["greedy"]
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}):
        assert alone(model, prompt, replace(DRAWN, max_new_tokens=24, **narrow)) == greedy
    penalised = alone(model, prompt, replace(GREEDY, repetition_penalty=50.0))
    assert len(set(penalised)) == len(penalised) > len(set(greedy))
    assert not set(penalised) & set(prompt)


@pytest.mark.parametrize("sampling", [GREEDY, replace(GREEDY, repetition_penalty=1.7)])
def test_transformers_generate_chooses_the_same(model, sampling):
    for example in GOLDEN:
        ids = torch.tensor([example["prompt"]])
        output = model.generate(ids, eos_token_id=None, **sampling.generate_arguments())
        assert output[0, ids.shape[1] :].tolist() == alone(model, example["prompt"], sampling)


@pytest.mark.parametrize("use_cache", [True, False])
def test_left_padded_batches_of_generate_are_the_references(model, use_cache):
    width = max(len(example["prompt"]) for example in GOLDEN)
    pad = model.config.pad_token_id
    ids = torch.tensor([[pad] * (width - len(each["prompt"])) + each["prompt"] for each in GOLDEN])
    mask = torch.tensor([[0] * (width - len(each["prompt"])) + [1] * len(each["prompt"]) for each in GOLDEN])
    arguments = {**GREEDY.generate_arguments(), "eos_token_id": None, "use_cache": use_cache}
    output = model.generate(ids, attention_mask=mask, **arguments)
    assert output[:, width:].tolist() == [example["greedy"] for example in GOLDEN]


def test_room_for_many_tokens_is_made_on_the_way(model):
    """More steps than a cache has spare slots; held against a pass over the whole."""
    prompt = GOLDEN[0]["prompt"]
    answer = alone(model, prompt, replace(GREEDY, max_new_tokens=100))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    assert logits.argmax(dim=-1).tolist() == answer


def test_settings_without_sense_are_refused_together():
    with pytest.raises(UserError) as refused:
        Sampling(max_new_tokens=0, top_p=0.0, temperature=float("nan"), top_k=-1, seed=-1, num_beams=0)
    for part in ("max_new_tokens is 0", "top_p is 0.0", "temperature is nan", "top_k is -1", "seed is -1"):
        assert part in str(refused.value)
