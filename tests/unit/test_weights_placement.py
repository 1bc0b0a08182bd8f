"""One model on several devices: which block goes where, and that everything a block needs goes with it."""

from pathlib import Path

import pytest
import torch

from medsft.chatglm import ChatGLMConfig
from medsft.chatglm.attention import Apart, Dense, Segments
from medsft.chatglm.weights import load_model, placement
from medsft.chatglm.weights.check import model_on_meta
from medsft.chatglm.weights.placement import (
    check_host_memory,
    connect,
    device_of,
    devices_of_blocks,
    num_bytes,
    place,
)
from medsft.errors import UserError
from medsft.inference import responder
from medsft.inference.decoding import Decoder, SlotCache
from medsft.inference.device import choose_devices
from medsft.inference.sampling import Sampling

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CPU, META = torch.device("cpu"), torch.device("meta")
GREEDY = Sampling(max_new_tokens=6, greedy=True)


def test_devices_get_blocks_as_they_have_room():
    assert devices_of_blocks(4, 10, 0, [1, 1]) == [0, 0, 1, 1]
    assert devices_of_blocks(4, 10, 20, [1, 1]) == [0, 1, 1, 1]  # the first has the embedding too
    assert devices_of_blocks(6, 10, 0, [2, 1]) == [0, 0, 0, 0, 1, 1]
    assert devices_of_blocks(3, 10, 90, [1, 1, 1]) == [2, 2, 2]
    assert devices_of_blocks(2, 10, 0, [5]) == [0, 0]


@pytest.mark.parametrize("bits", [0, 4])
def test_every_parameter_has_a_place(bits, monkeypatch):
    model = model_on_meta(ChatGLMConfig(quantization_bit=bits))
    devices = [torch.device("cuda", number) for number in range(2)]
    monkeypatch.setattr(placement, "_free_bytes", lambda device: 10)
    found = place(model, torch.float16, devices)
    numbers = [device_of(name, found).index for name, _ in model.named_parameters() if ".layers." in name]
    assert numbers == sorted(numbers)
    on_first = sum(found[f"transformer.layers.{number}"].index == 0 for number in range(28))
    assert on_first == (13 if bits == 0 else 9)
    for name in ("transformer.word_embeddings.weight", "transformer.final_layernorm.bias", "lm_head.weight"):
        assert device_of(name, found) == devices[0]


def test_a_model_in_parts_answers_as_the_whole_one():
    whole, parts = load_model(TINY, "fp32"), load_model(TINY, "fp32", [CPU, CPU])
    assert "transformer.layers.27" in parts.hf_device_map
    prompt = [7, 8, 9, parts.config.gmask_token_id, parts.config.bos_token_id]
    answers = []
    for model in (whole, parts):
        decoder = Decoder(model)
        rows = [decoder.add(prompt[cut:], GREEDY) for cut in (0, 2)]  # of two lengths: with a mask
        while decoder.rows:
            decoder.step()
        answers.append([row.answer_ids for row in rows])
    assert answers[0] == answers[1]


def test_a_block_on_another_device_gets_all_it_needs_there():
    """The second device is torch's meta, which computes shapes only, but refuses tensors from elsewhere."""
    model = load_model(TINY, "fp32")
    layers = model.transformer.layers
    names = ("transformer.word_embeddings", "transformer.final_layernorm", "lm_head")
    places = dict.fromkeys(names, CPU)
    connect(model, places | {f"transformer.layers.{number}": META for number in range(len(layers))})
    hidden, tables = torch.zeros(2, 5, model.config.hidden_size), torch.zeros(2, 5, 1, model.config.head_dim)
    segments = Apart.of(Segments.of([(2, 5), (2, 5)]), 10)
    for attend in (Dense(torch.ones(2, 1, 5, 5, dtype=torch.bool)), Dense(None), segments):
        out = layers[3](hidden, rotary=(tables, tables), attend=attend, past_key_values=None)
        assert out.device == META
    cache = SlotCache()
    layers[0](hidden, rotary=(tables, tables), attend=Dense(None), past_key_values=cache)
    assert cache._layers[0][0].device == META


@pytest.mark.parametrize(("quantize", "gigabytes"), [(None, 24.7), (8, 7.8), (4, 5.0)])
def test_weights_that_the_host_cannot_hold_are_refused(quantize, gigabytes, monkeypatch):
    """Before a byte of them is read; what they take is what docs/inference.md says of ChatGLM-6B."""
    model = model_on_meta(ChatGLMConfig(quantization_bit=quantize or 0))
    need_bytes = num_bytes(model, torch.float32)
    assert round(need_bytes / 1e9, 1) == gigabytes
    monkeypatch.setattr(placement, "free_memory_bytes", lambda: need_bytes)
    check_host_memory(TINY, need_bytes)
    monkeypatch.setattr(placement, "free_memory_bytes", lambda: need_bytes - 1)
    with pytest.raises(UserError, match=rf"tiny takes {gigabytes} GB .* --quantize 8 or 4"):
        check_host_memory(TINY, need_bytes)


def test_loading_asks_what_is_free(monkeypatch):
    monkeypatch.setattr(placement, "free_memory_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"tiny takes 0\.0 GB in this host's memory"):
        load_model(TINY)


def test_a_gpu_that_is_too_small_is_told(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(responder, "open_tokenizer", lambda folder: None)
    monkeypatch.setattr(responder, "load_model", full)
    with pytest.raises(UserError, match=r"tiny does not fit into the memory of cpu\. Give --quantize 8 or 4"):
        responder.open_responder(TINY)


def test_several_devices_need_accelerate(monkeypatch):
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"accelerate, not installed here: pip install 'medsft\[devices\]'"):
        load_model(TINY, "fp32", [CPU, CPU])


def test_names_of_devices(monkeypatch):
    assert choose_devices("cpu") == [CPU]
    assert choose_devices("cpu, cpu") == [CPU, CPU]
    for name, words in (
        ("gpu", "all, or auto"),
        ("", "is not known"),
        ("cuda:99", "is not there"),
    ):
        with pytest.raises(UserError, match=words):
            choose_devices(name)
    if not torch.cuda.is_available():
        assert choose_devices("all") == choose_devices("auto") == [CPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(device) for device in choose_devices("all")] == ["cuda:0", "cuda:1"]
    with pytest.raises(UserError, match="mixes kinds"):
        choose_devices("cpu,cuda:1")
