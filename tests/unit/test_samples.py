"""Questions to a model in training: which they are, when they are asked, and what a failure does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsft.engine.distributed import World
from medsft.training import samples
from medsft.training.samples import FROM_THE_BOX, Samples, fixed_prompts

GMASK, SOP, EOP = 1, 2, 3
ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture(autouse=True)
def without_ranks(monkeypatch):
    monkeypatch.setattr(samples, "from_all", lambda world, value: [value])


class Letters:
    """A tokenizer whose tokens are characters."""

    gmask_token_id, bos_token_id = GMASK, SOP

    def encode_plain(self, text):
        return [ord(letter) for letter in text]

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(number) for number in ids if number > EOP)


class Data:
    """Pairs as rows of tokens."""

    summary = SimpleNamespace(template="none")

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        question, answer = self.rows[number]
        ids = [*map(ord, question), GMASK, SOP, *map(ord, answer), EOP]
        return SimpleNamespace(input_ids=np.array(ids), context_length=len(question) + 1)


BASE = SimpleNamespace(tokenizer=Letters(), config=SimpleNamespace(max_sequence_length=100), pad_token_id=0)


class Engine:
    """One whose model repeats the last letter of each question twice, or fails."""

    def __init__(self, fault=None):
        self.module = self
        self.calls = []
        self._fault = fault

    def eval(self):
        self.calls.append("eval")

    def train(self):
        self.calls.append("train")

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample, synced_gpus):
        self.calls.append("generate")
        if self._fault:
            raise self._fault
        assert not do_sample and not synced_gpus
        assert ((attention_mask == 0) == (input_ids == 0)).all()
        assert (attention_mask.diff(dim=1) >= 0).all()  # padded on the left
        assert (input_ids[:, -2:] == torch.tensor([GMASK, SOP])).all()
        return torch.cat([input_ids, input_ids[:, -3:-2].repeat(1, 2)], dim=1)


def test_the_questions_are_of_the_data_and_of_the_box():
    data = Data((("长" * 50, "x"), ("甲", "乙丙"), ("丁", "戊"), ("己", "庚")))
    first, second, *rest = fixed_prompts(BASE, data)  # the long one leaves no room for an answer
    assert (first.question, first.expected) == ("甲", "乙丙")
    assert first.ids == (ord("甲"), GMASK, SOP)
    assert (second.question, second.expected) == ("丁", "戊")
    assert tuple(prompt.question for prompt in rest) == FROM_THE_BOX
    assert [prompt.expected for prompt in rest] == ["", ""]


class Told:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.of_step = {}

    def samples(self, done, samples):
        self.of_step[done] = samples


def test_answers_come_every_so_many_steps_and_at_the_end():
    engine, told = Engine(), Told()
    asked = Samples(4, engine, BASE, Data((("甲头", "乙丙"),)), told, ALONE)
    for step in range(10):
        asked.after_step(step, is_last=step == 9)
    assert list(told.of_step) == [4, 8, 10]
    first, *rest = told.of_step[4]
    assert (first.question, first.answer, first.expected) == ("甲头", "头头", "乙丙")
    assert [sample.answer for sample in rest] == [question[-1] * 2 for question in FROM_THE_BOX]
    assert engine.calls == ["eval", "generate", "train"] * 3


def test_nobody_asks_unless_told_to():
    engine, told = Engine(), Told()
    Samples(None, engine, BASE, Data(()), told, ALONE).after_step(9, is_last=True)
    assert (engine.calls, told.of_step) == ([], {})


def test_a_failure_ends_the_samples_and_not_the_training(caplog):
    engine, told = Engine(RuntimeError("no kernel")), Told()
    asked = Samples(1, engine, BASE, Data((("甲", "乙"),)), told, ALONE)
    asked.after_step(0, is_last=False)
    asked.after_step(1, is_last=True)
    assert not told.of_step
    assert engine.calls == ["eval", "generate", "train"]  # or dropout and the like would stay off
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "the samples cannot be made (no kernel); the training goes on without them"
