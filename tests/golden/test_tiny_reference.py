"""Our model against the numbers that the released code computed from the same toy weights."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from medsft.chatglm import ChatGLMForConditionalGeneration
from medsft.chatglm.positions import batch_positions

TINY = Path(__file__).parent / "tiny"
CASES = ("single", "batch_left_padded", "mask_token")
EVERY_NTH_LOGIT_ROW = 8


@pytest.fixture(scope="module")
def reference():
    return load_file(TINY / "reference.safetensors")


@pytest.fixture(scope="module")
def numbers():
    return json.loads((TINY / "reference.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["compact", "released .bin layout"])
def model(request):
    folder = TINY if request.param == "compact" else request.getfixturevalue("shared_dir") / "golden" / "tiny"
    return AutoModel.from_pretrained(folder, dtype=torch.float32)


def case_inputs(reference, case):
    """Ids, labels, positions as int64, and the padding mask [B, T] of a case."""
    ids, labels, positions = (
        reference[f"{case}.{part}"].long() for part in ("input_ids", "labels", "position_ids")
    )
    padding_mask = torch.zeros_like(ids)
    for row, length in enumerate(reference[f"{case}.lengths"].tolist()):
        padding_mask[row, ids.shape[1] - length :] = 1
    return ids, labels, positions, padding_mask


def test_loads_natively_tied_and_complete():
    model, info = AutoModelForCausalLM.from_pretrained(TINY, output_loading_info=True)
    assert type(model) is ChatGLMForConditionalGeneration
    assert model.dtype == torch.float16
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.num_parameters() == 1_465_216


@pytest.mark.parametrize("case", CASES)
def test_positions(reference, case):
    ids, _, positions, padding_mask = case_inputs(reference, case)
    assert torch.equal(batch_positions(ids, 1004, 1000, 1001, padding_mask), positions)


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_logits(model, reference, case):
    ids, _, _, padding_mask = case_inputs(reference, case)
    with torch.no_grad():
        out = model(ids, attention_mask=padding_mask, output_hidden_states=True)
    real = padding_mask.bool()
    torch.testing.assert_close(
        out.hidden_states[-1][real], reference[f"{case}.final_hidden"][real], atol=2e-4, rtol=0
    )
    kept = real.flatten()[::EVERY_NTH_LOGIT_ROW]
    logits = out.logits.flatten(0, 1)[::EVERY_NTH_LOGIT_ROW]
    assert kept.sum() >= 4
    torch.testing.assert_close(logits[kept], reference[f"{case}.logits"][kept], atol=2e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(model, reference, numbers, case):
    ids, labels, _, padding_mask = case_inputs(reference, case)
    model.zero_grad()
    loss = model(ids, attention_mask=padding_mask, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss.detach(), reference[f"{case}.loss"][0], atol=0, rtol=1e-5)
    parameters = dict(model.named_parameters())
    assert list(parameters) == numbers["parameters"]
    norms = torch.stack([parameter.grad.norm() for parameter in parameters.values()])
    torch.testing.assert_close(norms, reference[f"{case}.grad_norms"], atol=0, rtol=1e-3)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuations(model, numbers, use_cache):
    for example in numbers["greedy"]:
        prompt = torch.tensor([example["prompt"]])
        out = model.generate(
            prompt, max_new_tokens=24, do_sample=False, use_cache=use_cache, eos_token_id=None
        )
        assert out[0, prompt.shape[1] :].tolist() == example["greedy"]


def test_twenty_adamw_steps(numbers):
    model = AutoModel.from_pretrained(TINY, dtype=torch.float32).train()
    recipe = numbers["adamw20"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe["lr"],
        betas=recipe["betas"],
        eps=recipe["eps"],
        weight_decay=recipe["weight_decay"],
    )
    losses = []
    for step in range(20):
        batch = recipe["batches"][step % 5]
        num_targets = sum(label != -100 for example in batch for label in example["labels"])
        step_loss = 0.0
        for example in batch:
            ids, labels = torch.tensor([example["input_ids"]]), torch.tensor([example["labels"]])
            loss = model(ids, labels=labels, num_items_in_batch=num_targets).loss
            loss.backward()
            step_loss += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(step_loss)
    assert losses == pytest.approx(recipe["losses"], rel=1e-3)


def test_all_logits_of_the_full_reference(shared_dir):
    full = load_file(shared_dir / "golden" / "tiny" / "golden.safetensors")
    model = AutoModel.from_pretrained(shared_dir / "golden" / "tiny", dtype=torch.float32)
    for case in CASES:
        ids, masked = full[f"{case}.input_ids"], full[f"{case}.masked"]
        with torch.no_grad():
            out = model(ids, attention_mask=~masked[:, None], position_ids=full[f"{case}.position_ids"])
        real = ~masked.all(dim=-1)
        assert torch.isfinite(out.logits).all()
        torch.testing.assert_close(out.logits[real], full[f"{case}.logits"][real], atol=2e-4, rtol=0)
