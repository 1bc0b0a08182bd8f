"""What hosts have in common or apart: disks, the output folder, the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.preflight.answer import Answer, Limits, Needs, failed_part, gib
from launcher.preflight.findings import GREEN, RED, YELLOW, Finding


def disks(answers: Sequence[Answer], needs: Needs, limits: Limits) -> Iterator[Finding]:
    """Red for too little room for the output; yellow for a small /tmp or /dev/shm."""
    for answer in answers:
        if failed := failed_part(answer, "disk"):
            yield failed
            continue
        faults, remedies, level = [], [], GREEN
        shown = []
        for name, at_least in (
            ("output", needs.disk_bytes),
            ("tmp", limits.min_tmp_bytes),
            ("shm", limits.min_shm_bytes),
        ):
            place = answer.probe["disk"].get(name)
            if place is None:
                continue
            if "error" in place:
                level = RED if name == "output" else level if level == RED else YELLOW
                faults.append(f"free space of {name} could not be found out: {place['error']}")
                remedies.append("Mount it.")
                continue
            shown.append(f"{gib(place['free'])} free in {place['folder']}")
            if at_least is not None and place["free"] < at_least:
                level = RED if name == "output" else level if level == RED else YELLOW
                faults.append(f"{gib(place['free'])} free in {place['folder']}, {gib(at_least)} are needed")
                remedies.append(
                    "Make room, keep fewer checkpoints (--save_total_limit), or choose another --output_dir."
                    if name == "output"
                    else f"Make room in {place['folder']}, or mount it larger."
                )
        yield Finding(
            answer.node.host, "disk", level, "; ".join(faults or shown), " ".join(dict.fromkeys(remedies))
        )


def outputs(answers: Sequence[Answer]) -> Iterator[Finding]:
    """Red where the output folder is not the first host's, or cannot be written to."""
    for answer in answers:
        own = answer.probe["output"]
        if not own:
            continue
        if "error" in own:
            yield Finding(
                answer.node.host,
                "output",
                RED,
                f"cannot be written to: {own['error']}",
                "Give your user the right to write there, or choose another --output_dir.",
            )
        elif own["nonce"] not in ("written", "read"):
            what = (
                "a file that the first host wrote is not there" if own["nonce"] == "missing" else own["nonce"]
            )
            yield Finding(
                answer.node.host,
                "output",
                RED,
                f"{own['folder']} is not the first host's folder: {what}",
                "Put --output_dir on a file system that all hosts mount at the same path.",
            )
        elif own["writable"] is not True:
            yield Finding(
                answer.node.host,
                "output",
                RED,
                f"{own['folder']} cannot be written to: {own['writable']}",
                "Mount it for writing, and give your user the right to write there on every host.",
            )
        else:
            yield Finding(answer.node.host, "output", GREEN, f"{own['folder']} is shared and writable")


def skew_s(answer: Answer) -> float:
    """By how much at least the host's clock is ahead of the head's, in seconds; 0 where it may be right.

    The host read its clock between the question and the answer, which bounds the difference on both sides.
    """
    least = answer.probe["clock"]["ended"] - answer.answered_s
    most = answer.probe["clock"]["began"] - answer.asked_s
    return least if least > 0 else min(most, 0.0)


def clocks(answers: Sequence[Answer], limits: Limits) -> Iterator[Finding]:
    """Yellow for a clock that is off."""
    for answer in answers:
        ahead_s = skew_s(answer)
        side = "ahead of" if ahead_s > 0 else "behind"
        if abs(ahead_s) > limits.clock_skew_s:
            yield Finding(
                answer.node.host,
                "clock",
                YELLOW,
                f"{abs(ahead_s):.0f} s {side} this machine",
                "Start a time service there (chrony, systemd-timesyncd); training goes by step numbers.",
            )
        else:
            yield Finding(
                answer.node.host, "clock", GREEN, f"within {limits.clock_skew_s:g} s of this machine"
            )
