"""Ways to attend: one dense mask, every example in a row of its own, or two calls over packed segments.

Legend: B batch, T tokens of a row, S slots that can be seen, H heads, D head dim, R = B * T flattened rows,
n segments, L longest of them, C tokens of context in all.

All ways compute the same: softmax(q kᵀ / sqrt(D)) v over the keys that a query may see (prefix language
model: GLM, arXiv 2103.10360, section 2). They differ in what they compute in vain: a dense mask over a packed
row of 16 examples throws more than nine tenths of its scores away, 8 % of a step of 164 million parameters on
a CPU (docs/performance.md) and, by the formula, 4 % of one of ChatGLM-6B.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Protocol, Self

import torch
from torch.nn import functional as F

_VARLEN = "torch.nn.attention.varlen"
_AMPERE = (8, 0)
_LARGEST_HEAD = 256
# Fused kernels want masks aligned to 8 elements, and fewer shapes keep the allocator quiet.
_MULTIPLE = 8


class Attend(Protocol):
    """Queries [B, H, T, D], keys and values [B, H, S, D] to context [B, H, T, D]."""

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor: ...


class _Movable:
    """A dataclass whose tensors can go to another device together."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in values.items()
            if hasattr(value, "to")
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Segments(_Movable):
    """The examples of a micro-batch end to end over its flattened rows; padding is one without context.

    Attributes:
        sizes: int64 [2, n], tokens of context and tokens in all of each segment, in the order of the rows.
        longest, longest_context, longest_answer, num_context: sizes of all of them as numbers, so that no
            GPU is waited for.
    """

    sizes: torch.Tensor
    longest: int
    longest_context: int
    longest_answer: int
    num_context: int

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]]) -> Self:
        """From (tokens of context, tokens in all) of each segment."""
        contexts, lengths = zip(*sizes, strict=True)
        return cls(
            torch.tensor(sizes).T.contiguous(),
            max(lengths),
            max(contexts),
            max(length - context for context, length in sizes),
            sum(contexts),
        )

    def pin_memory(self) -> Self:
        """The same in page-locked memory."""
        return replace(self, sizes=self.sizes.pin_memory())

    @property
    def width(self) -> int:
        """Places of a row that holds one segment."""
        return -(-self.longest // _MULTIPLE) * _MULTIPLE

    @property
    def num_pairs(self) -> int:
        """Pairs of query and key that are computed with every segment in a row of its own."""
        return self.sizes.shape[1] * self.width**2

    def numbers(self, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each of `num_rows` rows the number of its segment, and its own within that, int64 [R]."""
        lengths = self.sizes[1]
        device = lengths.device
        segment = torch.arange(len(lengths), device=device).repeat_interleave(lengths, output_size=num_rows)
        return segment, torch.arange(num_rows, device=device) - (lengths.cumsum(0) - lengths)[segment]


@dataclass(frozen=True)
class Dense(_Movable):
    """One call with a mask [B, 1, T, S], True = may attend, or None: all may."""

    mask: torch.BoolTensor | None

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As `Attend`."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)


@dataclass(frozen=True)
class Apart(_Movable):
    """One call in which every segment has a row of its own, filled up to the longest.

    Attributes:
        rows: int64 [n * L], the flattened row that stands at each place; behind a segment's end some other,
            which nobody sees and whose result nobody takes, so that its gradient is exactly 0.
        places: int64 [R], the place of each row.
        mask: bool [n, 1, L, L].
    """

    rows: torch.Tensor
    places: torch.Tensor
    mask: torch.BoolTensor

    @classmethod
    def of(cls, segments: Segments, num_rows: int) -> Self:
        """For `num_rows` flattened rows."""
        contexts, lengths = segments.sizes[:, :, None, None]  # each [n, 1, 1]
        place = torch.arange(segments.width, device=lengths.device)
        starts = lengths.cumsum(0) - lengths
        rows = (starts[:, 0] + place).clamp(max=num_rows - 1)
        mask = ((place < contexts) | (place <= place[:, None])) & (place < lengths)  # [n, L, L]
        segment, within = segments.numbers(num_rows)
        return cls(rows.flatten(), segment * segments.width + within, mask[:, None])

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As `Attend`."""
        width = self.mask.shape[-1]
        apart = (
            _flat(part).index_select(0, self.rows).unflatten(0, (-1, width)).transpose(1, 2)
            for part in (query, key, value)
        )  # each [n, H, L, D]
        context = F.scaled_dot_product_attention(*apart, attn_mask=self.mask)
        return _as_before(_flat(context).index_select(0, self.places), query)


@dataclass(frozen=True)
class TwoCalls(_Movable):
    """Two calls of flash attention over segments of any length, without a mask or padding.

    Context attends to context, in both directions. What comes after attends to context and itself, causally:
    aligned at the end, so that the last query sees every key of its segment.

    Attributes:
        context, answer: int64 [C] and [R - C], the flattened rows of each.
        places: int64 [R], where each row stands in the two results, one behind the other.
        context_ends, answer_ends, ends: int32 [n + 1], tokens up to each segment, from 0 on.
        segments: their sizes.
    """

    context: torch.Tensor
    answer: torch.Tensor
    places: torch.Tensor
    context_ends: torch.Tensor
    answer_ends: torch.Tensor
    ends: torch.Tensor
    segments: Segments

    @classmethod
    def of(cls, segments: Segments, num_rows: int) -> Self:
        """For `num_rows` flattened rows."""
        contexts, lengths = segments.sizes
        segment, within = segments.numbers(num_rows)
        order = torch.argsort(within >= contexts[segment], stable=True)
        context, answer = order[: segments.num_context], order[segments.num_context :]
        ends = (_ends(sizes) for sizes in (contexts, lengths - contexts, lengths))
        return cls(context, answer, order.argsort(), *ends, segments)

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """As `Attend`."""
        kernel, sizes = _varlen_kernel(), self.segments
        parts = _flat(query), _flat(key), _flat(value)  # each [R, H, D]
        results = []
        if sizes.num_context:
            own = (part.index_select(0, self.context) for part in parts)
            longest = sizes.longest_context
            results.append(kernel(*own, self.context_ends, self.context_ends, longest, longest, False))
        query_rows = parts[0].index_select(0, self.answer)
        ends = self.answer_ends, self.ends
        results.append(kernel(query_rows, *parts[1:], *ends, sizes.longest_answer, sizes.longest, True))
        return _as_before(torch.cat(results).index_select(0, self.places), query)


WAYS: Mapping[str, Callable[[Segments, int], Attend]] = {"apart": Apart.of, "two calls": TwoCalls.of}
"""Ways that need no mask, by name."""


@cache
def choose(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """Name in `WAYS` of the way for packed rows on a device, and why. Needs no GPU to be asked for one."""
    kernel = "two calls of flash attention, nothing computed in vain"
    if device.type != "cuda":
        return "apart", "every example in a row of its own: torch has no flash attention by segments on a CPU"
    if dtype not in (torch.float16, torch.bfloat16):
        return "apart", f"every example in a row of its own: flash attention does not compute in {dtype}"
    if torch.cuda.get_device_capability(device) < _AMPERE:
        return "apart", "every example in a row of its own: flash attention needs compute capability 8.0"
    if head_dim > _LARGEST_HEAD or head_dim % _MULTIPLE:
        return "apart", f"every example in a row of its own: flash attention takes no heads of {head_dim}"
    if importlib.util.find_spec(_VARLEN) is None:
        return "apart", f"every example in a row of its own: torch {torch.__version__} has no {_VARLEN}"
    return "two calls", kernel


def over_segments(segments: Segments, num_rows: int, row_length: int, way: str) -> Attend | None:
    """The way named, or None where a dense mask over `num_rows` rows of `row_length` computes no more pairs.

    That is so with a single example, or one that is much longer than the others.
    """
    if way == "apart" and segments.num_pairs >= num_rows * row_length:
        return None
    return WAYS[way](segments, num_rows)


def _flat(part: torch.Tensor) -> torch.Tensor:
    """[B, H, T, D] to [B * T, H, D]."""
    return part.transpose(1, 2).flatten(0, 1)


def _as_before(context: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """[B * T, H, D] to [B, H, T, D]."""
    return context.unflatten(0, (query.shape[0], query.shape[2])).transpose(1, 2)


def _ends(sizes: torch.Tensor) -> torch.Tensor:
    return F.pad(sizes.cumsum(0), (1, 0)).int()


@cache
def _varlen_kernel() -> Callable[..., torch.Tensor]:
    """torch's `varlen_attn` with a last argument `causal`, which has changed its name between releases."""
    varlen_attn: Any = importlib.import_module(_VARLEN).varlen_attn
    has_window = "window_size" in inspect.signature(varlen_attn).parameters

    def attend(*arguments: Any) -> torch.Tensor:
        *tensors, causal = arguments
        if not causal:
            return varlen_attn(*tensors)
        return varlen_attn(*tensors, **({"window_size": (-1, 0)} if has_window else {"is_causal": True}))

    return attend
