"""Graph files -> a file of question-answer pairs: what `medsft data build` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.data.files import expand_files
from medsft.data.records import BadLine
from medsft.data.writing import check_output, writing_lines
from medsft.errors import UserError
from medsft.knowledge.card import write_card
from medsft.knowledge.graph import Graph, read_graph
from medsft.knowledge.pairs import KINDS, Pair, make_pairs
from medsft.knowledge.templates import DEFAULT_TEMPLATES, load_templates


@dataclass(frozen=True)
class BuildSummary:
    """What was built.

    Attributes:
        num_entities, num_facts: of the graph; a fact is one value.
        num_merged: records that added to an entity named before.
        num_pairs: kind -> pairs written.
        bad: records that could not be used.
    """

    num_entities: int
    num_facts: int
    num_merged: int
    num_pairs: Mapping[str, int]
    bad: tuple[BadLine, ...]

    def describe(self) -> str:
        """One paragraph for people."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.num_pairs.items())
        text = (
            f"{self.num_entities:,} entities with {self.num_facts:,} facts -> "
            f"{sum(self.num_pairs.values()):,} pairs ({kinds})"
        )
        if self.num_merged:
            text += f"; {self.num_merged:,} records merged into others of the same name"
        if self.bad:
            text += f"; {len(self.bad):,} records left out: " + "; ".join(str(line) for line in self.bad[:5])
        return text


def build_pairs(
    graph_files: Sequence[str | Path],
    output: Path,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    num_phrasings: int = 2,
    max_pairs: int | None = None,
    max_bad_share: float = 0.01,
    templates_file: Path = DEFAULT_TEMPLATES,
) -> BuildSummary:
    """Writes `output` (.jsonl, an object with context, target and provenance a line), whole or not at all.

    Beside it goes a data card, `<name>.card.md`.

    Arguments as in `read_graph` and `make_pairs`. Raises `UserError` as these do, and for an output that
    cannot be written.
    """
    check_output(output, expand_files(graph_files))
    templates = load_templates(templates_file)
    graph = read_graph(graph_files, max_bad_share)
    pairs = make_pairs(graph, templates, seed, kinds, num_phrasings, max_pairs)
    if not pairs:
        raise UserError(
            f"The graph's {len(graph.entities)} entities give no pair of the kinds {', '.join(kinds)}; "
            "several needs two relations of an entity, reverse a relation with reverse phrasings."
        )
    write_pairs(output, pairs, {"seed": seed})
    summary = _summary(graph, pairs)
    settings = {
        "seed": seed,
        "kinds": ", ".join(kinds),
        "phrasings of a fact": num_phrasings,
        "largest number of pairs": "no limit" if max_pairs is None else max_pairs,
    }
    write_card(output.with_suffix(".card.md"), [output], graph_files, templates_file, settings, summary)
    return summary


def write_pairs(output: Path, pairs: Sequence[Pair], made_by: Mapping[str, Any]) -> None:
    """Writes pairs with their provenance, all or none; `UserError` where the file cannot be written."""
    with writing_lines(output) as write:
        for pair in pairs:
            write(pair.record_with_provenance(made_by))


def _summary(graph: Graph, pairs: Sequence[Pair]) -> BuildSummary:
    return BuildSummary(
        num_entities=len(graph.entities),
        num_facts=graph.num_facts,
        num_merged=graph.num_merged,
        num_pairs=Counter(pair.kind for pair in pairs),
        bad=graph.bad,
    )
