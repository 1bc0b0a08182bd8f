"""Two-dimensional positions and the prefix mask of GLM.

Legend: B batch, T tokens of this call, S tokens that can be seen (cached ones included), c context length.

A sequence is `context <sop> answer <eop>`; the context holds the mask token (`[gMASK]` or `[MASK]`), and c is
the index of `<sop>`. Row 0 of the positions counts 0 … c-1 over the context and stays at the mask token's
position from `<sop>` on; row 1 is 0 over the context and counts 1, 2, 3 … from `<sop>` on. Context tokens see
the whole context, later tokens see the context and everything before them (GLM, arXiv 2103.10360, section 2;
checked against the released ChatGLM-6B code). So "row 1 is 0" says "this token is context", and the mask
follows from the positions alone.
"""

from collections.abc import Sequence

import numpy as np
import torch

from medsft.errors import UserError


def context_length(input_ids: Sequence[int] | np.ndarray | torch.Tensor, bos_token_id: int) -> int:
    """Number of tokens before the first `<sop>` of one unpadded sequence.

    Raises UserError if there is none, which mostly means that tokenizer and config are of different releases.
    """
    return _first_index(input_ids, bos_token_id, "<sop> (bos_token_id)")


def mask_position(
    input_ids: Sequence[int] | np.ndarray | torch.Tensor, mask_token_id: int, gmask_token_id: int
) -> int:
    """Index of the token that the answer stands for: the first `[gMASK]`, else the first `[MASK]`.

    Raises UserError if there is neither.
    """
    ids = np.asarray(input_ids)
    if (ids == gmask_token_id).any():
        return _first_index(ids, gmask_token_id, "[gMASK] (gmask_token_id)")
    return _first_index(ids, mask_token_id, f"[gMASK] ({gmask_token_id}) or [MASK] (mask_token_id)")


def sequence_positions(context_length: int, length: int, mask_position: int) -> torch.LongTensor:
    """Positions [2, length] of one unpadded sequence of `length` tokens, `context_length` of them context."""
    if not 0 <= context_length <= length:
        raise ValueError(f"context_length is {context_length}, must be between 0 and the length {length}")
    positions = torch.zeros(2, length, dtype=torch.long)
    positions[0, :context_length] = torch.arange(context_length)
    positions[0, context_length:] = mask_position
    positions[1, context_length:] = torch.arange(1, length - context_length + 1)
    return positions


def prefix_mask(context_length: int, length: int) -> torch.BoolTensor:
    """Mask [length, length] of one sequence; True where the row's token may attend to the column's token."""
    if not 0 <= context_length <= length:
        raise ValueError(f"context_length is {context_length}, must be between 0 and the length {length}")
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[:, :context_length] = True
    return mask


def batch_positions(
    input_ids: torch.LongTensor,
    bos_token_id: int,
    mask_token_id: int,
    gmask_token_id: int,
    padding_mask: torch.Tensor | None = None,
) -> torch.LongTensor:
    """Positions [B, 2, T] of whole sequences, read off their control tokens.

    `padding_mask` [B, T] holds 0 at padding. Left padding gets position 0 and does not count, as in the
    reference. Raises UserError if a sequence lacks `<sop>` or a mask token.
    """
    length = input_ids.shape[1]
    index = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    real = torch.ones_like(input_ids, dtype=torch.bool) if padding_mask is None else padding_mask.bool()
    num_left_padding = real.int().argmax(dim=1, keepdim=True)  # index of the first real token, [B, 1]

    context, found = _first_indices(input_ids, bos_token_id, real)
    _require(found, f"<sop> (bos_token_id {bos_token_id})")
    gmask, has_gmask = _first_indices(input_ids, gmask_token_id, real)
    mask, has_mask = _first_indices(input_ids, mask_token_id, real)
    _require(has_gmask | has_mask, f"[gMASK] (gmask_token_id {gmask_token_id}) nor [MASK] ({mask_token_id})")
    target = torch.where(has_gmask, gmask, mask) - num_left_padding  # [B, 1]

    in_context = index < context
    row_0 = torch.where(in_context, (index - num_left_padding).clamp(min=0), target)
    row_1 = torch.where(in_context, 0, index - context + 1)
    return torch.stack((row_0, row_1), dim=1)


def batch_prefix_mask(
    position_ids: torch.LongTensor, padding_mask: torch.Tensor | None = None, num_cached: int = 0
) -> torch.BoolTensor:
    """Mask [B, 1, T, S] for the T tokens at `position_ids` [B, 2, T] that follow `num_cached` tokens.

    `padding_mask` [B, S] holds 0 at padding, which nobody sees. Cached tokens are seen by all: a context is
    never split over two calls, since its first half would have to see the second.
    """
    batch, _, length = position_ids.shape
    device = position_ids.device
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    is_context = position_ids[:, 1] == 0  # [B, T]
    visible = causal | is_context[:, None, :]  # [B, T, T]
    if num_cached:
        cached = torch.ones(batch, length, num_cached, dtype=torch.bool, device=device)
        visible = torch.cat((cached, visible), dim=2)  # [B, T, S]
    if padding_mask is not None:
        visible = visible & padding_mask.bool()[:, None, :]
    return visible[:, None]


def _first_index(input_ids: Sequence[int] | np.ndarray | torch.Tensor, token_id: int, what: str) -> int:
    found = np.flatnonzero(np.asarray(input_ids) == token_id)
    if found.size == 0:
        raise UserError(
            f"{what} = {token_id} does not occur in a sequence of {len(input_ids)} tokens. Prompts end with "
            "[gMASK] <sop>; if they do, tokenizer and config.json are of different releases "
            "(v1.1 has [gMASK] = 130001, v0.1 has 150001)."
        )
    return int(found[0])


def _first_indices(
    input_ids: torch.LongTensor, token_id: int, real: torch.BoolTensor
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """Index of each row's first unpadded `token_id` (0 if none) and whether there is one, both [B, 1]."""
    hits = (input_ids == token_id) & real
    return hits.int().argmax(dim=1, keepdim=True), hits.any(dim=1, keepdim=True)


def _require(found: torch.BoolTensor, what: str) -> None:
    if not bool(found.all()):
        row = int((~found).flatten().nonzero()[0])
        raise UserError(
            f"sequence {row} of the batch has no {what}. Prompts end with [gMASK] <sop>; if they do, "
            "tokenizer and config.json are of different releases (v1.1 has [gMASK] = 130001, v0.1 has "
            "150001). Without such tokens, pass position_ids [batch, 2, tokens]."
        )
