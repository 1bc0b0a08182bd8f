"""The planner's arithmetic against numbers worked out by hand, and against what the model really keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.attention import over_segments
from medsft.chatglm.init import PRESETS, count_parameters, parameter_shapes
from medsft.chatglm.positions import prefix_mask
from medsft.data.dataset import Row
from medsft.data.pack import pack, pad
from medsft.planner import lengths, memory, traffic
from medsft.planner.advice import read_configs
from medsft.planner.cluster import Cluster, Efficiency
from medsft.planner.flops import mfu, step_flops, visible_pairs
from medsft.planner.hardware import GPUS, LINKS, Link
from medsft.planner.lengths import StepSizes
from medsft.planner.settings import DS_CONFIGS, ZeroSettings
from medsft.planner.shape import Shape
from medsft.planner.times import Times, step_times

CHATGLM_6B = Shape(130_528, 4096, 28, 32, 16_384)
PARAMETERS = 6_173_286_400
STEPS, TOKENS, TARGETS = 1429, 1056, 554
ZERO3, HPZ = (ZeroSettings.of(read_configs()[name], CHATGLM_6B) for name in ("zero3.json", "zero3_hpz.json"))


def sizes(num_slots: float = TOKENS, num_targets: float = TARGETS, ranks: int = 1) -> StepSizes:
    """A step of the Med-ChatGLM recipe, dealt out evenly, in one pass."""
    return StepSizes(
        num_tokens=num_slots,
        num_targets=num_targets,
        num_pairs=16 * visible_pairs(66, 35),
        num_slots=num_slots,
        busiest_slots=num_slots / ranks,
        busiest_targets=num_targets / ranks,
        num_micro_batches=1,
        largest_slots=math.ceil(num_slots / ranks),
        largest_targets=math.ceil(num_targets / ranks),
        largest_places=math.ceil(num_slots / ranks),
        mask_width=128,
        ranks_at_work=ranks,
    )


def test_parameters_are_those_of_the_model():
    for preset, fields in PRESETS.items():
        for tied in (True, False):
            config = ChatGLMConfig(vocab_size=130_528, tie_word_embeddings=tied, **fields)
            shape = Shape.of(config)
            assert shape.num_parameters == count_parameters(config), preset
            sizes_in_order = [math.prod(size) for size in parameter_shapes(config).values()]
            assert list(shape.tensors()) == sizes_in_order[: -1 if tied else None]
    assert CHATGLM_6B.num_parameters == PARAMETERS
    assert CHATGLM_6B.body_parameters == pytest.approx(5.64e9, rel=1e-3)
    assert CHATGLM_6B.layer_parameters == pytest.approx(201e6, rel=5e-3)


def test_work_of_the_med_chatglm_run():
    work = step_flops(CHATGLM_6B, TOKENS, TARGETS, 16 * visible_pairs(66, 35))
    assert STEPS * work.body == pytest.approx(5.10e16, rel=2e-3)
    assert STEPS * work.head == pytest.approx(0.25e16, rel=2e-2)
    # 0.014e16 counts every pair of an example's tokens; three fifths of them see each other.
    assert STEPS * step_flops(CHATGLM_6B, TOKENS, TARGETS, 16 * 66**2).attention == pytest.approx(
        0.014e16, rel=0.03
    )
    assert visible_pairs(66, 35) / 66**2 == pytest.approx(0.61, abs=0.01)
    assert STEPS * work.necessary == pytest.approx(5.37e16, rel=2e-3)
    assert work.necessary / 989e12 == pytest.approx(38e-3, rel=1e-2)
    assert STEPS * work.necessary / (989e12 / 2) == pytest.approx(109, rel=1e-2)
    again = step_flops(CHATGLM_6B, TOKENS, TARGETS, 16 * visible_pairs(66, 35), checkpointing=True)
    assert again.necessary == work.necessary
    assert (again.total - work.head) / (work.total - work.head) == pytest.approx(4 / 3)
    assert mfu(work.necessary, 38e-3, 1, 989e12) == pytest.approx(1, rel=1e-2)


def test_the_original_does_twice_the_work():
    """Padding to 67 % full slots, recomputation, and the head on every slot."""
    necessary = step_flops(CHATGLM_6B, TOKENS, TARGETS, 0).necessary
    slots = TOKENS / 0.67
    original = step_flops(CHATGLM_6B, slots, slots, 0, checkpointing=True).total
    assert original / necessary == pytest.approx(2.03, rel=5e-2)


@pytest.mark.parametrize(("context", "answer"), [(1, 2), (5, 9), (31, 35)])
def test_visible_pairs_are_those_of_the_mask(context, answer):
    length = context + answer
    assert visible_pairs(length, answer) == int(torch.as_tensor(prefix_mask(context, length)).sum())


@pytest.mark.parametrize(
    ("gpus", "weights", "gradients", "states", "together"),
    [
        (1, 12.35, 12.35, 74.08, 98.8),
        (8, 1.54, 1.54, 9.26, 12.35),
        (16, 0.77, 0.77, 4.63, 6.17),
        (32, 0.39, 0.39, 2.31, 3.09),
    ],
)
def test_the_classic_table_of_zero3(gpus, weights, gradients, states, together):
    """2 + 2 + 12 bytes a parameter over the ranks; here gradients are added up in fp32, so they have 4."""
    place, saves = memory.Place(True, gpus), memory.Saves(False)
    found = memory.stages(CHATGLM_6B, ZERO3, place, sizes(ranks=gpus), False, saves)
    (held,) = [stage.gpu for stage in found if stage.name == "save"]
    adam = held["Adam: fp32 weights"] + held["Adam: moments"]
    shown = [held["weights"] / 1e9, held["gradients, fp32"] / 2 / 1e9, adam / 1e9]
    assert shown == pytest.approx([weights, gradients, states], abs=0.006)
    assert sum(shown) == pytest.approx(together, abs=0.06)
    assert memory.checkpoint_bytes(PARAMETERS) / gpus / 1e9 == pytest.approx(states, abs=0.006)


def test_activations_a_token():
    """About 3.9 MB without checkpointing where attention needs no more places than there are tokens."""
    size = memory.activation_bytes(CHATGLM_6B, 1000, 1000, 1056, 2, checkpointing=False) / 1000
    assert size == pytest.approx(3.9e6, rel=0.1)
    assert memory.activation_bytes(CHATGLM_6B, 1000, 1000, 1056, 2, checkpointing=True) / 1000 < 0.12 * size


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_the_model_keeps(checkpointing):
    """Storages that autograd holds after a forward pass, parameters and shared tables left out."""
    config = ChatGLMConfig(
        vocab_size=512, bos_token_id=504, eos_token_id=505, mask_token_id=500, gmask_token_id=501,
        hidden_size=128, num_layers=6, num_attention_heads=4, inner_hidden_size=512,
    )  # fmt: skip
    model = ChatGLMForConditionalGeneration(config).train()
    if checkpointing:
        model.recompute_activations()
    chance = np.random.default_rng(0)
    tokens = [40, 90, 60, 66]
    batch = pack([Row(chance.integers(10, 400, count), count // 2) for count in tokens], 3)
    length = batch.num_slots
    inputs = {name: value for name, value in batch.model_inputs().items() if "target" not in name}
    inputs.pop("labels")
    own = {param.untyped_storage().data_ptr() for param in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.transformer(**inputs, use_cache=False).last_hidden_state
    tables = 2 * length * config.head_dim * 4
    places = lengths._places(tokens, packing=True)
    expected = memory.activation_bytes(Shape.of(config), length, *places, 4, checkpointing)
    if checkpointing:  # a block that is done again lives in the backward pass only
        block = memory.activation_bytes(replace(Shape.of(config), num_layers=1), length, *places, 4, False)
        expected -= block - 2 * 4 * length * config.hidden_size
    assert hidden.shape == (1, length, config.hidden_size)
    assert sum(kept.values()) - tables == pytest.approx(expected, rel=0.05 if not checkpointing else 0.25)


@pytest.mark.parametrize("tokens", [[40, 90, 60, 66], [40, 90, 61], [50], [8, 8], [16, 300], []])
def test_attention_computes_as_many_places_as_planned(tokens):
    rows = [Row(np.full(count, 7), 2) for count in tokens]
    for lay_out in (pack, pad):
        batch = lay_out(rows, 3)
        length = batch.input_ids.shape[1]
        made = over_segments(batch.segments, batch.num_slots, length, "apart")
        found = made.mask.shape[0] * made.mask.shape[-1] if made else batch.num_slots
        width = made.mask.shape[-1] if made else length
        assert lengths._places(tokens, packing=lay_out is pack) == (found, width)


def test_pinned_buffers_are_powers_of_two():
    assert memory.pinned_bytes([1000, 1024, 1025, 0]) == 1024 + 1024 + 2048


def test_traffic_of_zero3():
    moved = traffic.collectives(PARAMETERS, ZERO3, 8, 1, 1)
    assert moved.inside / 1e9 == pytest.approx(32.4, abs=0.05)
    assert moved.between == 0
    assert moved.inside / 300e9 == pytest.approx(108e-3, rel=1e-2)
    assert traffic.collectives(PARAMETERS, ZERO3, 8, 1, 4).inside == pytest.approx(4 * moved.inside)
    assert traffic.collectives(PARAMETERS, ZERO3, 1, 1, 1).inside == 0


def test_two_hosts_at_25_gb_a_second():
    """At least 33 min for the run with plain ZeRO-3; hpZ saves the second gather."""
    plain = traffic.collectives(PARAMETERS, ZERO3, 8, 2, 1)
    assert STEPS * plain.between / 25e9 / 60 == pytest.approx(33, rel=1e-2)
    grouped = traffic.collectives(PARAMETERS, HPZ, 8, 2, 1)
    assert grouped.between == pytest.approx(plain.between * 2 / 3)
    assert grouped.inside == pytest.approx(grouped.between + 2 * PARAMETERS * 7 / 8)
    many = traffic.collectives(PARAMETERS, HPZ, 8, 2, 4)
    assert many.between == pytest.approx(plain.between / 3 * 5)  # one gather, four reductions


def test_traffic_of_the_optimiser():
    """About 50 bytes a parameter in several passes over memory; 333 GB for ChatGLM-6B."""
    assert traffic.optimizer_bytes(PARAMETERS, ZERO3, 1) / PARAMETERS == pytest.approx(50, rel=0.1)
    assert traffic.optimizer_bytes(PARAMETERS, ZERO3, 8) * 8 / 1e9 == pytest.approx(333, abs=0.5)
    nvme = ZeroSettings.of(read_configs()["zero3_nvme.json"], CHATGLM_6B)
    assert traffic.optimizer_bytes(PARAMETERS, nvme, 1) == 0
    assert [size / 1e9 for size in traffic.nvme_bytes(PARAMETERS, nvme, 1)] == pytest.approx(
        [98.8, 98.8], abs=0.1
    )


def cluster_of(name: str, gpus: int, link: Link | None = None) -> Cluster:
    gpu = GPUS[name]
    return Cluster(gpu, gpus, 1, gpu.memory_bytes, None, link or LINKS[gpu.link])


def test_gradients_on_their_way():
    """On a GPU the tied head's (V x E), what of a block's twelve waits, the bucket's copy, its share in fp32.

    With room for a block the bucket is sent when a block's last matrix (4E², with its bias E) is still to
    come, full but for the first time. On the CPU the embedding's come to more: head's and embedding's own,
    and gloo's clone of their sum.
    """
    width, matrix, block = 4096, 130_528 * 4096, 201_379_840
    assert CHATGLM_6B.layer_parameters == block
    waiting = 4 * width**2 + width
    first, second = [(block, 0), (waiting, 2 * width + block - waiting)], [(block, 0), (waiting, block)]
    assert [*memory.blocks_gradients(CHATGLM_6B, block)] == first + 27 * second
    # No room for a matrix: the first, 3E², is sent from where it is, while all but two small ones wait.
    small = [*memory.blocks_gradients(CHATGLM_6B, 1_000_000)]
    assert max(small, key=sum) == (block - 2 * width, 3 * width**2)
    in_blocks = 2 * matrix + 2 * waiting + block * (2 + 4 / 8)
    for has_gpu, expected in ((True, in_blocks), (False, 3 * 2 * matrix)):
        found = memory.stages(
            CHATGLM_6B, ZERO3, memory.Place(has_gpu, 8), sizes(ranks=8), False, memory.Saves(False)
        )
        (passes,) = [stage for stage in found if stage.name == "forward and backward"]
        waiting = {**passes.gpu, **passes.host}["gradients on their way"]
        assert waiting == expected


def floor(name: str, gpus: int) -> tuple[Times, float]:
    """A step with everything at its peak, and its seconds if AdamW took one pass over memory.

    That is 28 bytes a parameter in the place of 54: read the 16-bit gradient (2) and master, m, v (12), write
    these (12) and the 16-bit weight (2).
    """
    peak = Efficiency(1.0, 1.0, 1.0, 1.0, 1.0)
    times = step_times(CHATGLM_6B, ZERO3, cluster_of(name, gpus), sizes(ranks=gpus), False, peak)
    assert times is not None
    return times, times.step_s - times.optimizer_s * (54 - 28) / 54


def test_floor_on_one_h200():
    """74 ms a step, 106 s a run, were AdamW done in one pass: then its 173 GB take 36 ms."""
    times, one_pass_s = floor("H200-141", 1)
    assert one_pass_s == pytest.approx(74e-3, rel=1e-2)
    assert STEPS * one_pass_s == pytest.approx(106, rel=1e-2)
    assert times.optimizer_s * 28 / 54 == pytest.approx(36e-3, rel=1e-2)
    assert times.compute_s == pytest.approx(38e-3, rel=1e-2)
    assert times.dominant == "the optimiser's traffic in GPU memory"


def test_floor_on_eight_a100():
    """170 s a run in one pass, and the collectives are most of it."""
    times, one_pass_s = floor("A100-80", 8)
    assert times.inside_s == pytest.approx(108e-3, rel=1e-2)
    assert STEPS * one_pass_s == pytest.approx(170, rel=2e-2)
    assert times.dominant == "collectives inside a host"


def test_floors_as_documented():
    text = (DS_CONFIGS.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    (one, one_pass_s), (eight, eight_pass_s) = floor("H200-141", 1), floor("A100-80", 8)
    assert (
        f"{one.step_s * 1e3:.0f} ms a step on one H200 and {eight.step_s * 1e3:.0f} ms on eight A100-80 for "
        f"Med-ChatGLM's recipe; with AdamW in one pass it would be {one_pass_s * 1e3:.0f} and "
        f"{eight_pass_s * 1e3:.0f} ms."
    ) in " ".join(text.split())


def test_one_gpu_with_the_optimiser_on_the_host():
    """3 to 7 s a step, and 12.35 GB with buckets and activations on the GPU: 18 to 22 GB."""
    settings = ZeroSettings.of(read_configs()["zero3_offload_optimizer.json"], CHATGLM_6B)
    place, cluster = memory.Place(True, 1), cluster_of("V100-32", 1)
    times = step_times(CHATGLM_6B, settings, cluster, sizes(), False, Efficiency())
    assert times is not None and 3 < times.step_s < 7
    found = memory.stages(CHATGLM_6B, settings, place, sizes(), False, memory.Saves(False))
    assert 18e9 < max(stage.gpu_bytes for stage in found) < 22.1e9
    (passes,) = [stage for stage in found if stage.name == "forward and backward"]
    states = passes.host["Adam: fp32 weights"] + passes.host["Adam: moments"]
    assert states / 1e9 == pytest.approx(74.08, abs=0.01)
    unpinned = replace(settings, pins_optimizer=False)
    (passes, *_) = memory.stages(CHATGLM_6B, unpinned, place, sizes(), False, memory.Saves(False))[1:]
    # 99 GB of states and gradients; DeepSpeed keeps the fp32 gradients a second time.
    host = sum(size for name, size in passes.host.items() if name != "process")
    assert host / 1e9 == pytest.approx(98.8 + 24.7, abs=0.1)


@pytest.mark.parametrize(
    ("name", "plain_gb", "one_gpu_gb", "buffers_gb"),
    [
        ("zero3_offload_optimizer.json", 124, 148, 0),
        ("zero3_offload_all.json", 136, 165, 0),
        ("zero3_nvme.json", 37, 60, 8.6),
    ],
)
def test_host_memory_of_offloading_as_documented(name, plain_gb, one_gpu_gb, buffers_gb):
    """Figures of ds_configs/README.md: plain, and on one GPU with page-locked buffers as torch takes them."""
    text = (DS_CONFIGS / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    assert f"{plain_gb} GB of host memory" in row and f"{one_gpu_gb} GB on one GPU" in row
    settings = ZeroSettings.of(read_configs()[name], CHATGLM_6B)

    def kept(settings: ZeroSettings) -> float:
        found = memory.stages(
            CHATGLM_6B, settings, memory.Place(True, 1), sizes(), False, memory.Saves(False)
        )
        return (found[1].host_bytes - found[1].host["process"]) / 1e9

    assert kept(settings) == pytest.approx(one_gpu_gb, abs=0.5)
    plain = replace(settings, pins_optimizer=False, pins_param=False)
    assert kept(plain) - buffers_gb == pytest.approx(plain_gb, abs=0.6)
