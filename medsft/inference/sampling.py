"""How the next token of an answer is chosen.

Legend: B answers, V vocabulary rows, K the likeliest tokens that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any

import torch

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
            "temperature": (0 < self.temperature < inf, "above 0 and finite"),
            "repetition_penalty": (
                0 < self.repetition_penalty < inf,
                "above 0 and finite (1: none)",
            ),
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

    def generator(self) -> torch.Generator | None:
        """Random numbers of one answer; None: torch's global ones. On the CPU, whatever device computes."""
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)

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
    """Chooses the next token of several answers at once, each by its own settings.

    The distributions are those of transformers' processors (penalty, temperature, top k, top p, in this
    order); but only the likeliest tokens are sorted, and one number is drawn for each answer, so that a step
    costs a few operations for all answers together. Unusable scores become the blank, as in the release.
    """

    def __init__(self, samplings: Sequence[Sampling], blank_token_id: int, device: torch.device) -> None:
        drawn = [each for each in samplings if not each.greedy]
        self._is_drawn = bool(drawn)
        self._is_mixed = 0 < len(drawn) < len(samplings)
        self._most = max((each.top_k for each in drawn), default=0) if all(e.top_k for e in drawn) else 0
        self._penalties = {
            place: each.repetition_penalty
            for place, each in enumerate(samplings)
            if each.repetition_penalty != 1
        }
        self._blank = blank_token_id
        if drawn:
            unlimited = torch.iinfo(torch.long).max
            self._greedy = torch.tensor([each.greedy for each in samplings], device=device)
            self._temperature = torch.tensor([[each.temperature] for each in samplings], device=device)
            top_k = [[min(each.top_k or unlimited, unlimited)] for each in samplings]
            self._top_k = torch.tensor(top_k, device=device)
            # A sum of 1 is reached too early by rounding.
            top_p = [[each.top_p if each.top_p < 1 else 2.0] for each in samplings]
            self._top_p = torch.tensor(top_p, device=device)

    def choose(
        self,
        logits: torch.Tensor,
        ids: Sequence[Sequence[int]],
        generators: Sequence[torch.Generator | None],
    ) -> torch.Tensor:
        """The tokens [B] that follow `ids`, prompts included; `logits` [B, V] are the model's for them.

        Nothing here waits for the device. `generators` are asked for one number each.
        """
        scores = logits.float()
        if self._penalties:
            scores = self._penalised(scores, ids)
        if not self._is_drawn:
            highest, chosen = scores.max(dim=-1)
        else:
            probabilities, tokens, highest = self.distribution(scores)
            numbers = torch.cat([torch.rand(1, generator=generator) for generator in generators])
            chosen = tokens.gather(1, _draw(probabilities, numbers.to(scores.device)))[:, 0]
            if self._is_mixed:
                chosen = torch.where(self._greedy, scores.argmax(dim=-1), chosen)
        # NaN comes out highest, and without it +inf; -inf is highest where there is nothing else.
        return torch.where(highest.isfinite(), chosen, self._blank)

    def distribution(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of scores [B, V]: probabilities [B, K], falling, their tokens [B, K], and the highest scores [B].

        Probabilities are 0 where a token is not drawn from; the others' sum may be below 1.
        """
        num_rows = scores.shape[-1]
        top, tokens = scores.topk(min(self._most or num_rows, num_rows), dim=-1)  # [B, K]
        is_beyond = torch.arange(top.shape[-1], device=top.device) >= self._top_k
        probabilities = (top / self._temperature).masked_fill(is_beyond, -torch.inf).softmax(dim=-1)
        likelier = probabilities.cumsum(dim=-1) - probabilities
        return probabilities.masked_fill(likelier >= self._top_p, 0.0), tokens, top[:, 0]

    def _penalised(self, scores: torch.Tensor, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        scores = scores.clone()
        for place, penalty in self._penalties.items():
            used = torch.tensor(sorted(set(ids[place])), device=scores.device)
            found = scores[place, used]
            scores[place, used] = torch.where(found < 0, found * penalty, found / penalty)
        return scores


def _draw(probabilities: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Places [B, 1] in `probabilities` [B, K], drawn by `numbers` [B] between 0 and 1 (inverse transform)."""
    sums = probabilities.cumsum(dim=-1)
    drawn = (sums <= numbers[:, None] * sums[:, -1:]).sum(dim=-1, keepdim=True)
    # Rounding may lead behind the last token that can be drawn.
    return torch.minimum(drawn, (probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
