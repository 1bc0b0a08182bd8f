"""The parts of a step, timed: by the clock, by a device's events, and a rank's own work."""

from __future__ import annotations

import pytest
import torch
from deepspeed.utils import set_z3_leaf_modules

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.block import ChatGLMBlock
from medsft.engine.own_work import gathered_modules
from medsft.engine.stopwatch import HostWatch, Stopwatch, StreamWatch, open_stopwatch


class FakeEvent:
    """What `torch.cuda.Event` promises, over work that passes when it is told to."""

    now_ms, done_ms = 0.0, 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.now_ms += 250
        self.at_ms = FakeEvent.now_ms

    def query(self) -> bool:
        return self.at_ms <= FakeEvent.done_ms

    def synchronize(self) -> None:
        FakeEvent.done_ms = max(FakeEvent.done_ms, self.at_ms)

    def elapsed_time(self, end: FakeEvent) -> float:
        assert end.query()
        return end.at_ms - self.at_ms


def test_a_gpu_is_timed_by_events_that_no_step_waits_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(FakeEvent, "now_ms", 0.0)
    monkeypatch.setattr(FakeEvent, "done_ms", 0.0)
    watch = open_stopwatch(torch.device("cuda"))
    moments = [watch.now() for _ in range(4)]
    watch.add("forward", moments[0], moments[1])
    watch.add("backward", moments[1], moments[2])
    watch.add("forward", moments[2], moments[3])
    assert FakeEvent.done_ms == 0  # adding has waited for nothing
    assert watch.take() == {"forward": 0.5, "backward": 0.25}
    assert FakeEvent.done_ms == moments[3].at_ms
    assert watch.take() == {}


def test_a_cpu_is_timed_by_the_clock(monkeypatch):
    seconds = iter([1.0, 1.5, 3.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    watch = open_stopwatch(torch.device("cpu"))
    begin, middle, end = watch.now(), watch.now(), watch.now()
    watch.add("forward", begin, middle)
    watch.add("backward", middle, end)
    assert watch.take() == {"forward": 0.5, "backward": 2.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_events_and_clock_agree_on_a_gpu():
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    found = {}
    for watch in (HostWatch(), StreamWatch()):
        stopwatch = Stopwatch(watch)
        torch.cuda.synchronize()
        begin = stopwatch.now()
        for _ in range(50):
            matrix @ matrix
        if isinstance(watch, HostWatch):
            torch.cuda.synchronize()
        stopwatch.add("products", begin, stopwatch.now())
        found[type(watch)] = stopwatch.take()["products"]
    assert found[StreamWatch] == pytest.approx(found[HostWatch], rel=0.5)


def test_own_work_is_that_of_the_modules_whose_weights_come_as_one():
    config = ChatGLMConfig(
        vocab_size=512, bos_token_id=504, eos_token_id=505, mask_token_id=500, gmask_token_id=501,
        hidden_size=32, num_layers=2, num_attention_heads=2, inner_hidden_size=64,
    )  # fmt: skip
    model = ChatGLMForConditionalGeneration(config)
    set_z3_leaf_modules(model, [ChatGLMBlock])
    names = {module: name for name, module in model.named_modules()}
    assert [names[module] for module in gathered_modules(model)] == [
        "transformer.word_embeddings",
        "transformer.layers.0",
        "transformer.layers.1",
        "transformer.final_layernorm",
        "lm_head",
    ]
