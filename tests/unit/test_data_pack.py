"""Micro-batches, against the model and against a mask written out by hand."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.weights import load_model
from medsft.data.dataset import Row
from medsft.data.pack import MicroBatch, pack, packed_slots, pad, padded_slots

PAD, GMASK, SOP, EOP = 3, 97, 98, 99


def row(num_prompt: int, num_answer: int, seed: int = 0) -> Row:
    text = np.random.default_rng(seed).integers(5, 90, num_prompt + num_answer)
    ids = np.array([*text[:num_prompt], GMASK, SOP, *text[num_prompt:], EOP], dtype=np.int32)
    return Row(ids, num_prompt + 1)


ROWS = [row(5, 3, 1), row(2, 7, 2), row(1, 1, 3), row(9, 4, 4), row(0, 2, 5)]


def test_packed_row_by_hand():
    batch = pack([row(1, 1, 0), row(0, 1, 1)], PAD)
    a, b, c = (
        int(ids) for ids in (row(1, 1, 0).input_ids[0], row(1, 1, 0).input_ids[3], row(0, 1, 1).input_ids[2])
    )
    assert batch.input_ids.tolist() == [[a, GMASK, SOP, b, EOP, GMASK, SOP, c, EOP] + [PAD] * 7]
    assert batch.position_ids.tolist() == [
        [[0, 1, 1, 1, 1, 0, 0, 0, 0] + [0] * 7, [0, 0, 1, 2, 3, 0, 1, 2, 3] + [0] * 7]
    ]
    assert batch.labels.tolist() == [[-100, -100, SOP, b, EOP, -100, SOP, c, EOP] + [-100] * 7]
    assert batch.target_rows.tolist() == [1, 2, 3, 5, 6, 7]
    visible = [
        "11.......",
        "11.......",
        "111......",
        "1111.....",
        "11111....",
        ".....1...",
        ".....11..",
        ".....111.",
        ".....1111",
    ]
    wanted = np.eye(16, dtype=bool)
    wanted[:9, :9] = [[sign == "1" for sign in line] for line in visible]
    assert (batch.attention_mask[0, 0].numpy() == wanted).all()
    assert (batch.num_tokens, batch.num_slots, batch.num_examples, batch.num_targets) == (9, 16, 2, 6)


def test_padded_rows_by_hand():
    batch = pad([row(1, 1, 0), row(0, 1, 1)], PAD, multiple=1)
    a, b, c = (
        int(ids) for ids in (row(1, 1, 0).input_ids[0], row(1, 1, 0).input_ids[3], row(0, 1, 1).input_ids[2])
    )
    assert batch.input_ids.tolist() == [[a, GMASK, SOP, b, EOP], [PAD, GMASK, SOP, c, EOP]]
    assert batch.position_ids.tolist() == [
        [[0, 1, 1, 1, 1], [0, 0, 1, 2, 3]],
        [[0, 0, 0, 0, 0], [0, 0, 1, 2, 3]],
    ]
    assert batch.labels.tolist() == [[-100, -100, SOP, b, EOP], [-100, -100, SOP, c, EOP]]
    assert batch.target_rows.tolist() == [1, 2, 3, 6, 7, 8]
    assert batch.attention_mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 1, 1, 1],
    ]
    assert (batch.num_tokens, batch.num_slots, batch.num_examples, batch.num_targets) == (9, 10, 2, 6)


@pytest.mark.parametrize("lay_out", [pack, pad])
def test_types_and_shapes(lay_out):
    batch = lay_out(ROWS, PAD)
    rows, width = batch.input_ids.shape
    assert width % 8 == 0
    inputs = batch.model_inputs()
    assert inputs.pop("segments").sizes.sum(dim=1)[1] == rows * width
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "input_ids": ((rows, width), torch.int64),
        "position_ids": ((rows, 2, width), torch.int64),
        "attention_mask": ((rows, 1, width, width), torch.bool),
        "labels": ((rows, width), torch.int64),
        "target_rows": ((batch.num_targets,), torch.int64),
    }
    assert batch.num_targets == sum(len(r.input_ids) - r.context_length for r in ROWS)
    moved = batch.to("meta")
    moved_inputs = moved.model_inputs()
    devices = {tensor.device.type for tensor in (moved_inputs.pop("segments").sizes, *moved_inputs.values())}
    assert devices == {"meta"}
    assert moved.num_tokens == batch.num_tokens


def test_slots_are_known_beforehand():
    for number in range(len(ROWS) + 1):
        lengths = [len(r.input_ids) for r in ROWS[:number]]
        for multiple in (1, 8):
            assert packed_slots(lengths, multiple) == pack(ROWS[:number], PAD, multiple).num_slots
            assert padded_slots(lengths, multiple) == pad(ROWS[:number], PAD, multiple).num_slots


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    torch.manual_seed(0)
    config = ChatGLMConfig(
        vocab_size=104,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        inner_hidden_size=64,
        max_sequence_length=64,
        bos_token_id=SOP,
        eos_token_id=EOP,
        gmask_token_id=GMASK,
        mask_token_id=96,
        pad_token_id=PAD,
    )
    model = ChatGLMForConditionalGeneration(config).double().train()
    with torch.no_grad():  # weights at which attention matters, so that a leak would show
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def loss_and_gradients(model, batches: list[MicroBatch]) -> tuple[float, dict[str, torch.Tensor]]:
    num_targets = sum(batch.num_targets for batch in batches)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch.model_inputs(), num_items_in_batch=num_targets).loss
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("multiple", [1, 8])
def test_packed_padded_and_single_agree(model, multiple):
    single = loss_and_gradients(model, [pad([r], PAD, 1) for r in ROWS])
    for batches in (
        [pack(ROWS, PAD, multiple)],
        [pad(ROWS, PAD, multiple)],
        [pack(ROWS[:2], PAD, multiple), pack([], PAD, multiple), pad(ROWS[2:], PAD, multiple)],
    ):
        loss, gradients = loss_and_gradients(model, batches)
        assert loss == pytest.approx(single[0], rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, single[1][name], rtol=1e-6, atol=1e-9, msg=name)


def test_the_model_reads_the_same_positions_and_mask_by_itself(model):
    batch = pad(ROWS, PAD, 1)
    padding_mask = torch.zeros_like(batch.input_ids)
    for index, example in enumerate(ROWS):
        padding_mask[index, -len(example.input_ids) :] = 1
    with torch.no_grad():
        ours = model(**batch.model_inputs()).loss
        its = model(input_ids=batch.input_ids, attention_mask=padding_mask, labels=batch.labels).loss
    assert ours.item() == pytest.approx(its.item(), rel=1e-9)


def test_nobody_sees_a_neighbour(model):
    changed = [ROWS[0], row(2, 7, 20), *ROWS[2:]]
    with torch.no_grad():
        before, after = (model(**pack(rows, PAD).model_inputs()).logits for rows in (ROWS, changed))
    num_targets = [len(r.input_ids) - r.context_length for r in ROWS]
    start, end = num_targets[0], num_targets[0] + num_targets[1]
    assert torch.equal(before[:start], after[:start]) and torch.equal(before[end:], after[end:])
    assert not torch.equal(before[start:end], after[start:end])


@pytest.mark.parametrize("lay_out", [pack, pad])
def test_a_dummy_reaches_every_parameter_with_zero(model, lay_out):
    dummy = lay_out([], PAD)
    assert (dummy.num_slots, dummy.num_tokens, dummy.num_examples, dummy.num_targets) == (2, 0, 0, 0)
    model.zero_grad()
    loss = model(**dummy.model_inputs(), num_items_in_batch=7).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def reference_case(shared_dir) -> tuple[dict[str, torch.Tensor], list[Row]]:
    """The reference's tensors of a left-padded batch, and its sequences without their padding."""
    prefix = "batch_left_padded."
    tensors = load_file(shared_dir / "golden" / "tiny" / "golden.safetensors")
    case = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    sequences = [ids[ids != PAD].numpy() for ids in case["input_ids"]]
    return case, [Row(ids, int(np.flatnonzero(ids == 1004)[0])) for ids in sequences]


def test_padded_rows_are_those_of_the_reference(shared_dir):
    case, rows = reference_case(shared_dir)
    batch = pad(rows, PAD, multiple=1)
    for name in ("input_ids", "position_ids", "labels"):
        assert torch.equal(getattr(batch, name), case[name]), name
    real = case["input_ids"] != PAD
    assert torch.equal(batch.attention_mask[:, 0][real], ~case["masked"][real])


@pytest.mark.parametrize("lay_out", [pack, pad])
def test_loss_is_that_of_the_reference(shared_dir, lay_out):
    case, rows = reference_case(shared_dir)
    model = load_model(shared_dir / "golden" / "tiny", torch.float32, "cpu")
    with torch.no_grad():
        loss = model(**lay_out(rows, PAD).model_inputs()).loss
    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-5)
