"""Positions and masks of one sequence and of padded batches."""

import numpy as np
import pytest
import torch

from medsft.chatglm.positions import (
    batch_positions,
    batch_prefix_mask,
    context_length,
    mask_position,
    prefix_mask,
    sequence_positions,
)
from medsft.errors import UserError

PAD, MASK, GMASK, BOS = 3, 90, 91, 94


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_context_ends_before_the_first_bos(kind):
    assert context_length(kind([7, 8, GMASK, BOS, 9, BOS]), BOS) == 3


def test_gmask_goes_before_mask_wherever_it_stands():
    assert mask_position([7, MASK, 8, GMASK, BOS], MASK, GMASK) == 3
    assert mask_position([7, MASK, 8, MASK, BOS], MASK, GMASK) == 1


@pytest.mark.parametrize("ids", [[7, 8, GMASK], []])
def test_missing_bos_names_the_id_and_the_releases(ids):
    with pytest.raises(UserError, match=r"94 does not occur.*different releases"):
        context_length(ids, BOS)


def test_sequence_positions():
    assert sequence_positions(3, 6, mask_position=2).tolist() == [[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]


def test_positions_after_a_mask_inside_the_context():
    assert sequence_positions(4, 6, mask_position=1).tolist() == [[0, 1, 2, 3, 1, 1], [0, 0, 0, 0, 1, 2]]


@pytest.mark.parametrize("context", [-1, 7])
def test_context_longer_than_the_sequence_is_refused(context):
    with pytest.raises(ValueError, match="must be between 0 and the length 6"):
        sequence_positions(context, 6, mask_position=0)
    with pytest.raises(ValueError, match="must be between 0 and the length 6"):
        prefix_mask(context, 6)


def test_context_sees_the_context_and_the_answer_what_is_before():
    assert prefix_mask(2, 4).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_padded_batch_agrees_with_each_sequence_alone():
    sequences = [
        [7, 8, 9, GMASK, BOS, 5, 6],
        [7, GMASK, BOS, 5],
        [7, MASK, 8, BOS],
        [GMASK, BOS],
    ]
    length = max(map(len, sequences))
    ids = torch.tensor([[PAD] * (length - len(one)) + one for one in sequences])
    padding_mask = (ids != PAD).long()
    positions = batch_positions(ids, BOS, MASK, GMASK, padding_mask)
    mask = batch_prefix_mask(positions, padding_mask)
    assert mask.shape == (4, 1, length, length)
    for row, one in enumerate(sequences):
        start, context = length - len(one), context_length(one, BOS)
        alone = sequence_positions(context, len(one), mask_position(one, MASK, GMASK))
        assert torch.equal(positions[row, :, start:], alone)
        assert not positions[row, :, :start].any()
        assert torch.equal(mask[row, 0, start:, start:], prefix_mask(context, len(one)))
        assert not mask[row, 0, :, :start].any()
        assert mask[row, 0].any(dim=-1).all()  # not even a padding row is empty


def test_pad_tokens_that_equal_control_tokens_do_not_count():
    ids = torch.tensor([[BOS, GMASK, 7, GMASK, BOS]])
    positions = batch_positions(ids, BOS, MASK, GMASK, torch.tensor([[0, 0, 1, 1, 1]]))
    assert positions[0].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]


def test_new_tokens_see_all_that_is_cached_but_padding():
    positions = torch.tensor([[[2, 2], [4, 5]]])
    mask = batch_prefix_mask(positions, torch.tensor([[0, 1, 1, 1, 1]]), num_cached=3)
    assert mask[0, 0].int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_batch_errors_name_the_sequence_and_what_it_lacks():
    good, no_bos, no_mask = [7, GMASK, BOS], [7, GMASK, 8], [7, 8, BOS]
    with pytest.raises(UserError, match=r"sequence 1 of the batch has no <sop> \(bos_token_id 94\)"):
        batch_positions(torch.tensor([good, no_bos]), BOS, MASK, GMASK)
    with pytest.raises(UserError, match=r"sequence 1 of the batch has no \[gMASK\] \(gmask_token_id 91\)"):
        batch_positions(torch.tensor([good, no_mask]), BOS, MASK, GMASK)
