"""Every way to attend gives what one dense mask gives, forward and backward; and which one is taken, why."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration, attention
from medsft.chatglm.attention import WAYS, Dense, Segments, choose, over_segments
from medsft.data.dataset import Row
from medsft.data.pack import MicroBatch, pack, pad

PAD, GMASK, SOP, EOP = 3, 97, 98, 99
HEADS, HEAD_DIM = 2, 64


def row(num_context: int, num_answer: int) -> Row:
    ids = np.random.default_rng(num_context).integers(5, 90, num_context + num_answer)
    ids[num_context - 1 : num_context + 1] = GMASK, SOP
    ids[-1] = EOP
    return Row(ids, num_context)


ROWS = [row(6, 5), row(1, 9), row(12, 2), row(3, 17)]
BATCHES = {
    "packed": pack(ROWS, PAD),
    "packed to the end": pack([row(5, 3), row(2, 6)], PAD),
    "padded": pad(ROWS, PAD),
    "one example": pack(ROWS[:1], PAD),
    "none": pack([], PAD),
}


def kernel_by_hand(query, key, value, query_ends, key_ends, longest_query, longest_key, causal):
    """What flash attention over segments promises; its causal mask is aligned at each segment's end."""
    results = []
    spans = (pairwise(ends.tolist()) for ends in (query_ends, key_ends))
    for (start, end), (key_start, key_end) in zip(*spans, strict=True):
        queries, keys = end - start, key_end - key_start
        assert queries <= longest_query and keys <= longest_key
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries if causal else keys)
        parts = (query[start:end], key[key_start:key_end], value[key_start:key_end])
        heads_first = (part.transpose(0, 1) for part in parts)  # [H, rows, D]
        results.append(F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(0, 1))
    return torch.cat(results)


def real_rows(batch: MicroBatch) -> torch.Tensor:
    """Flattened rows that are no padding."""
    segment, _ = batch.segments.numbers(batch.num_slots)
    return (batch.segments.sizes[0][segment] > 0).nonzero()[:, 0]


def attended(way: str, batch: MicroBatch, parts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Context of the real rows, and the gradients of query, key and value for a loss over these rows."""
    parts = [part.clone().requires_grad_() for part in parts]  # each [B, H, T, D]
    attend = Dense(batch.attention_mask) if way == "dense" else WAYS[way](batch.segments, batch.num_slots)
    context = attend(*parts)
    assert context.shape == parts[0].shape
    kept = context.transpose(1, 2).flatten(0, 1)[real_rows(batch)]
    (kept.float() ** 2).sum().backward()
    return [kept.detach(), *(part.grad for part in parts)]


def random_parts(batch: MicroBatch, dtype: torch.dtype) -> list[torch.Tensor]:
    count, length = batch.input_ids.shape
    chance = torch.Generator().manual_seed(0)
    return [torch.randn(count, HEADS, length, HEAD_DIM, generator=chance, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_the_dense_mask(monkeypatch, way, name):
    """In double, on the CPU; flash attention itself is stood in for by what it promises."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: kernel_by_hand)
    parts = random_parts(BATCHES[name], torch.float64)
    found, expected = (attended(one, BATCHES[name], parts) for one in (way, "dense"))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_way_of_this_gpu_is_the_dense_mask(name, dtype):
    """The kernels themselves, against the dense mask in fp32 on the CPU."""
    batch, device = BATCHES[name].to("cuda"), torch.device("cuda")
    parts = random_parts(BATCHES[name], torch.float32)
    expected = attended("dense", BATCHES[name], parts)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for way in {choose(device, dtype, HEAD_DIM)[0], "apart"}:
        found = attended(way, batch, [part.to(device, dtype) for part in parts])
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.cpu().float(), theirs, rtol=tolerance, atol=tolerance)


def test_two_calls_by_hand():
    """Contexts of 2 and 0 (padding) and 1 tokens in segments of 5, 2 and 3."""
    made = attention.TwoCalls.of(Segments.of([(2, 5), (0, 2), (1, 3)]), 10)
    assert made.context.tolist() == [0, 1, 7]
    assert made.answer.tolist() == [2, 3, 4, 5, 6, 8, 9]
    assert made.context_ends.tolist() == [0, 2, 2, 3]
    assert made.answer_ends.tolist() == [0, 3, 5, 7]
    assert made.ends.tolist() == [0, 5, 7, 10]
    assert torch.cat([made.context, made.answer])[made.places].tolist() == list(range(10))


def test_sizes_of_a_micro_batch():
    packed, padded = BATCHES["packed"].segments, BATCHES["padded"].segments
    assert packed.sizes.T.tolist() == [[6, 11], [1, 10], [12, 14], [3, 20], [0, 1]]
    assert padded.sizes.T.tolist()[:3] == [[0, 13], [6, 11], [0, 14]]  # rows of 24, padding on the left
    assert (packed.longest, packed.longest_context, packed.longest_answer) == (20, 12, 17)
    assert (packed.num_context, packed.width, packed.num_pairs) == (22, 24, 5 * 24**2)


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_model_in_every_way(monkeypatch, way):
    """Loss and gradients, with and without gradient checkpointing."""
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: kernel_by_hand)
    config = ChatGLMConfig(
        vocab_size=104, hidden_size=32, num_layers=2, num_attention_heads=2, inner_hidden_size=64,
        bos_token_id=SOP, eos_token_id=EOP, gmask_token_id=GMASK, mask_token_id=96, pad_token_id=PAD,
    )  # fmt: skip
    torch.manual_seed(0)
    dense = ChatGLMForConditionalGeneration(config).double().train()
    found = []
    for recompute in (False, True):
        model = copy.deepcopy(dense)
        model.transformer.attention_way = way
        if recompute:
            model.recompute_activations()
        found.append(model)
    inputs = BATCHES["packed"].model_inputs()
    dense_inputs = {name: value for name, value in inputs.items() if name != "segments"}
    losses = [model(**given).loss for model, given in ((dense, dense_inputs), *((m, inputs) for m in found))]
    for loss in losses:
        loss.backward()
    for model, loss in zip(found, losses[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-7, atol=0)
        for mine, theirs in zip(model.parameters(), dense.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "capability", "expected", "reason"),
    [
        ("cpu", torch.float32, 128, None, "apart", "on a CPU"),
        ("cuda", torch.bfloat16, 128, (9, 0), "two calls", "nothing computed in vain"),
        ("cuda", torch.float16, 128, (7, 0), "apart", "compute capability 8.0"),
        ("cuda", torch.float32, 128, (9, 0), "apart", "torch.float32"),
        ("cuda", torch.bfloat16, 260, (9, 0), "apart", "heads of 260"),
    ],
)
def test_the_way_follows_from_the_device(monkeypatch, device, dtype, head_dim, capability, expected, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    way, why = choose.__wrapped__(torch.device(device), dtype, head_dim)
    assert way == expected and reason in why


def test_a_torch_without_the_kernel(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(attention, "_VARLEN", "torch.nn.no_such_module")
    way, why = choose.__wrapped__(torch.device("cuda"), torch.bfloat16, 128)
    assert way == "apart" and "has no torch.nn.no_such_module" in why


@pytest.mark.parametrize("has_window", [False, True])
def test_both_names_of_the_causal_argument(monkeypatch, has_window):
    """torch 2.13 calls it window_size, earlier ones is_causal."""
    calls = []
    if has_window:
        monkeypatch.setattr(
            "torch.nn.attention.varlen.varlen_attn",
            lambda *_, window_size=(-1, -1): calls.append(window_size),
        )
    else:
        monkeypatch.setattr(
            "torch.nn.attention.varlen.varlen_attn", lambda *_, is_causal=False: calls.append(is_causal)
        )
    kernel = attention._varlen_kernel.__wrapped__()
    kernel("q", "k", False)
    kernel("q", "k", True)
    assert calls == ([(-1, -1), (-1, 0)] if has_window else [False, True])


def test_the_dense_mask_where_it_computes_no_more():
    one, many = BATCHES["one example"], BATCHES["packed"]
    for batch, expected in ((one, type(None)), (many, attention.Apart)):
        way = over_segments(batch.segments, batch.num_slots, batch.num_slots, "apart")
        assert isinstance(way, expected)
