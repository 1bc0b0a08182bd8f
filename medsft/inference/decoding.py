"""Answers generated side by side: each begins as soon as there is room and leaves as soon as it is complete.

Legend: B rows (answers in the making), P tokens of a prompt, S slots of the cache, H heads, D head dim,
V vocabulary rows. Rows are aligned at their right end, so that the next token of each goes into the same
slot; slots before a row's first token are masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from medsft.chatglm.generation import blank_token_id
from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.chatglm.positions import batch_positions
from medsft.inference.sampling import Chooser, Sampling

_SPARE_SLOTS = 64
"""Room that a cache gets beyond what it needs, so that not every step copies it."""


class SlotCache:
    """Keys and values of all layers, each [B, H, slots and spare ones, D]; what the model asks of a cache."""

    def __init__(self) -> None:
        self.num_slots = 0
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots that are filled."""
        return self.num_slots

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Slots that are filled once the tokens of this call are in, and the first slot's number."""
        return self.num_slots + query_length, 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts new keys and values [B, H, T, D] behind the filled slots; gives all filled ones."""
        end = self.num_slots + key.shape[2]
        if layer_idx == len(self._layers):
            self._layers.append((_with_room(key, 0, 0, end), _with_room(value, 0, 0, end)))
        elif end > self._layers[layer_idx][0].shape[2]:
            keys, values = self._layers[layer_idx]
            self._layers[layer_idx] = tuple(
                _with_room(item, self.num_slots, 0, end) for item in (keys, values)
            )
        keys, values = self._layers[layer_idx]
        keys[:, :, self.num_slots : end], values[:, :, self.num_slots : end] = key, value
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """The tokens of this call have been put in by every layer."""
        self.num_slots += num_tokens

    def join(self, other: SlotCache) -> None:
        """Takes in the rows of another cache, behind its own."""
        width = max(self.num_slots, other.num_slots)
        if self._layers:
            self._layers = [
                tuple(
                    torch.cat(
                        [cache._aligned(item, width) for cache, item in ((self, mine), (other, theirs))]
                    )
                    for mine, theirs in zip(own, new, strict=True)
                )
                for own, new in zip(self._layers, other._layers, strict=True)
            ]
        else:
            self._layers = other._layers
        self.num_slots = width

    def _aligned(self, tensor: torch.Tensor, width: int) -> torch.Tensor:
        return _with_room(tensor, self.num_slots, width - self.num_slots, width)

    def keep(self, rows: list[int], num_slots: int) -> None:
        """Keeps these rows, and of the filled slots the last `num_slots`."""
        first = self.num_slots - num_slots
        self._layers = (
            [tuple(item[rows, :, first:] for item in layer) for layer in self._layers] if rows else []
        )
        self.num_slots = num_slots


def _with_room(tensor: torch.Tensor, num_slots: int, first: int, width: int) -> torch.Tensor:
    """The first `num_slots` slots of a tensor, put at slot `first` of `width` and some spare ones.

    Zeros elsewhere: masked slots must hold numbers, as an attention weight of 0 times NaN is NaN.
    """
    rows, heads, _, dim = tensor.shape
    roomy = tensor.new_zeros(rows, heads, width + _SPARE_SLOTS, dim)
    roomy[:, :, first : first + num_slots] = tensor[:, :, :num_slots]
    return roomy


@dataclass(eq=False)
class Row:
    """One answer in the making.

    ids: prompt and answer so far, the end token left out. num_prompt_tokens: how many of them are the
    prompt. generator: its random numbers. next_position: both positions of the newest token, which the model
    has not read yet. num_cached: tokens that it has read. finish: None while the answer goes on, "stop" after
    the end token, "length" at the longest that `sampling` allows.
    """

    ids: list[int]
    num_prompt_tokens: int
    sampling: Sampling
    generator: torch.Generator | None
    next_position: tuple[int, int]
    num_cached: int
    finish: str | None = None

    @property
    def answer_ids(self) -> list[int]:
        """Ids of the answer so far."""
        return self.ids[self.num_prompt_tokens :]


class Decoder:
    """Answers of one model that are decoded together, one token each a step.

    What a step needs of its rows is on the model's device and follows from the step before; it is made anew
    when a row joins or leaves.
    """

    def __init__(self, model: ChatGLMForConditionalGeneration) -> None:
        eos = model.config.eos_token_id
        self._ends = {eos} if isinstance(eos, int) else set(eos or ())
        self._blank = blank_token_id(model.config)
        self._model = model
        self._cache = SlotCache()
        self.rows: list[Row] = []
        self._tokens = torch.empty(0, 1, dtype=torch.long)  # [B, 1], not read yet
        self._positions = torch.empty(0, 2, 1, dtype=torch.long)  # [B, 2, 1] of these
        self._starts: torch.Tensor | None = None  # [B, 1], first slot of each row; None: all are 0
        self._chooser: Chooser | None = None

    @torch.inference_mode()
    def add(self, prompt_ids: list[int], sampling: Sampling) -> Row:
        """Reads a prompt (`… [gMASK] <sop>`) and chooses the first token of its answer.

        The row takes part in the next `step`, unless it is finished already.
        """
        assert sampling.num_beams == 1, "beams are followed by transformers' generate"
        config, device = self._model.config, self._model.device
        input_ids = torch.tensor([prompt_ids])
        positions = batch_positions(
            input_ids, config.bos_token_id, config.mask_token_id, config.gmask_token_id
        )  # [1, 2, P]
        cache = SlotCache()
        logits = self._model(
            input_ids=input_ids.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            logits_to_keep=1,
        ).logits[:, -1]  # [1, V]
        cache.advance(len(prompt_ids))
        row_0, row_1 = positions[0, :, -1].tolist()
        row = Row(
            ids=list(prompt_ids),
            num_prompt_tokens=len(prompt_ids),
            sampling=sampling,
            generator=sampling.generator(),
            next_position=(row_0, row_1 + 1),
            num_cached=len(prompt_ids),
        )
        chooser = Chooser([sampling], self._blank, logits.device)
        self._append(row, int(chooser.choose(logits, [row.ids], [row.generator])))
        if row.finish is None:
            self._cache.join(cache)
            self.rows.append(row)
            self._chooser = None
        return row

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """One more token for each row; gives the rows that took part. Finished ones have left."""
        taking_part = list(self.rows)
        if not taking_part:
            return []
        if self._chooser is None:
            self._line_up()
        mask = None
        if self._starts is not None:
            mask = torch.arange(self._cache.num_slots + 1, device=self._starts.device) >= self._starts
        logits = self._model(
            input_ids=self._tokens,
            attention_mask=mask,  # [B, S]
            position_ids=self._positions,
            past_key_values=self._cache,
        ).logits[:, -1]  # [B, V]
        self._cache.advance(1)
        ids, generators = zip(*((row.ids, row.generator) for row in taking_part), strict=True)
        chosen = self._chooser.choose(logits, ids, generators)
        self._tokens = chosen[:, None].to(self._positions.device)
        self._positions[:, 1] += 1
        for row, token in zip(taking_part, chosen.tolist(), strict=True):  # here the device is waited for
            row.num_cached += 1
            row.next_position = row.next_position[0], row.next_position[1] + 1
            self._append(row, token)
        self.leave([row for row in taking_part if row.finish is not None])
        return taking_part

    def leave(self, rows: list[Row]) -> None:
        """These rows take no part any more."""
        kept = [number for number, row in enumerate(self.rows) if row not in rows]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[number] for number in kept]
            self._cache.keep(kept, max((row.num_cached for row in self.rows), default=0))
            self._chooser = None

    def _line_up(self) -> None:
        device = self._model.device
        self._tokens = torch.tensor([row.ids[-1:] for row in self.rows], device=device)
        self._positions = torch.tensor([row.next_position for row in self.rows], device=device)[:, :, None]
        starts = [[self._cache.num_slots - row.num_cached] for row in self.rows]
        self._starts = torch.tensor(starts, device=device) if any(start for (start,) in starts) else None
        self._chooser = Chooser([row.sampling for row in self.rows], self._blank, device)

    def _append(self, row: Row, token: int) -> None:
        if token in self._ends:
            row.finish = "stop"
            return
        row.ids.append(token)
        if len(row.answer_ids) >= row.sampling.max_new_tokens:
            row.finish = "length"
