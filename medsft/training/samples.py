"""What the model answers while it is being trained, to the same few questions each time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from medsft.chatglm.base import BaseModel
from medsft.data.dataset import EncodedDataset
from medsft.data.encode import encode_prompt
from medsft.engine.distributed import World, from_all
from medsft.engine.watchdog import now_at
from medsft.monitor.reporter import Reporter
from medsft.monitor.sink import Sample

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

T = TypeVar("T")

FROM_THE_BOX = ("我最近感觉很累，可能是什么原因？", "请用一句话介绍一下北京。")
"""A medical question and a general one, asked in every run."""
NUM_FROM_DATA = 2
"""So many come from the validation data, or else the training data, with the answers expected there."""
MAX_NEW_TOKENS = 64


@dataclass(frozen=True)
class Prompt:
    """ids: the question in its template, with [gMASK] and <sop>."""

    question: str
    expected: str
    ids: tuple[int, ...]


def fixed_prompts(base: BaseModel, data: EncodedDataset) -> list[Prompt]:
    """The first examples of `data` that leave room for an answer, then the questions from the box."""
    tokenizer = base.tokenizer
    room = base.config.max_sequence_length - MAX_NEW_TOKENS - 2  # [gMASK] and <sop>
    prompts = []
    for example in (data[number] for number in range(len(data))):
        ids, context = [int(token) for token in example.input_ids], int(example.context_length)
        if len(prompts) == NUM_FROM_DATA:
            break
        if context - 1 <= room:
            question, expected = tokenizer.decode(ids[: context - 1]), tokenizer.decode(ids[context + 1 : -1])
            prompts.append(Prompt(question, expected, tuple(ids[: context + 1])))
    for question in FROM_THE_BOX:
        ids, _ = encode_prompt(question, (), tokenizer, room, data.summary.template)
        prompts.append(Prompt(question, "", (*ids, tokenizer.gmask_token_id, tokenizer.bos_token_id)))
    return prompts


class Samples:
    """Asks the same questions every `every` steps and after the last one; never where that is None.

    A failure that all ranks meet alike is logged once, and nothing is asked any more: the training is worth
    more. One that a single rank meets amid the others cannot be left behind, as they wait for it there.
    """

    def __init__(
        self,
        every: int | None,
        engine: DeepSpeedEngine,
        base: BaseModel,
        data: EncodedDataset,
        reporter: Reporter,
        world: World,
    ) -> None:
        self._every = every
        self._engine = engine
        self._base = base
        self._data = data
        self._prompts: list[Prompt] | None = None
        self._reporter = reporter
        self._world = world

    def after_step(self, step: int, is_last: bool) -> None:
        """After step `step` (from 0): asks and reports, if it is time to. A collective."""
        done = step + 1
        if self._every is not None and (is_last or done % self._every == 0):
            now_at(f"the samples after step {done}")
            if samples := self._ask():
                self._reporter.samples(done, samples)

    def _ask(self) -> list[Sample]:
        """The answers; none after a failure."""
        if self._prompts is None:
            # Before any rank waits for another: reading the data may fail on one host alone.
            self._prompts = self._agreed(lambda: fixed_prompts(self._base, self._data))
        prompts = self._prompts
        if not prompts:
            return []
        return self._agreed(lambda: answer(self._engine, prompts, self._base, self._world)) or []

    def _agreed(self, work: Callable[[], T]) -> T | None:
        """What some work gives; None where it fails on any rank, and then nothing is asked any more."""
        made, fault = None, None
        try:
            made = work()
        except Exception as error:
            fault = str(error) or type(error).__name__
        fault = next((text for text in from_all(self._world, fault) if text is not None), None)
        if fault is None:
            return made
        self._every = None
        if self._world.is_main:
            logger.warning("the samples cannot be made (%s); the training goes on without them", fault)
        return None


@torch.no_grad()
def answer(engine: DeepSpeedEngine, prompts: list[Prompt], base: BaseModel, world: World) -> list[Sample]:
    """Greedy answers, all side by side. A collective.

    Under ZeRO-3 each rank holds a slice of every weight, so all ranks take part in each token; one whose
    answers are complete goes on until all are (`synced_gpus`). No random number is drawn, and no weight
    changes: the losses of the run are those of one without samples.
    """
    tokenizer, width = base.tokenizer, max(len(prompt.ids) for prompt in prompts)
    ids = torch.full((len(prompts), width), base.pad_token_id)  # [prompts, longest], padded on the left
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    engine.eval()
    try:
        output = engine.module.generate(
            input_ids=ids.to(world.device),
            attention_mask=mask.to(world.device),
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            synced_gpus=world.size > 1,
        )
    finally:
        engine.train()
    texts = [tokenizer.decode(row[width:].tolist(), skip_special_tokens=True) for row in output.cpu()]
    return [
        Sample(prompt.question, text, prompt.expected) for prompt, text in zip(prompts, texts, strict=True)
    ]
