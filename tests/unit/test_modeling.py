"""The model's own promises, on toys with random weights. Parity with the release: tests/golden."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.init import count_parameters
from medsft.chatglm.modeling import supervised_rows
from medsft.chatglm.positions import prefix_mask, sequence_positions
from medsft.chatglm.rotary import inverse_frequencies, rotary_tables
from medsft.errors import UserError

PAD, MASK, GMASK, BOS, EOP = 3, 90, 91, 94, 95
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_layers": 3,
    "num_attention_heads": 4,
    "inner_hidden_size": 128,
    "bos_token_id": BOS,
    "eos_token_id": EOP,
    "pad_token_id": PAD,
}
SEQUENCES = ([7, 8, 9, GMASK, BOS, 15, 16, EOP], [17, GMASK, BOS, 25, EOP], [27, MASK, 28, BOS, 35, EOP])


def make_model(**changes):
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**SHAPE, **changes}))
    with torch.no_grad():  # biases and norms that matter
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def labels_of(sequence):
    context = sequence.index(BOS)
    return [-100] * context + sequence[context:]


def padded_batch(side="left"):
    """Ids, labels and padding mask [B, T] of SEQUENCES."""
    length = max(map(len, SEQUENCES))
    rows = []
    for one in SEQUENCES:
        gap = length - len(one)
        parts = (one, [PAD] * gap), (labels_of(one), [-100] * gap), ([1] * len(one), [0] * gap)
        rows.append([filler + real if side == "left" else real + filler for real, filler in parts])
    return (torch.tensor(column) for column in zip(*rows, strict=True))


def packed_row(extra_slots=2):
    """SEQUENCES in one row with empty slots behind them, as the data room packs them."""
    length = sum(map(len, SEQUENCES)) + extra_slots
    ids, labels = torch.full((1, length), PAD), torch.full((1, length), -100)
    positions = torch.zeros(1, 2, length, dtype=torch.long)
    mask = torch.zeros(1, 1, length, length, dtype=torch.bool)
    start = 0
    for one in SEQUENCES:
        here, context = slice(start, start + len(one)), one.index(BOS)
        ids[0, here], labels[0, here] = torch.tensor(one), torch.tensor(labels_of(one))
        target = one.index(GMASK) if GMASK in one else one.index(MASK)
        positions[0, :, here] = sequence_positions(context, len(one), target)
        mask[0, 0, here, here] = prefix_mask(context, len(one))
        start += len(one)
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "attention_mask": mask}


def loss_and_gradients(model, **inputs):
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same(left, right, rtol=1e-5):
    torch.testing.assert_close(left[0], right[0], rtol=rtol, atol=0)
    for name, gradient in left[1].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            right[1][name], gradient, rtol=0, atol=max(scale, 1e-3) * 10 * rtol, msg=name
        )


# --- names, classes, files


def test_auto_classes_give_the_native_model(tmp_path):
    make_model().save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        assert type(auto.from_pretrained(tmp_path)) is ChatGLMForConditionalGeneration
    assert type(AutoConfig.from_pretrained(tmp_path)) is ChatGLMConfig
    # Released folders name their own code; nobody is asked whether to run it.
    assert "AutoModel" in json.loads((tmp_path / "config.json").read_text())["auto_map"]


def test_parameter_names_are_the_releases(shared_dir):
    index = json.loads((shared_dir / "chatglm6b" / "v1.1" / "pytorch_model.bin.index.json").read_text())
    released = {name for name in index["weight_map"] if not name.endswith("inv_freq")}
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig())
    assert set(model.state_dict()) == released
    assert model.num_parameters() == count_parameters(model.config) == 6_173_286_400


@pytest.mark.parametrize("release", ["v1.1", "v0.1"])
def test_released_configs(shared_dir, release):
    config = AutoConfig.from_pretrained(shared_dir / "chatglm6b" / release)
    first = {"v1.1": 130000, "v0.1": 150000}[release]
    assert (config.mask_token_id, config.gmask_token_id, config.bos_token_id) == (first, first + 1, first + 4)
    assert config.vocab_size == first + 528
    assert (config.num_hidden_layers, config.max_position_embeddings, config.head_dim) == (28, 2048, 128)
    assert config.tie_word_embeddings


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load(tmp_path, tied):
    model = make_model(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.transformer.word_embeddings.weight) == tied
    assert model.num_parameters() == count_parameters(model.config)
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) != tied
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["ChatGLMForConditionalGeneration"]
    assert written["torch_dtype"] == written["dtype"] == "float32"
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (again.lm_head.weight is again.transformer.word_embeddings.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_tied_tensors_that_differ_are_both_kept(tmp_path):
    model = make_model(tie_word_embeddings=False)
    model.config.tie_word_embeddings = True  # what such a file's config says
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert torch.equal(again.transformer.word_embeddings.weight, model.transformer.word_embeddings.weight)


def test_missing_weights_are_initialised_and_loaded_ones_kept(tmp_path):
    model = make_model()
    weights = model.state_dict()
    del weights["transformer.layers.1.mlp.dense_4h_to_h.weight"], weights["lm_head.weight"]
    model.save_pretrained(tmp_path, state_dict=dict(weights))
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"transformer.layers.1.mlp.dense_4h_to_h.weight"}
    fresh = again.transformer.layers[1].mlp.dense_4h_to_h.weight
    assert fresh.std().item() == pytest.approx((2 / 160) ** 0.5, rel=0.1)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 30}, "hidden_size 30 is not a multiple"),
        ({"num_layers": 0}, "num_layers is 0, must be at least 1"),
        ({"gmask_token_id": 500}, "gmask_token_id 500 lies outside the vocabulary of 128 rows"),
        ({"position_encoding_2d": False}, "position_encoding_2d is false"),
        ({"pre_seq_len": 128}, "pre_seq_len is 128"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(UserError, match=message):
        ChatGLMConfig(**{**SHAPE, **changes})


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(UserError, match="cannot be quantised to 3 bits"):
        ChatGLMForConditionalGeneration(ChatGLMConfig(**SHAPE, quantization_bit=3))


# --- rotary


def test_frequencies_are_rounded_to_fp16_at_every_released_width():
    for rotary_dim in (4, 8, 16, 32, 64):
        exact = 1.0 / (10000 ** (torch.arange(0, rotary_dim, 2).float() / rotary_dim))
        assert torch.equal(inverse_frequencies(rotary_dim), exact.half().float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_does_not_follow_the_model_to_half_precision(dtype):
    positions = torch.tensor([[[0, 1, 1999], [0, 3, 700]]])
    tables = rotary_tables(positions, head_dim=64, dtype=torch.float32)
    assert torch.equal(rotary_tables(positions, 64, dtype)[0], tables[0].to(dtype))
    assert not list(make_model().to(dtype).buffers())


# --- loss, masks, packing


def test_rows_that_predict_a_supervised_token():
    labels = torch.tensor([[-100, 5, 6], [-100, -100, 7], [8, -100, -100]])
    assert supervised_rows(labels).tolist() == [0, 1, 4]  # the first token of a row is predicted by none


def test_head_runs_on_supervised_rows_only():
    model, (ids, labels, mask) = make_model(), padded_batch()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    out = model(ids, attention_mask=mask, labels=labels)
    num_targets = sum(len(one) - one.index(BOS) for one in SEQUENCES)
    assert seen == [num_targets] and out.logits.shape == (num_targets, 128)
    full = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(out.logits, full.flatten(0, 1)[supervised_rows(labels)])
    expected = torch.nn.functional.cross_entropy(full[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)


def test_loss_is_divided_by_the_number_given():
    model, (ids, labels, mask) = make_model(), padded_batch()
    mean = model(ids, attention_mask=mask, labels=labels).loss
    num_targets = len(supervised_rows(labels))
    for divisor in (7, 7.0, torch.tensor(7)):
        loss = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=divisor).loss
        torch.testing.assert_close(loss * 7, mean * num_targets)


def test_target_rows_given_are_used():
    model, (ids, labels, mask) = make_model(), padded_batch()
    rows = supervised_rows(labels)
    out = model(ids, attention_mask=mask, labels=labels, target_rows=rows[:3], num_items_in_batch=3)
    every = model(ids, attention_mask=mask, labels=labels)
    torch.testing.assert_close(out.logits, every.logits[:3])


def test_padding_and_packing_leave_loss_and_gradients_alone():
    model = make_model()
    num_targets = sum(len(one) - one.index(BOS) for one in SEQUENCES)
    alone = [
        loss_and_gradients(
            model,
            input_ids=torch.tensor([one]),
            labels=torch.tensor([labels_of(one)]),
            num_items_in_batch=num_targets,
        )
        for one in SEQUENCES
    ]
    summed = (
        sum(loss for loss, _ in alone),
        {name: sum(gradients[name] for _, gradients in alone) for name in alone[0][1]},
    )
    for side in ("left", "right"):
        ids, labels, mask = padded_batch(side)
        assert_same(summed, loss_and_gradients(model, input_ids=ids, attention_mask=mask, labels=labels))
    assert_same(summed, loss_and_gradients(model, **packed_row()))


def test_empty_slots_of_a_pack_give_no_nan():
    model = make_model()
    inputs = packed_row(extra_slots=5)
    assert not inputs["attention_mask"][0, 0, -5:].any()
    loss, gradients = loss_and_gradients(model, **inputs)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    with torch.no_grad():
        del inputs["labels"]
        assert torch.isfinite(model(**inputs).logits).all()


def test_no_supervised_row_gives_zero_loss_through_every_parameter():
    for tied in (True, False):
        model, (ids, labels, mask) = make_model(tie_word_embeddings=tied), padded_batch()
        loss, gradients = loss_and_gradients(
            model, input_ids=ids, attention_mask=mask, labels=torch.full_like(labels, -100)
        )
        assert loss == 0
        assert all(gradient.abs().max() == 0 for gradient in gradients.values())


def test_gradient_checkpointing_changes_nothing():
    model, (ids, labels, mask) = make_model().train(), padded_batch()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    before = loss_and_gradients(model, **inputs)
    calls = []
    for layer in model.transformer.layers:
        layer.attention.register_forward_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable()
    after = loss_and_gradients(model, **inputs)
    assert len(calls) == 2 * model.config.num_layers  # once forward, once again on the way back
    assert torch.equal(before[0], after[0])
    assert all(torch.equal(gradient, after[1][name]) for name, gradient in before[1].items())


def test_blocks_are_compiled_but_not_for_generating(monkeypatch):
    """What the compiler makes of them is compared with a plain loop in test_one_loss_curve.py."""
    calls = []

    def stand_in(forward, dynamic):
        assert dynamic  # rows have another length in every step

        def compiled(*args, **kwargs):
            calls.append(1)
            return forward(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", stand_in)
    model, (ids, labels, mask) = make_model(), padded_batch()
    before = model(ids, attention_mask=mask, labels=labels).loss
    names = [name for name, _ in model.named_parameters()]
    model.compile_blocks()
    assert torch.equal(model(ids, attention_mask=mask, labels=labels).loss, before)
    assert len(calls) == model.config.num_layers
    model(ids, attention_mask=mask, use_cache=True)
    assert len(calls) == model.config.num_layers
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_loss_in_fp32(dtype):
    model, (ids, labels, mask) = make_model(), padded_batch()
    exact = model(ids, attention_mask=mask, labels=labels).loss
    model = copy.deepcopy(model).to(dtype)
    out = model(ids, attention_mask=mask, labels=labels)
    assert out.logits.dtype == dtype and out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(exact.item(), rel=0.02)
    out.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_masks_of_the_wrong_form_are_refused():
    model, (ids, _, mask) = make_model(), padded_batch()
    with pytest.raises(ValueError, match="must be boolean"):
        model(ids, attention_mask=torch.zeros(3, 1, 8, 8))
    with pytest.raises(ValueError, match=r"must be \[batch, 8\]"):
        model(ids, attention_mask=mask[:, :-1], position_ids=torch.zeros(3, 2, 8, dtype=torch.long))


def test_positions_that_cannot_be_known_are_asked_for():
    model = make_model()
    with pytest.raises(UserError, match="position_ids"):
        model(inputs_embeds=torch.zeros(1, 4, 32))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_training_keeps_no_cache():
    model = make_model()
    ids = torch.tensor([SEQUENCES[0]])
    assert model.train()(ids).past_key_values is None
    assert model.eval()(ids).past_key_values is not None
    assert model.eval()(ids, labels=ids).past_key_values is None


def test_builds_on_the_meta_device_without_work():
    with torch.device("meta"):
        model = ChatGLMForConditionalGeneration(ChatGLMConfig())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
