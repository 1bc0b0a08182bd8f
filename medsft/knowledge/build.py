"""Graph files -> a file of question-answer pairs: what `medsft data build` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.data.files import expand_files
from medsft.data.progress import Steps, bytes_of, counting, silent_steps
from medsft.data.records import BadLine
from medsft.data.writing import check_output
from medsft.errors import UserError
from medsft.knowledge.card import write_card
from medsft.knowledge.graph import Graph, read_graph
from medsft.knowledge.pair_file import write_pairs
from medsft.knowledge.pairs import KINDS, PairRecipe
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
    num_workers: int = 1,
    steps: Steps = silent_steps,
) -> BuildSummary:
    """Writes `output` (.jsonl, an object with context, target and provenance a line), whole or not at all.

    Beside it goes a data card, `<name>.card.md`.

    Arguments as in `read_graph`, `PairRecipe` and `write_pairs`. Raises `UserError` as these do, and for an
    output that cannot be written.
    """
    paths = expand_files(graph_files)
    check_output(output, paths)
    if max_pairs is not None and max_pairs < 1:
        raise UserError(f"The number of pairs to keep is {max_pairs}; it must be 1 or more.")
    templates = load_templates(templates_file)
    PairRecipe(Graph((), 0, ()), templates, seed, kinds, num_phrasings)
    with steps("reading") as progress:
        graph = read_graph(paths, max_bad_share, counting(progress, bytes_of(paths)))
    recipe = PairRecipe(graph, templates, seed, kinds, num_phrasings)
    with steps("writing pairs") as progress:
        portions = list(recipe.portions)
        written = write_pairs(output, recipe.pairs, portions, seed, num_workers, max_pairs, progress=progress)
    if not written.num_pairs:
        raise UserError(
            f"The graph's {len(graph.entities)} entities give no pair of the kinds {', '.join(kinds)}; "
            "several needs two relations of an entity, reverse a relation with reverse phrasings."
        )
    summary = BuildSummary(
        len(graph.entities), graph.num_facts, graph.num_merged, written.num_pairs, graph.bad
    )
    settings = {
        "seed": seed,
        "kinds": ", ".join(kinds),
        "phrasings of a fact": num_phrasings,
        "largest number of pairs": "no limit" if max_pairs is None else max_pairs,
    }
    write_card(output.with_suffix(".card.md"), [output], graph_files, templates_file, settings, summary)
    return summary
