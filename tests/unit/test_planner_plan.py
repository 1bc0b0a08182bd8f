"""Plans of whole runs, from one GPU to 1,024."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from medsft.data.pack import DUMMY_LENGTH, LENGTH_MULTIPLE
from medsft.errors import UserError
from medsft.planner import lengths as planner_lengths
from medsft.planner.advice import Job, best, candidates, command, gpus_that_fit, read_configs, scaling
from medsft.planner.cluster import Cluster, Efficiency
from medsft.planner.hardware import (
    GPUS,
    LINKS,
    NETWORKS,
    find_gpu,
    find_link,
    find_network,
    gpu_of,
    match_gpu,
)
from medsft.planner.lengths import Lengths, parse_quantiles, step_sizes
from medsft.planner.memory import Saves
from medsft.planner.plan import Batch, plan
from medsft.planner.settings import DS_CONFIGS, ZeroSettings
from medsft.planner.shape import Shape

CHATGLM_6B = Shape(130_528, 4096, 28, 32, 16_384)
CONFIGS = read_configs()
FILES = ["data/训练 1.jsonl", "data/more.jsonl"]
DATA = Lengths.from_quantiles(num_examples=800)


def cluster_of(name: str, gpus: int, nodes: int = 1, host_gib: float | None = None) -> Cluster:
    gpu = find_gpu(name)
    host = None if host_gib is None else host_gib * 2**30
    return Cluster(gpu, gpus, nodes, gpu.memory_bytes, host, LINKS[gpu.link], NETWORKS["200g"])


def job(global_batch_size: int = 16) -> Job:
    return Job(CHATGLM_6B, DATA, Batch(global_batch_size, 1, 1))


def test_made_up_lengths_are_the_published_ones():
    made = Lengths.from_quantiles()
    assert len(made) == 7622
    assert made.mean_tokens == pytest.approx(66, rel=0.03)
    assert made.mean_targets == pytest.approx(34.6, rel=0.03)
    assert sorted(made.tokens)[3811] == 63
    assert (planner_lengths._MULTIPLE, planner_lengths._DUMMY) == (LENGTH_MULTIPLE, DUMMY_LENGTH)


@pytest.mark.parametrize(
    "text", ["", "0:20", "0:20,1", "0:20,0.5:10,1:30", "0.1:20,1:30", "0:1,1:9", "0:9,1:inf"]
)
def test_wrong_quantiles_are_refused(text):
    with pytest.raises(UserError, match=r"share:tokens pairs.*0:20"):
        parse_quantiles(text)


def test_every_token_of_a_step_is_dealt_out():
    for ranks, packing in ((1, True), (3, True), (64, True), (3, False)):
        sizes = step_sizes(DATA, ranks, 16, 6, 1, None, packing)
        assert sizes.num_tokens == pytest.approx(16 * DATA.mean_tokens, rel=0.1)
        assert sizes.num_tokens <= sizes.num_slots
        assert sizes.busiest_slots * ranks >= sizes.num_slots
        assert sizes.ranks_at_work == min(ranks, 16)
    packed, padded = (step_sizes(DATA, 1, 16, 8, 2, None, packing) for packing in (True, False))
    assert packed.num_tokens / packed.num_slots > 0.97 > padded.num_tokens / padded.num_slots


def test_names_of_hardware():
    assert find_gpu("a100") is GPUS["A100-80"]
    assert find_gpu("rtx 4090") is find_gpu("4090") is GPUS["RTX-4090"]
    assert find_gpu("V100-16GB") is GPUS["V100-16"]
    with pytest.raises(UserError, match=r"--gpu A10O is not known \(did you mean A10.*V100-16.*L40S"):
        find_gpu("A10O")
    assert find_link("NVLink3").bandwidth == 300e9
    assert find_link("50GB/s").bandwidth == 50e9
    assert find_network("200").bandwidth == find_network("200g").bandwidth == find_network("25GB/s").bandwidth
    for call, text in ((find_link, "nvlonk"), (find_network, "7g"), (find_link, "-3GB/s")):
        with pytest.raises(UserError, match="choose one of"):
            call(text)
    assert find_gpu("h100-80-pcie") is GPUS["H100-80-PCIe"] and find_gpu("H100") is GPUS["H100-80"]


def test_a_gpu_and_its_links_as_flags_describe_them():
    made = gpu_of("A100", memory_gib=64, tflops=300)
    expected = replace(GPUS["A100-80"], memory_bytes=64 * 2**30, peak_flops=300e12)
    assert made == expected and gpu_of("CPU") is None
    custom = gpu_of("custom", 96, 500, 4000)
    assert (custom.memory_bytes, custom.peak_flops, custom.bandwidth) == (96 * 2**30, 500e12, 4e12)

    cluster = Cluster.of(GPUS["H100-80"], 8, 2, 512, None, "400g")
    assert (cluster.link.name, cluster.network.name, cluster.world_size) == ("nvlink4", "400g", 16)
    assert (cluster.gpu_memory_bytes, cluster.host_memory_bytes) == (GPUS["H100-80"].memory_bytes, 2**39)
    assert Cluster.of(GPUS["H100-80"], 8, 1, None, "50GB/s", "100g").link.bandwidth == 50e9
    expected = {"H100-80": "pcie5", "H100-80-PCIe": "pcie5", "H800-80": "pcie5", "A100-80": "pcie4"}
    expected |= {"A800-80": "pcie4", "V100-32": "pcie3", "V100-32-PCIe": "pcie3", "RTX-5090": "pcie5"}
    for name, pcie in expected.items():
        assert Cluster.of(GPUS[name], 1, 1, None, None, "100g").pcie is LINKS[pcie]
    assert Cluster.of(None, 2, 1, None, None, "100g").gpu_memory_bytes == 0


# As torch.cuda.get_device_name gives them, with GiB of torch.cuda.get_device_properties.
DEVICE_NAMES = {
    ("Tesla V100-SXM2-16GB", 15.8): "V100-16",
    ("Tesla V100-SXM2-32GB", 31.7): "V100-32",
    ("Tesla V100-SXM3-32GB", 31.7): "V100-32",
    ("Tesla V100-PCIE-16GB", 15.8): "V100-16-PCIe",
    ("Tesla V100-PCIE-32GB", 31.7): "V100-32-PCIe",
    ("NVIDIA A100-SXM4-40GB", 39.4): "A100-40",
    ("A100-SXM-80GB", 79.2): "A100-80",
    ("NVIDIA A100-SXM4-80GB", 79.2): "A100-80",
    ("NVIDIA A100-PCIE-40GB", 39.4): "A100-40-PCIe",
    ("NVIDIA A100 80GB PCIe", 79.2): "A100-80-PCIe",
    ("NVIDIA A800-SXM4-80GB", 79.3): "A800-80",
    ("NVIDIA A800 80GB PCIe", 79.2): "A800-80-PCIe",
    ("NVIDIA H100 80GB HBM3", 79.1): "H100-80",
    ("NVIDIA H100 PCIe", 79.2): "H100-80-PCIe",
    ("NVIDIA H100 NVL", 93.1): "H100-94-NVL",
    ("NVIDIA H800", 79.1): "H800-80",
    ("NVIDIA H200", 139.8): "H200-141",
    ("NVIDIA H20", 95.1): "H20-96",
    ("NVIDIA L40", 44.4): "L40",
    ("NVIDIA L40S", 44.4): "L40S",
    ("NVIDIA A40", 44.4): "A40",
    ("NVIDIA A30", 23.5): "A30",
    ("NVIDIA A10", 22.1): "A10",
    ("NVIDIA RTX A6000", 47.5): "A6000",
    ("NVIDIA RTX A6000", 44.6): "A6000",  # with error correction
    ("NVIDIA RTX 6000 Ada Generation", 47.5): "6000-Ada",
    ("NVIDIA GeForce RTX 3090", 23.7): "RTX-3090",
    ("NVIDIA GeForce RTX 4090", 23.6): "RTX-4090",
    ("NVIDIA GeForce RTX 5090", 31.4): "RTX-5090",
}


def test_a_driver_calls_every_listed_gpu_by_its_name():
    found = {device: match_gpu(device[0], device[1] * 2**30) for device in DEVICE_NAMES}
    assert {device: gpu and gpu.name for device, gpu in found.items()} == DEVICE_NAMES
    assert set(DEVICE_NAMES.values()) == set(GPUS)


@pytest.mark.parametrize(
    ("device_name", "gib"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 94.9),
        ("Quadro RTX 6000", 23.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.7),
        ("NVIDIA GeForce RTX 4090 D", 23.6),
        ("NVIDIA GeForce RTX 4090", 47.4),  # rebuilt with twice its memory
        ("NVIDIA GeForce RTX 3090 Ti", 23.6),
        ("Tesla V100S-PCIE-32GB", 31.7),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", 39.2),
        ("NVIDIA A100-SXM4-80GB", 39.2),  # a part, under the name of the whole
        ("NVIDIA A100-SXM-64GB", 63.4),
        ("NVIDIA A10G", 22.1),
        ("NVIDIA H20-3e", 139.8),
        ("NVIDIA H200 NVL", 139.8),
        ("NVIDIA GH200 480GB", 94.6),
        ("Radeon", 1.0),
        ("", 0.0),
    ],
)
def test_a_gpu_that_is_not_listed_is_none(device_name, gib):
    assert match_gpu(device_name, gib * 2**30) is None


def test_hardware_is_as_its_makers_state_it():
    """Dense 16-bit TFLOP/s with fp32 sums, GB/s of memory, GB/s of the link in one direction: data sheets."""
    stated = {
        "V100-32": (125, 900, 150),  # 300 GB/s of NVLink 2, both directions
        "V100-32-PCIe": (112, 900, 16),
        "A100-40": (312, 1555, 300),
        "A100-80": (312, 2039, 300),
        "A100-80-PCIe": (312, 1935, 32),
        "A800-80": (312, 2039, 200),
        "H100-80": (989, 3350, 450),
        "H100-80-PCIe": (756, 2000, 64),
        "H100-94-NVL": (835, 3900, 64),
        "H800-80": (989, 3350, 200),
        "H200-141": (989, 4800, 450),
        "H20-96": (148, 4000, 450),
        "L40": (181, 864, 32),
        "L40S": (362, 864, 32),
        "A30": (165, 933, 32),
        "RTX-4090": (165.2, 1008, 32),
        "RTX-5090": (209.5, 1792, 64),
    }
    for name, figures in stated.items():
        gpu = GPUS[name]
        assert (gpu.peak_flops / 1e12, gpu.bandwidth / 1e9, LINKS[gpu.link].bandwidth / 1e9) == figures, name
    assert [NETWORKS[name].bandwidth / 1e9 for name in ("100g", "200g", "400g")] == [12.5, 25, 50]
    # Less than what is printed on the box, in GiB: the driver keeps a little.
    printed = {"V100-16": 16, "A100-40": 40, "A100-80": 80, "H100-80": 80, "H20-96": 96, "L40S": 48}
    assert all(0.9 < GPUS[name].memory_bytes / 2**30 / gib < 1 for name, gib in printed.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 0}, "--nodes 0 must be 1 or more"),
        ({"gpus_per_node": -1}, "--gpus_per_node -1 must be 1 or more"),
        ({"gpu_memory_bytes": 0.0}, "--gpu_memory_gib 0 must be above 0"),
        ({"host_memory_bytes": -1.0}, "--host_memory_gib .* must be above 0"),
        ({"nodes": 10**6}, "more than the 65,536"),
    ],
)
def test_impossible_clusters(changes, message):
    with pytest.raises(UserError, match=message):
        replace(cluster_of("A100", 8), **changes)


def test_impossible_settings():
    with pytest.raises(UserError, match="--efficiency 0 must be above 0"):
        Efficiency(compute=0)
    with pytest.raises(UserError, match="stage is 2"):
        ZeroSettings.of({"zero_optimization": {"stage": 2}}, CHATGLM_6B)
    for zero, message in (
        ({"offload_optimizer": True}, "offload_optimizer is True, must be an object"),
        ({"offload_param": {"device": "tape"}}, '"device" is none, cpu or nvme'),
        ({"zero_hpz_partition_size": "eight"}, "zero_hpz_partition_size is 'eight', must be a whole number"),
    ):
        with pytest.raises(UserError, match=message):
            ZeroSettings.of({"zero_optimization": {"stage": 3, **zero}}, CHATGLM_6B)
    with pytest.raises(UserError, match="each must be 1 or more"):
        plan(CHATGLM_6B, DATA, cluster_of("A100", 8), CONFIGS["zero3.json"], Batch(0, 1, 1))


def test_up_to_1024_gpus():
    """Memory of a GPU falls with their number; the copies for checkpoints add up to the whole."""
    before = None
    for world in (1, 2, 4, 8, 16, 64, 256, 1024):
        cluster = cluster_of("H200", min(8, world), max(1, world // 8))
        made = job(4096).on(cluster, CONFIGS["zero3.json"], max(1, 4096 // world), checkpointing=True)
        assert made.cluster.world_size == world
        resident = made.stages[3].gpu_bytes
        assert before is None or resident < before
        before = resident
        assert made.gpu_bytes > made.shape.num_parameters * 18 / world
        copies = made.stages[1].host["copy for checkpoints"] * world
        assert copies >= 12 * made.shape.num_parameters
        assert made.run_s > 0 and 0 < made.mfu < 0.5
        assert all(size >= 0 for stage in made.stages for size in (*stage.gpu.values(), *stage.host.values()))


def test_recommendations_are_those_of_the_table_in_the_readme():
    known = {
        ("A100-40", 8): "zero3.json",
        ("A100-80", 8): "zero3.json",
        ("H200", 1): "zero3.json",
        ("V100-32", 8): "zero3_fp16.json",
        ("RTX-4090", 4): "zero3_offload_optimizer.json",
    }
    for (name, gpus), expected in known.items():
        found = best(job(), cluster_of(name, gpus), CONFIGS)
        assert (found.name, found.plan.fits) == (expected, True), name
    # 32 GB and bf16: the optimiser goes to the host; without the host memory for it, to NVMe.
    small = replace(cluster_of("A6000", 1), gpu_memory_bytes=32 * 2**30)
    assert best(job(), small, CONFIGS).name == "zero3_offload_optimizer.json"
    without = replace(job(), saves=Saves(checkpoints=False))
    assert best(without, replace(small, host_memory_bytes=100 * 2**30), CONFIGS).name == "zero3_nvme.json"
    assert best(job(), cluster_of("A100", 8, 2), CONFIGS).name == "zero3_hpz.json"


def test_what_does_not_fit_says_by_how_much():
    found = candidates(job(), cluster_of("A10", 1, host_gib=32), CONFIGS)
    assert found and not any(item.plan.fits for item in found)
    made = found[0].plan
    assert made.host_short == pytest.approx(made.host_bytes - 32 * 2**30)
    (plain,) = [item.plan for item in found if item.name == "zero3.json"]
    assert plain.gpu_short == pytest.approx(plain.gpu_bytes - plain.cluster.gpu_memory_bytes) != 0
    count, name = gpus_that_fit(job(), find_gpu("A10"), cluster_of("A10", 1), CONFIGS)
    assert count > 1 or "offload" in name


def test_it_says_when_more_gpus_do_not_help():
    advice = " ".join(scaling(job(), cluster_of("A100", 8), CONFIGS).advice)
    assert "More GPUs will not help at 16 examples a step" in advice
    assert "--global_batch_size" in advice
    advice = " ".join(scaling(job(), cluster_of("A100", 8, 4), CONFIGS).advice)
    assert "only 16 of 32 ranks get one" in advice
    assert "32 GPUs do not pay" in advice
    grown = scaling(job(4096), cluster_of("H100", 8), CONFIGS)
    assert not grown.advice  # a large batch uses them
    fixed = replace(job(256), per_device_size=2)
    assert "repeat the collectives" in " ".join(scaling(fixed, cluster_of("H100", 8), CONFIGS).advice)
    seconds = [item.plan.run_s for _, item in grown.sizes if item]
    assert seconds == sorted(seconds, reverse=True)


def test_the_batch_that_is_named_fills_the_gpus():
    cluster = cluster_of("A100", 8)
    (text,) = [text for text in scaling(job(), cluster, CONFIGS).advice if text.startswith("From about")]
    named = int(text.split()[2].replace(",", ""))
    found = best(job(4 * named), cluster, CONFIGS).plan
    assert found.times.compute_s > found.times.collectives_s
    assert best(job(), cluster, CONFIGS).plan.times.compute_s < found.times.compute_s


def test_the_command_is_one_that_the_trainer_takes():
    from launcher import options
    from medsft.config import parse

    for cluster in (cluster_of("A100", 8), cluster_of("A100", 8, 2), cluster_of("V100-32", 4)):
        words = command(best(job(), cluster, CONFIGS), "models/我的 model", FILES)
        taken = options.parse(words[3:])
        config = parse(taken.script[1:])
        assert config.optimization.global_batch_size == 16
        assert config.model.model_name_or_path == "models/我的 model"
        assert config.data.train_file == FILES


def test_price_and_steps():
    made = best(job(), cluster_of("A100", 8), CONFIGS).plan
    assert made.num_steps == 150  # 3 x 800 / 16
    assert made.cost(2.0) == pytest.approx(made.run_s / 3600 * 8 * 2)


def test_predictions_in_the_document_are_those_of_the_benchmark_and_near_what_it_measured():
    text = (DS_CONFIGS.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    result = json.loads(
        (DS_CONFIGS.parent / "benchmarks" / "results" / "memory.json").read_text(encoding="utf-8")
    )
    assert f"({result['settings']['parameters']} parameters)" in text
    assert len(result["rows"]) == text.count("| `zero3") >= 8
    for row in result["rows"]:
        predicted, measured = row["planned GB"], row["measured GB"]
        difference = row["planned over measured"].replace("-", "−").replace("%", " %")
        assert (
            f"| {row['ranks']} | `{row['configuration']}` | {predicted} | {row['planned at']} | {measured} "
            f"| {difference} |"
        ) in text
        assert abs(predicted / measured - 1) < 0.1
