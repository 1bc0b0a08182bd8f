"""GPUs and links by name: memory, arithmetic peak, bandwidth, as their makers state them.

Sources: NVIDIA's data sheets and architecture white papers of V100, A100, H100, H200, L40, L40S, A30, A10,
RTX A6000, RTX 6000 Ada, RTX 5090 (Blackwell), RTX 4090 (Ada) and RTX 3090 (GA102); peaks are dense (without
sparsity), with fp32 accumulation. Consumer cards do half their fp16 rate with it, which is what is given.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from medsft.errors import UserError

T = TypeVar("T")

GIB = 2**30
_SAME_MEMORY = 0.1  # of the listed size; ECC and what the driver keeps are less


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as flags name it.
        memory_bytes: what a program can see of it; somewhat less than the printed size.
        peak_flops: dense 16-bit products with fp32 sums a second (bf16, on V100 fp16).
        bandwidth: bytes of its own memory a second.
        has_bf16: whether it computes in bf16 itself.
        link: what it usually reaches its neighbours by, a name of LINKS.
        pcie: what it reaches its host by, too.
    """

    name: str
    memory_bytes: float
    peak_flops: float
    bandwidth: float
    has_bf16: bool
    link: str
    pcie: str = "pcie4"


@dataclass(frozen=True)
class Link:
    """Bytes a second in one direction, of one GPU (inside a host) or of one adapter (between hosts)."""

    name: str
    bandwidth: float


def _gpu(name: str, gib: float, tflops: float, gb_s: float, link: str, has_bf16: bool = True) -> Gpu:
    # Volta has PCIe 3, Hopper and Blackwell 5, all between them 4 (the vendor's data sheets).
    is_new = name.startswith(("H", "RTX-50"))
    pcie = "pcie3" if name.startswith("V100") else "pcie5" if is_new else "pcie4"
    return Gpu(name, gib * GIB, tflops * 1e12, gb_s * 1e9, has_bf16, link, pcie)


GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("V100-16", 15.8, 125, 900, "nvlink2", has_bf16=False),
        _gpu("V100-32", 31.7, 125, 900, "nvlink2", has_bf16=False),
        _gpu("V100-16-PCIe", 15.8, 112, 900, "pcie3", has_bf16=False),
        _gpu("V100-32-PCIe", 31.7, 112, 900, "pcie3", has_bf16=False),
        _gpu("A100-40", 39.4, 312, 1555, "nvlink3"),
        _gpu("A100-80", 79.2, 312, 2039, "nvlink3"),
        _gpu("A100-40-PCIe", 39.4, 312, 1555, "pcie4"),
        _gpu("A100-80-PCIe", 79.2, 312, 1935, "pcie4"),
        _gpu("A800-80", 79.2, 312, 2039, "nvlink-a800"),
        _gpu("A800-80-PCIe", 79.2, 312, 1935, "pcie4"),
        _gpu("H100-80", 79.1, 989, 3350, "nvlink4"),
        _gpu("H100-80-PCIe", 79.1, 756, 2000, "pcie5"),
        _gpu("H100-94-NVL", 93.1, 835, 3900, "pcie5"),
        _gpu("H800-80", 79.1, 989, 3350, "nvlink-a800"),
        _gpu("H200-141", 139.8, 989, 4800, "nvlink4"),
        _gpu("H20-96", 95.1, 148, 4000, "nvlink4"),
        _gpu("L40", 44.5, 181, 864, "pcie4"),
        _gpu("L40S", 44.5, 362, 864, "pcie4"),
        _gpu("A40", 44.4, 149.7, 696, "pcie4"),
        _gpu("A30", 23.5, 165, 933, "pcie4"),
        _gpu("A10", 22.1, 125, 600, "pcie4"),
        _gpu("A6000", 47.4, 154.8, 768, "pcie4"),
        _gpu("6000-Ada", 47.4, 364, 960, "pcie4"),
        _gpu("RTX-3090", 23.6, 71, 936, "pcie4"),
        _gpu("RTX-4090", 23.5, 165.2, 1008, "pcie4"),
        _gpu("RTX-5090", 31.4, 209.5, 1792, "pcie5"),
    )
}
"""Cards whose NVLink is a bridge between two stand here with PCIe, which is what joins more of them."""

LINKS: Mapping[str, Link] = {
    link.name: link
    for link in (
        Link("pcie3", 16e9),
        Link("pcie4", 32e9),
        Link("pcie5", 64e9),
        Link("nvlink2", 150e9),
        Link("nvlink-a800", 200e9),
        Link("nvlink3", 300e9),
        Link("nvlink4", 450e9),
    )
}
"""Inside a host, each GPU in one direction: PCIe x16, NVLink of V100, A800/H800, A100, H100."""

NETWORKS: Mapping[str, Link] = {
    f"{gbit}g": Link(f"{gbit}g", gbit * 1e9 / 8) for gbit in (10, 25, 40, 100, 200, 400, 800)
}
"""Between hosts, all adapters of a host together, in one direction: InfiniBand or RoCE, in Gbit/s."""

_SHORT = {"V100": "V100-32", "A100": "A100-80", "H100": "H100-80", "H200": "H200-141", "H20": "H20-96"}
_SHORT |= {"4090": "RTX-4090", "3090": "RTX-3090", "RTX-A6000": "A6000", "A800": "A800-80", "H800": "H800-80"}
_SHORT |= {"5090": "RTX-5090", "H100-NVL": "H100-94-NVL"}

_DRIVERS_NAMES: Mapping[str, str] = {
    "V100-SXM2-16GB": "V100-16",
    "V100-SXM2-32GB": "V100-32",
    "V100-SXM3-32GB": "V100-32",
    "V100-PCIE-16GB": "V100-16-PCIe",
    "V100-PCIE-32GB": "V100-32-PCIe",
    "A100-SXM4-40GB": "A100-40",
    "A100-SXM4-80GB": "A100-80",
    "A100-SXM-80GB": "A100-80",
    "A100-PCIE-40GB": "A100-40-PCIe",
    "A100 80GB PCIe": "A100-80-PCIe",
    "A800-SXM4-80GB": "A800-80",
    "A800 80GB PCIe": "A800-80-PCIe",
    "H100 80GB HBM3": "H100-80",
    "H100 PCIe": "H100-80-PCIe",
    "H100 NVL": "H100-94-NVL",
    "H800": "H800-80",
    "H200": "H200-141",
    "H20": "H20-96",
    "L40": "L40",
    "L40S": "L40S",
    "A40": "A40",
    "A30": "A30",
    "A10": "A10",
    "RTX A6000": "A6000",
    "RTX 6000 Ada Generation": "6000-Ada",
    "RTX 3090": "RTX-3090",
    "RTX 4090": "RTX-4090",
    "RTX 5090": "RTX-5090",
}
"""What drivers call them, without maker and brand."""
_BRANDS = re.compile("NVIDIA |Tesla |GeForce ")  # "Tesla" has gone, "NVIDIA" has come with newer drivers


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, written in any case, with blanks or dashes. Raises `UserError`."""
    plain = name.strip().replace(" ", "-").replace("_", "-").upper()
    plain = plain.removesuffix("GB").rstrip("-")
    known = {key.upper(): gpu for key, gpu in GPUS.items()}
    known |= {short.upper(): GPUS[key] for short, key in _SHORT.items()}
    return _find(plain, known, f"--gpu {name}", GPUS, "cpu, or custom with numbers of its own")


def gpu_of(
    name: str,
    memory_gib: float | None = None,
    tflops: float | None = None,
    bandwidth_gbs: float | None = None,
) -> Gpu | None:
    """The GPU of that name with these figures in the place of the listed ones; None for `cpu`.

    `custom` is a GPU that has no other figures. Raises `UserError`.
    """
    own = {"--gpu_memory_gib": memory_gib, "--gpu_tflops": tflops, "--gpu_bandwidth_gbs": bandwidth_gbs}
    faults = [
        f"{flag} {value} must be above 0"
        for flag, value in own.items()
        if value is not None and not 0 < value < float("inf")
    ]
    if faults:
        raise UserError("wrong settings: " + "; ".join(faults) + ".")
    if name.lower() == "cpu":
        return None
    missing = [flag for flag, value in own.items() if value is None]
    if name.lower() == "custom" and missing:
        raise UserError(f"--gpu custom needs {', '.join(missing)} as well.")
    gpu = _gpu("custom", 0, 0, 0, "pcie4") if name.lower() == "custom" else find_gpu(name)
    return replace(
        gpu,
        memory_bytes=memory_gib * GIB if memory_gib else gpu.memory_bytes,
        peak_flops=tflops * 1e12 if tflops else gpu.peak_flops,
        bandwidth=bandwidth_gbs * 1e9 if bandwidth_gbs else gpu.bandwidth,
    )


def find_link(name: str) -> Link:
    """The link inside a host of that name, or of so many GB/s (`50GB/s`). Raises `UserError`."""
    own = _own_number(name, "gb/s", 1e9)
    return own or _find(name.lower(), LINKS, f"--interconnect {name}", LINKS, "or a number like 50GB/s")


def find_network(name: str) -> Link:
    """The network of that name, of so many Gbit/s (`100`, `100g`) or GB/s (`25GB/s`). Raises `UserError`."""
    own = _own_number(name, "gb/s", 1e9) or _own_number(name, "gbit/s", 1e9 / 8)
    plain = f"{name}g" if name.isdigit() else name.lower()
    return own or _find(plain, NETWORKS, f"--network {name}", NETWORKS, "or a number like 25GB/s")


def match_gpu(device_name: str, memory_bytes: float) -> Gpu | None:
    """The GPU that a driver calls `NVIDIA A100-SXM4-80GB` and the like; None for one that is not listed.

    The whole name counts, as cards that share a part of theirs share nothing else (`RTX 6000 Ada Generation`,
    `Quadro RTX 6000`); so does the memory: what differs from the listed is another card, or a part of one.
    """
    name = _DRIVERS_NAMES.get(_BRANDS.sub("", device_name))
    if name is None or abs(memory_bytes / GPUS[name].memory_bytes - 1) > _SAME_MEMORY:
        return None
    return GPUS[name]


def _own_number(text: str, unit: str, scale: float) -> Link | None:
    plain = text.strip().lower().replace(" ", "")
    if not plain.endswith(unit):
        return None
    try:
        value = float(plain.removesuffix(unit)) * scale
    except ValueError:
        return None
    return Link(plain, value) if 0 < value < float("inf") else None


def _find(name: str, known: Mapping[str, T], shown: str, listed: Mapping[str, T], otherwise: str) -> T:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"{shown} is not known{guess}; choose one of {', '.join(listed)}, {otherwise}.")
