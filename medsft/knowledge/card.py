"""The data card: what a set holds, what it was made of and how, so that it can be made again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import medsft
from medsft.data.files import expand_files, file_sha256
from medsft.files import write_text

NOTE = (
    "These texts were made by a program from a knowledge graph. They may be wrong or incomplete and are no "
    "medical advice. 本数据由程序根据知识图谱生成，可能有误或不完整，不构成医疗建议。"
)


class Described(Protocol):
    """A summary that can tell what was made."""

    def describe(self) -> str:
        """One paragraph for people."""


def write_card(
    path: Path,
    outputs: Sequence[Path],
    graph_files: Sequence[str | Path],
    phrasings_file: Path,
    settings: Mapping[str, Any],
    summary: Described,
) -> None:
    """Writes the card as Markdown; the SHA-256 of every file that went in or came out stands in it."""
    lines = [
        f"# {path.name.removesuffix('.card.md') if path.name.endswith('.card.md') else path.parent.name}",
        "",
        NOTE,
        "",
        summary.describe() + ".",
        "",
        "| setting | value |",
        "| --- | --- |",
        f"| medsft | {medsft.__version__} |",
        *(f"| {name} | {value} |" for name, value in settings.items()),
        "",
        "| file | SHA-256 |",
        "| --- | --- |",
        *(f"| {file.name} | {file_sha256(file)} |" for file in outputs),
        *(f"| graph: {file.name} | {file_sha256(file)} |" for file in expand_files(graph_files)),
        f"| phrasings: {phrasings_file.name} | {file_sha256(phrasings_file)} |",
        "",
        "Each record carries its provenance: kind, phrasings or prompt, the graph's records it rests on "
        "(file:line), entities, relations, facts to judge answers by, seed or model, and a hash of its text.",
    ]
    write_text(path, "\n".join(lines) + "\n")
