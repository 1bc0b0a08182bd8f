"""All that the agent of a host needs, as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.job import Job, Node

VARIABLE = "MEDSFT_AGENT"
"""Holds the document where a scheduler carries the environment safely (Slurm)."""


@dataclass(frozen=True)
class Spec:
    """launch: id of the launch. token: hex, known to its processes only. addresses, port: where the head
    listens, best address first. index: which of the job's nodes this host is; None: Slurm says. folder: the
    working directory on every host.
    """

    launch: str
    token: str = field(repr=False)
    addresses: tuple[str, ...]
    port: int
    index: int | None
    folder: str
    job: Job

    def to_json(self) -> str:
        """The document, in ASCII."""
        return self.writer()(self.index)

    def writer(self) -> Callable[[int | None], str]:
        """Index -> the document for that node: with a thousand nodes what they share is taken apart once."""
        fields = asdict(self)
        return lambda index: json.dumps(fields | {"index": index}, default=str)

    @staticmethod
    def from_json(text: str) -> Spec:
        """Raises `ValueError`, `KeyError` or `TypeError` for anything else than `to_json` has made."""
        fields: Any = json.loads(text)
        if not isinstance(fields, dict) or not isinstance(fields.get("job"), dict):
            raise ValueError(f"no part of a job: {text[:80]!r}")
        job = fields.pop("job")
        job["nodes"] = tuple(
            Node(node["host"], node["num_slots"], tuple(node["devices"])) for node in job["nodes"]
        )
        job["environment"] = tuple((name, value) for name, value in job["environment"])
        job["arguments"] = tuple(job["arguments"])
        job["script"] = Path(job["script"])
        job["logs"] = None if job["logs"] is None else Path(job["logs"])
        fields["addresses"] = tuple(fields["addresses"])
        return Spec(**fields, job=Job(**job))
