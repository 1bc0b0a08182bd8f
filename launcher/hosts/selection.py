"""Which of the hosts, and of their slots, a job takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launcher.errors import LauncherError
from launcher.job import Node


def select(
    nodes: Sequence[Node],
    include: str | None = None,
    exclude: str | None = None,
    num_nodes: int | None = None,
    num_gpus: int | None = None,
) -> tuple[Node, ...]:
    """The nodes that the flags leave.

    `include` and `exclude` read as DeepSpeed's: "node1@node2:0,2" is all of node1, and the slots (GPUs) 0 and
    2 of node2. `num_nodes` takes the first ones, `num_gpus` the first slots of each. Raises `LauncherError`
    for unknown hosts and slots, for both lists at once, for numbers too large, and when nothing is left.
    """
    if include is not None and exclude is not None:
        raise LauncherError("--include and --exclude exclude each other; give one of them.")
    if include is not None:
        chosen = _parse(include, nodes, "--include")
        nodes = [_only(node, chosen[node.host]) for node in nodes if node.host in chosen]
    if exclude is not None:
        left_out = _parse(exclude, nodes, "--exclude")
        nodes = [left for node in nodes if (left := _without(node, left_out.get(node.host))) is not None]
        if not nodes:
            raise LauncherError(f"--exclude {exclude!r} leaves no slot at all.")
    if num_nodes is not None:
        _check("--num-nodes", num_nodes, len(nodes), "hosts")
        nodes = nodes[:num_nodes]
    if num_gpus is not None:
        for node in nodes:
            _check("--num-gpus", num_gpus, node.num_slots, f"slots of {node.host}")
        nodes = [replace(node, num_slots=num_gpus, devices=node.devices[:num_gpus]) for node in nodes]
    return tuple(nodes)


def _check(flag: str, number: int, most: int, what: str) -> None:
    if not 1 <= number <= most:
        raise LauncherError(f"{flag} {number} must be from 1 to {most}, the number of {what}.")


def _parse(text: str, nodes: Sequence[Node], flag: str) -> dict[str, tuple[int, ...]]:
    """Host -> slots that are named for it, all of them when none is."""
    by_name = {node.host: node for node in nodes}
    found: dict[str, tuple[int, ...]] = {}
    for part in text.split("@"):
        host, colon, numbers = part.strip().partition(":")
        if host not in by_name:
            known = ", ".join(list(by_name)[:8]) + (", …" if len(by_name) > 8 else "")
            raise LauncherError(f"{flag} {text!r}: {host!r} is none of the hosts ({known}).")
        if host in found:
            raise LauncherError(f"{flag} {text!r} names {host} twice.")
        slots = range(by_name[host].num_slots)
        words = numbers.split(",") if colon else [str(slot) for slot in slots]
        bad = [word for word in words if not word.strip().isdecimal() or int(word) not in slots]
        if bad:
            raise LauncherError(
                f"{flag} {text!r}: {host} has the slots 0 to {slots.stop - 1}, not {bad[0]!r}. Write it like "
                "node1@node2:0,2."
            )
        found[host] = tuple(sorted({int(word) for word in words}))
    return found


def _only(node: Node, slots: tuple[int, ...]) -> Node:
    return node if len(slots) == node.num_slots else replace(node, num_slots=len(slots), devices=slots)


def _without(node: Node, slots: tuple[int, ...] | None) -> Node | None:
    left = tuple(slot for slot in range(node.num_slots) if slot not in (slots or ()))
    return _only(node, left) if left else None
