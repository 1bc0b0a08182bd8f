"""How the next token of an answer is chosen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from medsft.chatglm.generation import InvalidScoreLogitsProcessor, blank_token_id
from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Settings of one answer. The defaults are the release's.

    max_new_tokens: longest answer, in tokens. greedy: always the most likely token; top_p, top_k and
    temperature then have no effect. top_p: the smallest set of tokens whose probabilities add up to it is
    drawn from. top_k: at most so many are; 0: no limit. repetition_penalty: above 1, tokens that occur in
    prompt or answer become less likely (CTRL, arXiv 1909.05858). num_beams: above 1, that many answers are
    followed at once and the likeliest is given; it comes whole, not token by token. seed: the same one gives
    the same answer; None: torch's global state decides.

    Raises UserError for values that make no sense, all of them together.
    """

    max_new_tokens: int = 512
    greedy: bool = False
    top_p: float = 0.7
    top_k: int = 50
    temperature: float = 0.95
    repetition_penalty: float = 1.0
    num_beams: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        allowed = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "0 (no limit) or more"),
            "temperature": (0 < self.temperature < float("inf"), "above 0"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0 (1: none)"),
            "num_beams": (self.num_beams >= 1, "at least 1"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "between 0 and 2**63 - 1"),
        }
        wrong = [
            f"{field.name} is {getattr(self, field.name)}, must be {allowed[field.name][1]}"
            for field in fields(self)
            if not allowed.get(field.name, (True,))[0]
        ]
        if wrong:
            raise UserError(f"an answer cannot be generated so: {'; '.join(wrong)}.")

    def generate_arguments(self) -> dict[str, Any]:
        """The same as arguments of transformers' `generate`; the seed is not among them."""
        shared = {
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "num_beams": self.num_beams,
        }
        if self.greedy:
            return {**shared, "do_sample": False}
        chosen = {"top_k": self.top_k, "top_p": self.top_p, "temperature": self.temperature}
        return {**shared, "do_sample": True, **chosen}


class Chooser:
    """Chooses the tokens of one answer, one after the other; holds the state of its random numbers."""

    def __init__(self, sampling: Sampling, model: ChatGLMForConditionalGeneration) -> None:
        self._greedy = sampling.greedy
        self._processors = LogitsProcessorList([InvalidScoreLogitsProcessor(blank_token_id(model.config))])
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not sampling.greedy:  # in the order of transformers' generate
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self._generator = None
        if sampling.seed is not None:
            self._generator = torch.Generator(model.device).manual_seed(sampling.seed)

    def choose(self, ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """The token [1] that follows `ids`, prompt included; `logits` [V] are the model's for it."""
        input_ids = torch.tensor([ids], device=logits.device)
        scores = self._processors(input_ids, logits[None].float())
        if self._greedy:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator)[0]
