"""The choice of tokens, held against transformers' processors; several answers at once."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medsft.inference.sampling import Chooser, Sampling, _draw

CPU = torch.device("cpu")
BLANK = 5
SETTINGS = [
    Sampling(seed=1),
    Sampling(top_k=3, top_p=1.0, temperature=2.0, seed=2),
    Sampling(top_k=0, top_p=0.9, repetition_penalty=1.8, seed=3),
    Sampling(top_k=2**63, top_p=0.01, seed=4),
    Sampling(top_k=0, top_p=1.0, temperature=0.3, seed=5),
    Sampling(greedy=True),
    Sampling(greedy=True, repetition_penalty=3.0),
]
IDS = [[7, 8, 9, 7, row] for row in range(len(SETTINGS))]


NUM_SETTINGS = len(SETTINGS)


def scores(num_rows=NUM_SETTINGS, vocabulary=300):
    return torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 3


def expected_probabilities(sampling, ids, row):
    """[V], as transformers' generate would have them."""
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return processors(torch.tensor([ids]), row[None]).softmax(dim=-1)[0]


def choose(samplings, logits, ids):
    return Chooser(samplings, BLANK, CPU).choose(logits, ids, [each.generator() for each in samplings])


def test_distributions_are_those_of_transformers():
    chooser = Chooser(SETTINGS, BLANK, CPU)
    logits = scores()
    found, tokens, _ = chooser.distribution(chooser._penalised(logits, IDS))
    for row, sampling in enumerate(SETTINGS):
        if sampling.greedy:
            continue
        whole = torch.zeros(logits.shape[1]).scatter(0, tokens[row], found[row] / found[row].sum())
        expected = expected_probabilities(sampling, IDS[row], logits[row])
        torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-7)


def test_each_row_is_chosen_as_it_would_be_alone():
    logits = scores()
    together = choose(SETTINGS, logits, IDS)
    for row, sampling in enumerate(SETTINGS):
        assert choose([sampling], logits[row : row + 1], [IDS[row]]).tolist() == [int(together[row])]
    assert int(together[5]) == int(logits[5].argmax())


def test_numbers_are_drawn_in_proportion():
    probabilities = torch.tensor([[0.5, 0.25, 0.125, 0.0]]).expand(8, 4)
    numbers = torch.tensor([0.0, 0.57, 0.58, 0.85, 0.86, 0.99, 1 - 2**-24, 1.0])
    assert _draw(probabilities, numbers)[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None], ids=["nan", "inf", "nothing but -inf"])
def test_unusable_scores_become_the_blank_and_others_stay(bad):
    logits = scores(4)
    if bad is None:
        logits[[1, 2]] = -torch.inf
    else:
        logits[[1, 2], 17] = bad
    samplings = [Sampling(seed=0), Sampling(seed=0), Sampling(greedy=True), Sampling(greedy=True)]
    chosen = choose(samplings, logits, IDS[:4]).tolist()
    assert chosen[1:3] == [BLANK, BLANK]
    assert [chosen[0], chosen[3]] == choose([samplings[0], samplings[3]], logits[[0, 3]], IDS[:2]).tolist()
