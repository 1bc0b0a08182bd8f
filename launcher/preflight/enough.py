"""What each host must have enough of: GPUs, cores, memory, open files, a free port."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.hosts.slots import visible_devices
from launcher.preflight.alike import have, others, usual_value
from launcher.preflight.answer import Answer, Limits, Needs, failed_part, gib
from launcher.preflight.findings import GREEN, RED, YELLOW, Finding


def visible_gpus(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """GPUs of a host that CUDA_VISIBLE_DEVICES leaves; it may name them by number, or count them by UUID."""
    gpus = part.get("gpus", [])
    visible = part.get("visible")
    if visible is None:
        return gpus
    names = visible_devices(visible)
    chosen = [gpu for gpu in gpus if gpu["index"] in names]
    return chosen if all(name.isdigit() for name in names) else gpus[: len(names)]


def gpus(answers: Sequence[Answer], needs: Needs) -> Iterator[Finding]:
    """Red for fewer GPUs than slots and for too small ones, unless the run is one on CPUs."""
    # A host that cannot list its GPUs has some, or had: a dead driver on every host is no run on CPUs.
    any_gpu = any(answer.probe["gpus"].get("gpus") or "error" in answer.probe["gpus"] for answer in answers)
    wanted = needs.use_gpus if needs.use_gpus is not None else any_gpu or bool(needs.gpu_memory_bytes)
    if not wanted:
        return
    kinds = [
        tuple(sorted({gpu["name"] for gpu in answer.probe["gpus"].get("gpus", [])})) for answer in answers
    ]
    usual, count = usual_value([kind for kind in kinds if kind] or [()])
    for answer, kind in zip(answers, kinds, strict=True):
        if failed := failed_part(answer, "gpus"):
            yield failed
            continue
        host, slots, gpus = answer.node.host, answer.node.num_slots, visible_gpus(answer.probe["gpus"])
        small = [
            gpu
            for gpu in gpus
            if needs.gpu_memory_bytes and (gpu["memory_bytes"] or 0) < needs.gpu_memory_bytes
        ]
        shown = f"{len(gpus)} GPUs ({', '.join(kind) or 'none'})"
        if len(gpus) < slots:
            hidden = answer.probe["gpus"].get("visible")
            because = "" if hidden is None else f", CUDA_VISIBLE_DEVICES={hidden}"
            yield Finding(
                host,
                "gpus",
                RED,
                f"{shown}{because}, fewer than its {slots} slots",
                f"Write slots={len(gpus)} in the hostfile, or see why GPUs are missing (`nvidia-smi`, dmesg)."
                if gpus
                else "See whether driver and nvidia-smi are installed, or leave the host out.",
            )
        elif small:
            yield Finding(
                host,
                "gpus",
                RED,
                f"GPU {small[0]['index']} has {gib(small[0]['memory_bytes'] or 0)}; the run takes "
                f"{gib(needs.gpu_memory_bytes or 0)} on each",
                "Use more GPUs, a ZeRO-3 configuration with offload, or shorter examples.",
            )
        elif kind != usual:
            yield Finding(
                host,
                "gpus",
                YELLOW,
                f"{shown}; {others(count)} {have(count)} {', '.join(usual)}",
                "All ranks go at the pace of the slowest; hosts of one kind waste nothing.",
            )
        else:
            yield Finding(host, "gpus", GREEN, shown)


def cores(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Yellow for fewer cores than slots."""
    for answer in answers:
        if failed := failed_part(answer, "cores"):
            yield failed
            continue
        cores, slots = answer.probe["cores"], answer.node.num_slots
        if cores < slots:
            yield Finding(
                answer.node.host,
                "cores",
                YELLOW,
                f"{cores} CPU cores for {slots} ranks",
                "Ranks will take turns on a core; fewer slots may be faster.",
            )
        else:
            yield Finding(answer.node.host, "cores", GREEN, f"{cores} CPU cores")


def memories(answers: Sequence[Answer], needs: Needs) -> Iterator[Finding]:
    """Red for less than the run needs; what is available counts."""
    for answer in answers:
        if failed := failed_part(answer, "memory"):
            yield failed
            continue
        total, available = answer.probe["memory"]["total"], answer.probe["memory"]["available"]
        shown = f"{gib(available)} of {gib(total)} available"
        need = needs.memory_bytes
        if need is None or available >= need:
            yield Finding(answer.node.host, "memory", GREEN, shown)
        elif total >= need:
            yield Finding(
                answer.node.host,
                "memory",
                RED,
                f"{shown}; the run takes {gib(need)}",
                "Something else uses it: see `ps aux --sort -rss | head`, or wait for it to end.",
            )
        else:
            yield Finding(
                answer.node.host,
                "memory",
                RED,
                f"{shown}; the run takes {gib(need)}",
                "Use more hosts, a configuration without CPU offload, or raise the job's memory limit.",
            )


def open_files(answers: Sequence[Answer], limits: Limits) -> Iterator[Finding]:
    """Red where the ranks' connections cannot all be opened; yellow where it is close."""
    world_size = sum(answer.node.num_slots for answer in answers)
    need = limits.spare_open_files + 2 * world_size
    for answer in answers:
        if failed := failed_part(answer, "files"):
            yield failed
            continue
        own = answer.probe["files"]
        open_files, host = own["open_files"], answer.node.host
        shown = "no limit" if open_files is None else f"{open_files} open files"
        if open_files is not None and open_files < 2 * need:
            yield Finding(
                host,
                "files",
                RED if open_files < need else YELLOW,
                f"{shown} at most; {world_size} ranks take about {need} each",
                "Raise `ulimit -n` for non-interactive logins too (nofile in /etc/security/limits.conf).",
            )
        elif own["infiniband"] and own["locked_bytes"] is not None:
            yield Finding(
                host,
                "files",
                YELLOW,
                f"{gib(own['locked_bytes'])} of locked memory at most, and the host has InfiniBand",
                "Set memlock to unlimited in /etc/security/limits.conf, or NCCL may fail to register memory.",
            )
        else:
            yield Finding(host, "files", GREEN, shown)


def ports(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Yellow for a taken port: another one is chosen."""
    for answer in answers:
        own = answer.probe["port"]
        if not own:
            continue
        if failed := failed_part(answer, "port"):
            yield failed
        elif own["free"]:
            yield Finding(answer.node.host, "port", GREEN, f"{own['number']} is free")
        else:
            yield Finding(
                answer.node.host,
                "port",
                YELLOW,
                f"port {own['number']} is taken",
                "Another one will be used; leave --master-port out to have a free one chosen.",
            )
