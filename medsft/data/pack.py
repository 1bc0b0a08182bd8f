"""A micro-batch of examples -> the tensors the model takes.

Shape legend: B rows, T tokens in a row, N supervised targets.

An example is `prompt [gMASK] <sop> answer <eop>`; its context is everything before `<sop>`. Packed, a
micro-batch is one row of several examples, each with its own positions and its own block of the mask; padded,
it is one example a row, filled up on the left as the reference does. Both give the same loss and gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from medsft.chatglm.attention import Segments
from medsft.chatglm.positions import prefix_mask, sequence_positions
from medsft.data.encode import Tokens

IGNORED = -100
"""Label of a token that is not supervised."""

LENGTH_MULTIPLE = 8
"""Rows are filled up to a multiple of this: fused attention wants masks aligned to 8 and fewer different
shapes keep the memory allocator quiet, at a cost of 3.5 slots a row on average."""

DUMMY_LENGTH = 2
"""Tokens in the micro-batch of a rank that has no example left but must run the same passes as the others."""


@dataclass(frozen=True)
class MicroBatch:
    """Tensors of one forward and backward pass.

    Attributes:
        input_ids: int64 [B, T].
        position_ids: int64 [B, 2, T], row 0 position, row 1 position within the answer.
        attention_mask: bool [B, 1, T, T], True where the query (dim 2) may attend to the key (dim 3).
        labels: int64 [B, T], aligned with `input_ids` (the shift is in the model), -100 = not supervised.
        target_rows: int64 [N], ascending: flattened B·T indices of the rows whose NEXT token is supervised.
        segments: who sees whom once more, as the sizes of the examples and of the padding between them.
        num_tokens: useful tokens, padding not counted.
        num_examples: examples in it; 0 for a dummy.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    target_rows: torch.Tensor
    segments: Segments
    num_tokens: int
    num_examples: int

    @property
    def num_slots(self) -> int:
        """B·T: what the pass computes, padding included."""
        return self.input_ids.numel()

    @property
    def num_targets(self) -> int:
        return self.target_rows.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MicroBatch":
        """The same on another device."""
        moved = {
            name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.model_inputs().items()
        }
        return replace(self, **moved)

    def pin_memory(self) -> "MicroBatch":
        """The same in page-locked memory, from which a copy to the GPU can run in the background."""
        return replace(self, **{name: tensor.pin_memory() for name, tensor in self.model_inputs().items()})

    def model_inputs(self) -> dict[str, torch.Tensor | Segments]:
        """Keyword arguments of `ChatGLMForConditionalGeneration.forward`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor | Segments)}


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def packed_slots(lengths: Sequence[int], multiple: int = LENGTH_MULTIPLE) -> int:
    """Slots of the packed micro-batch of examples of these lengths, without building it."""
    return _round_up(int(sum(lengths)), multiple) if len(lengths) else DUMMY_LENGTH


def padded_slots(lengths: Sequence[int], multiple: int = LENGTH_MULTIPLE) -> int:
    """Slots of the padded micro-batch of examples of these lengths, without building it."""
    return len(lengths) * _round_up(int(max(lengths)), multiple) if len(lengths) else DUMMY_LENGTH


def pack(examples: Sequence[Tokens], pad_token_id: int, multiple: int = LENGTH_MULTIPLE) -> MicroBatch:
    """All examples in one row, B = 1; T is the sum of their lengths, rounded up to `multiple`.

    Padding stands at the end, sees only itself and is not supervised. No example: a dummy of two padding
    tokens without targets.
    """
    if not examples:
        return _lay_out([], [], 1, DUMMY_LENGTH, pad_token_id)
    lengths = [len(example.input_ids) for example in examples]
    starts = [(0, int(start)) for start in np.cumsum([0, *lengths[:-1]])]
    return _lay_out(examples, starts, 1, packed_slots(lengths, multiple), pad_token_id)


def pad(examples: Sequence[Tokens], pad_token_id: int, multiple: int = LENGTH_MULTIPLE) -> MicroBatch:
    """One example a row; T is the longest length, rounded up to `multiple`.

    Padding stands on the left, sees only itself and is not supervised. No example: as in `pack`.
    """
    if not examples:
        return _lay_out([], [], 1, DUMMY_LENGTH, pad_token_id)
    lengths = [len(example.input_ids) for example in examples]
    width = _round_up(max(lengths), multiple)
    starts = [(row, width - length) for row, length in enumerate(lengths)]
    return _lay_out(examples, starts, len(examples), width, pad_token_id)


def _lay_out(
    examples: Sequence[Tokens],
    starts: Sequence[tuple[int, int]],
    num_rows: int,
    width: int,
    pad_token_id: int,
) -> MicroBatch:
    """Write each example at its (row, column) of an otherwise padded micro-batch."""
    input_ids = torch.full((num_rows, width), pad_token_id, dtype=torch.int64)
    position_ids = torch.zeros(num_rows, 2, width, dtype=torch.int64)
    labels = torch.full((num_rows, width), IGNORED, dtype=torch.int64)
    # Each padding token attends to itself, as a softmax over nothing would be NaN.
    attention_mask = torch.eye(width, dtype=torch.bool).repeat(num_rows, 1, 1)
    num_tokens = num_done = 0
    sizes: list[tuple[int, int]] = []  # (context, all) of segments, end to end over the flattened rows
    for example, (row, start) in zip(examples, starts, strict=True):
        length, context = len(example.input_ids), int(example.context_length)
        assert 1 <= context < length, "an example is [gMASK] <sop> at least"
        end = start + length
        if padding := row * width + start - num_done:
            sizes.append((0, padding))
        sizes.append((context, length))
        num_done = row * width + end
        input_ids[row, start:end] = torch.from_numpy(np.array(example.input_ids, dtype=np.int64))
        # [gMASK] is the last token of the context: its position is that of the whole answer.
        position_ids[row, :, start:end] = sequence_positions(context, length, context - 1)
        attention_mask[row, start:end, start:end] = prefix_mask(context, length)
        labels[row, start + context : end] = input_ids[row, start + context : end]
        num_tokens += length
    if num_done < num_rows * width:
        sizes.append((0, num_rows * width - num_done))
    # The row before each supervised token predicts it. A row's first token is never supervised, so the
    # neighbour on the left is always one of the same row and the same example.
    target_rows = (labels.view(-1) != IGNORED).nonzero().view(-1) - 1
    return MicroBatch(
        input_ids,
        position_ids,
        attention_mask[:, None],
        labels,
        target_rows,
        Segments.of(sizes),
        num_tokens,
        len(examples),
    )
