"""What a check found, for people (a table: host × check) and for programs (JSON)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.preflight.findings import CHECKS, GREEN, RED, YELLOW, Finding

_SYMBOLS = {GREEN: "✓", YELLOW: "!", RED: "✗"}
_COLOURS = {GREEN: "\033[32m", YELLOW: "\033[33m", RED: "\033[31m"}
_PLAIN = "\033[0m"
_NOT_CHECKED = "·"
# Up to so many hosts have a line each.
_MAX_LINES = 16
# A list of folded hosts is cut to so many characters.
_MAX_NAMES = 60


@dataclass(frozen=True)
class Report:
    """All findings. `probes`: host -> what it said of itself; `collective`: result of the test, or None.

    `notes` are lines for people that belong to no host. `seconds`: how long the check took.
    """

    hosts: tuple[str, ...]
    findings: tuple[Finding, ...]
    probes: Mapping[str, Mapping[str, Any]]
    collective: Mapping[str, Any] | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is red."""
        return not self.bad_hosts

    @property
    def bad_hosts(self) -> tuple[str, ...]:
        """Hosts with something red, in the order of the hosts."""
        red = {finding.host for finding in self.findings if finding.level == RED}
        return tuple(host for host in self.hosts if host in red)

    def table(self, colour: bool = False) -> str:
        """One line a host, from 17 hosts on one for all that are alike; what is not green is told below."""
        cells = {(finding.host, finding.check): finding.level for finding in self.findings}
        checks = [check for check in CHECKS if any((host, check) in cells for host in self.hosts)]
        rows = _rows(self.hosts, checks, cells)
        width = max([len("host"), *(len(names) for names, _ in rows)])
        lines = ["  ".join(["host".ljust(width), *checks])]
        for names, levels in rows:
            if len(self.hosts) > _MAX_LINES and set(levels) <= {GREEN, None}:
                lines.append(f"{names.ljust(width)}  {_painted('all green', GREEN, colour)}")
                continue
            marks = [_mark(level, len(check), colour) for check, level in zip(checks, levels, strict=True)]
            lines.append("  ".join([names.ljust(width), *marks]).rstrip())
        for level in (RED, YELLOW):
            lines += self._told(level, colour)
        lines += self.notes
        lines.append(self.summary())
        return "\n".join(lines) + "\n"

    def summary(self) -> str:
        """One line."""
        took = f"in {self.seconds:.1f} s"
        num_hosts = f"{len(self.hosts)} host{'' if len(self.hosts) == 1 else 's'}"
        if self.ok:
            num_yellow = sum(finding.level == YELLOW for finding in self.findings)
            remarks = f", {num_yellow} remark{'' if num_yellow == 1 else 's'}" if num_yellow else ""
            return f"{num_hosts}: nothing stands in the way{remarks} ({took})"
        return f"{len(self.bad_hosts)} of {num_hosts} must be mended or left out first ({took})"

    def json(self) -> str:
        """{"format": 1, "ok", "seconds", "hosts": {host: {"findings": {check: …}, "probe": …}}, …}."""
        hosts: dict[str, dict[str, Any]] = {
            host: {"findings": {}, "probe": self.probes.get(host)} for host in self.hosts
        }
        for finding in self.findings:
            told = {"level": finding.level, "found": finding.found, "remedy": finding.remedy}
            hosts[finding.host]["findings"][finding.check] = told
        content = {
            "format": 1,
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
            "hosts": hosts,
            "collective": self.collective,
        }
        return json.dumps(content, ensure_ascii=False, indent=2) + "\n"

    def _told(self, level: str, colour: bool) -> list[str]:
        """Findings of a level, those that differ in the host alone as one."""
        hosts: dict[tuple[str, str, str], list[str]] = {}
        for finding in self.findings:
            if finding.level == level:
                key = (finding.check, finding.found, finding.remedy.replace(finding.host, "HOST"))
                hosts.setdefault(key, []).append(finding.host)
        lines = []
        for (check, found, remedy), names in hosts.items():
            if len(names) == 1:
                remedy = remedy.replace("HOST", names[0])
            mark = _painted(_SYMBOLS[level], level, colour)
            lines.append(f"{mark} {_cut(fold(names))} {check}: {found}. {remedy}".rstrip())
        return lines


def fold(hosts: Sequence[str]) -> str:
    """Host names as Slurm writes them: "node[001-003,007],head", sorted within a name."""
    groups: dict[tuple[str, int, str], list[int]] = {}
    for host in hosts:
        # The last digits of the first label; what follows it is the same for all of a cluster.
        found = re.fullmatch(r"([^.]*?)([0-9]{1,9})((?:\..*)?)", host)
        if found is None or re.fullmatch(r"[0-9.]+", host):
            groups[(host, 0, "")] = []
        else:
            before, digits, after = found.groups()
            groups.setdefault((before, len(digits), after), []).append(int(digits))
    return ",".join(_group(*key, numbers) for key, numbers in groups.items())


def _group(before: str, width: int, after: str, numbers: list[int]) -> str:
    if not numbers:
        return before
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = [
        f"{first:0{width}d}" if first == last else f"{first:0{width}d}-{last:0{width}d}"
        for first, last in ranges
    ]
    inner = parts[0] if len(numbers) == 1 else f"[{','.join(parts)}]"
    return f"{before}{inner}{after}"


def _rows(
    hosts: Sequence[str], checks: Sequence[str], cells: Mapping[tuple[str, str], str]
) -> list[tuple[str, tuple[str | None, ...]]]:
    levels = {host: tuple(cells.get((host, check)) for check in checks) for host in hosts}
    if len(hosts) <= _MAX_LINES:
        return list(levels.items())
    # The master's line lacks nothing that others lack on purpose: port is its alone.
    alike: dict[tuple[Any, ...], list[str]] = {}
    for host, row in levels.items():
        key = ("green",) if set(row) <= {GREEN, None} else row
        alike.setdefault(key, []).append(host)
    counts = Counter({key: len(names) for key, names in alike.items()})
    return [(_cut(fold(alike[key])), levels[alike[key][0]]) for key, _ in counts.most_common()]


def _cut(names: str) -> str:
    return names if len(names) <= _MAX_NAMES else names[: _MAX_NAMES - 1] + "…"


def _mark(level: str | None, width: int, colour: bool) -> str:
    symbol = _NOT_CHECKED if level is None else _SYMBOLS[level]
    text = symbol.center(width)
    return text if level is None else _painted(text, level, colour)


def _painted(text: str, level: str, colour: bool) -> str:
    return f"{_COLOURS[level]}{text}{_PLAIN}" if colour else text
