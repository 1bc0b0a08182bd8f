"""What must be alike on all hosts: Python, packages, code, data, drivers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.preflight.answer import Answer, failed_part
from launcher.preflight.findings import GREEN, RED, YELLOW, Finding


def usual_value(values: Sequence[Any]) -> tuple[Any, int]:
    """The most frequent value and how often it occurs; of several such the first."""
    return Counter(values).most_common(1)[0]


def others(count: int) -> str:
    """ "3 other hosts"; a verb in the same number is `have`."""
    return f"{count} other host{'' if count == 1 else 's'}"


def have(count: int) -> str:
    """The verb to `others`."""
    return "has" if count == 1 else "have"


def pythons(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Red for another minor version, yellow for another patch release."""
    versions = [answer.probe["python"]["version"] for answer in answers]
    usual, count = usual_value(versions)
    for answer, version in zip(answers, versions, strict=True):
        host, executable = answer.node.host, answer.probe["python"]["executable"]
        if version == usual:
            yield Finding(host, "python", GREEN, f"{version}, {executable}")
        elif version.split(".")[:2] == usual.split(".")[:2]:
            yield Finding(
                host,
                "python",
                YELLOW,
                f"Python {version}; {others(count)} {have(count)} {usual}",
                "Bring it to the same release when convenient.",
            )
        else:
            yield Finding(
                host,
                "python",
                RED,
                f"Python {version} ({executable}); {others(count)} {have(count)} {usual}",
                f"Install Python {usual} at the same path on every host.",
            )


def packages(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Red for a missing package and for another version."""
    known = [answer.probe["packages"] for answer in answers if "error" not in answer.probe["packages"]]
    names = list(dict.fromkeys(name for versions in known for name in versions))
    usual = {
        # Missing on most hosts is still missing.
        name: usual_value([version for versions in known if (version := versions[name])] or [None])
        for name in names
    }
    for answer in answers:
        if failed := failed_part(answer, "packages"):
            yield failed
            continue
        own = answer.probe["packages"]
        missing = [name for name in names if own[name] is None]
        other = [
            f"{name} {own[name]}; {others(usual[name][1])} {have(usual[name][1])} {usual[name][0]}"
            for name in names
            if own[name] not in (None, usual[name][0])
        ]
        if missing or other:
            found = [f"without {', '.join(missing)}"] if missing else []
            wanted = [
                f"{name}=={usual[name][0]}" if usual[name][0] else name
                for name in names
                if own[name] is None or own[name] != usual[name][0]
            ]
            yield Finding(
                answer.node.host,
                "packages",
                RED,
                "; ".join(found + other),
                f"There: {answer.probe['python']['executable']} -m pip install {' '.join(wanted)}",
            )
        else:
            versions = ", ".join(f"{name} {own[name]}" for name in names)
            yield Finding(answer.node.host, "packages", GREEN, versions)


def commits(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Red for other code, be it uncommitted; yellow for another commit with the same code."""
    known = [answer for answer in answers if "error" not in answer.probe["commit"]]
    if known:
        code, num_code = usual_value([answer.probe["commit"]["code"] for answer in known])
        commits = [answer.probe["commit"]["commit"] for answer in known]
        # A host without git says "unknown": there is nothing to compare then but the code itself.
        commit, num_commit = usual_value([name for name in commits if name != "unknown"] or ["unknown"])
    for answer in answers:
        host, own = answer.node.host, answer.probe["commit"]
        if "error" in own:
            yield Finding(
                host,
                "commit",
                RED,
                f"no repository there: {own['error']}",
                "Clone it at the same path on every host, or use a folder that all of them share.",
            )
        elif own["code"] != code:
            yield Finding(
                host,
                "commit",
                RED,
                f"{_named(own)}, code {own['code'][:8]}; {others(num_code)} {have(num_code)} "
                f"{commit[:10]}, code {code[:8]}",
                f"There, in {own['repository']}: git status, then git checkout {commit[:10]}.",
            )
        elif own["commit"] not in (commit, "unknown"):
            yield Finding(
                host,
                "commit",
                YELLOW,
                f"{_named(own)}; {others(num_commit)} {have(num_commit)} {commit[:10]} (the same code)",
                f"There, in {own['repository']}: git checkout {commit[:10]}.",
            )
        else:
            yield Finding(host, "commit", GREEN, f"{_named(own)}, code {own['code'][:8]}")


def _named(own: Mapping[str, Any]) -> str:
    return own["commit"][:10] + (" with changes" if own["dirty"] else "")


def data(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Red for a file that cannot be read, or has another fingerprint."""
    paths = list(dict.fromkeys(path for answer in answers for path in answer.probe["data"]))
    if not paths:
        return
    usual = {}
    for path in paths:
        digests = [answer.probe["data"][path].get("sha256") for answer in answers]
        usual[path] = usual_value([digest for digest in digests if digest] or [None])
    for answer in answers:
        faults = []
        for path in paths:
            own = answer.probe["data"][path]
            digest, count = usual[path]
            if "error" in own:
                faults.append(f"{path} cannot be read: {own['error']}")
            elif own["sha256"] != digest:
                faults.append(
                    f"{path} has SHA-256 {own['sha256'][:12]} ({own['size']} bytes); {others(count)} "
                    f"{have(count)} {digest[:12]}"
                )
        shown = ", ".join(
            f"{path} {answer.probe['data'][path].get('sha256', '')[:12]} "
            f"({answer.probe['data'][path].get('hashed', '')})"
            for path in paths
        )
        if faults:
            yield Finding(
                answer.node.host,
                "data",
                RED,
                "; ".join(faults),
                "Copy the same files to the same path on every host (rsync -c), or share a folder.",
            )
        else:
            yield Finding(answer.node.host, "data", GREEN, shown)


def drivers(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Yellow for another driver; no finding where there is none."""
    drivers = [
        ", ".join(sorted({gpu["driver"] for gpu in answer.probe["gpus"].get("gpus", [])}))
        for answer in answers
    ]
    usual, count = usual_value([driver for driver in drivers if driver] or [""])
    for answer, driver in zip(answers, drivers, strict=True):
        if not driver:
            continue
        if driver == usual:
            yield Finding(answer.node.host, "driver", GREEN, driver)
        else:
            yield Finding(
                answer.node.host,
                "driver",
                YELLOW,
                f"driver {driver}; {others(count)} {have(count)} {usual}",
                "Bring all hosts to one driver; NCCL may pick slower ways between unlike ones.",
            )
