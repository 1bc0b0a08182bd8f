"""Hostfiles: "host slots=N" on each line, as DeepSpeed and MPI read them, but strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from launcher.errors import LauncherError
from launcher.job import Node

# RFC 1123 labels, with _ as people use it in ssh configurations; IPv4 addresses fit too.
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")
# Longest host name, in characters (RFC 1035).
_MAX_HOST_LENGTH = 253


def read_hostfile(path: Path) -> tuple[Node, ...]:
    """The nodes of a hostfile, in its order.

    Raises `LauncherError` for a file that cannot be read, and as `parse_hostfile`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise LauncherError(
            f"the hostfile {path} does not exist; mind the spelling, for DeepSpeed would run on this machine "
            "alone without it."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise LauncherError(f"the hostfile {path} cannot be read as UTF-8 text: {error}.") from error
    return parse_hostfile(text.splitlines(), name=str(path))


def parse_hostfile(lines: Iterable[str], name: str) -> tuple[Node, ...]:
    """Nodes from lines of "host slots=N"; blank lines and comments (from # on) count for nothing.

    Raises `LauncherError`, with `name`:line and the line itself quoted, for a bad host name, a missing,
    zero or unreadable number of slots, a host named twice, and a file without hosts.
    """
    first_seen: dict[str, int] = {}
    nodes: list[Node] = []
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            node = _node(words)
            # Host names know no case: NODE1 and node1 are one machine.
            key = node.host.lower()
            if key in first_seen:
                raise LauncherError(
                    f"{node.host} stands on line {first_seen[key]} already; give each host one line with all "
                    "its slots"
                )
        except LauncherError as error:
            raise LauncherError(f"{name}:{number}: {error}. The line reads {line.strip()!r}.") from error
        first_seen[key] = number
        nodes.append(node)
    if not nodes:
        raise LauncherError(
            f"the hostfile {name} names no host. Write one line for each machine, like: node1 slots=8"
        )
    return tuple(nodes)


def _node(words: list[str]) -> Node:
    host, *settings = words
    if len(host) > _MAX_HOST_LENGTH or not _HOST.fullmatch(host):
        raise LauncherError(f"{host!r} is no host name or IPv4 address")
    if len(settings) != 1 or not settings[0].startswith("slots="):
        found = " ".join(settings) or "nothing"
        raise LauncherError(f"slots=N must follow the host name, and nothing else; there is {found!r}")
    number = settings[0].removeprefix("slots=")
    if not re.fullmatch(r"[0-9]{1,6}", number) or int(number) == 0:
        raise LauncherError(f"{settings[0]!r} must be a number of ranks, 1 or more")
    return Node(host, int(number))
