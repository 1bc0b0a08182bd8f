"""Knowledge graphs in files -> entities with their facts; the forms of files are in `sources`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsft.data.files import OnBytes, expand_files
from medsft.data.records import BadLine
from medsft.errors import UserError
from medsft.knowledge.sources import NAME_FIELD, Statement, iter_statements

__all__ = ["COMMON_GRAPH", "NAME_FIELD", "SAMPLE_GRAPH", "Entity", "Graph", "merge", "read_graph"]

SAMPLE_GRAPH = Path(__file__).with_name("sample.jsonl")
"""A few dozen entities for the demo; see COMMON_GRAPH."""

COMMON_GRAPH = Path(__file__).with_name("common.jsonl")
"""Common medical knowledge written for this project: for trying things out, no medical advice."""


Facts = tuple[tuple[str, tuple[str, ...]], ...]
"""(relation, values) of an entity."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing that is known about, most often a disease.

    Attributes:
        name: unique in its graph.
        facts: (relation, values) in the order of the file; values are not empty and differ.
        source: "file:line" of its first record.
    """

    name: str
    facts: Facts
    source: str

    def values(self, relation: str) -> tuple[str, ...]:
        """Those of a relation, none where it is not known."""
        return next((values for name, values in self.facts if name == relation), ())


@dataclass(frozen=True)
class Graph:
    """What some files hold.

    Attributes:
        entities: in the order of their first records.
        num_merged: records that added to an entity named before.
        bad: records that could not be used.
        num_repeated: facts that were told more than once, each repetition counted, and values that say
            nothing.
    """

    entities: tuple[Entity, ...]
    num_merged: int
    bad: tuple[BadLine, ...]
    num_repeated: int = 0

    @property
    def num_facts(self) -> int:
        """Number of (entity, relation, value) triples."""
        return sum(len(values) for entity in self.entities for _, values in entity.facts)


def read_graph(
    files: Sequence[str | Path], max_bad_share: float = 0.01, on_bytes: OnBytes | None = None
) -> Graph:
    """Reads files into one graph; records of the same name become one entity.

    `max_bad_share`: largest tolerable share of unusable records, 0 to 1. Raises `UserError` above it, when
    no record can be used, and for files that cannot be read.
    """
    bad: list[BadLine] = []

    def usable() -> Iterator[Statement]:
        for item in iter_files(files, on_bytes):
            if isinstance(item, BadLine):
                bad.append(item)
            else:
                yield item

    graph = merge(usable())
    check_bad(bad, len(graph.entities) + graph.num_merged + len(bad), max_bad_share)
    return replace(graph, bad=tuple(bad))


def iter_files(files: Sequence[str | Path], on_bytes: OnBytes | None = None) -> Iterator[Statement | BadLine]:
    """Statements of files, folders and patterns in order; raises `UserError` for what cannot be read."""
    for path in expand_files(files):
        yield from iter_statements(path, on_bytes)


def merge(statements: Iterable[Statement]) -> Graph:
    """Statements of the same name as one entity, each fact once; entities in the order of first mention.

    Equal texts are held once: most values of a graph belong to many entities.
    """
    entities: dict[str, Entity] = {}
    growing: dict[str, dict[str, dict[str, None]]] = {}
    held: dict[str, str] = {}
    num_statements = num_repeated = 0
    for statement in statements:
        num_statements += 1
        num_repeated += statement.num_cleared
        facts = tuple(
            (held.setdefault(relation, relation), tuple(held.setdefault(value, value) for value in values))
            for relation, values in statement.facts.items()
        )
        first = entities.get(statement.name)
        if first is None:
            entities[statement.name] = Entity(statement.name, facts, statement.source)
            continue
        known = growing.setdefault(
            statement.name, {relation: dict.fromkeys(values) for relation, values in first.facts}
        )
        for relation, values in facts:
            texts = known.setdefault(relation, {})
            num_repeated += sum(value in texts for value in values)
            texts.update(dict.fromkeys(values))
    for name, known in growing.items():
        facts = tuple((relation, tuple(values)) for relation, values in known.items())
        entities[name] = replace(entities[name], facts=facts)
    return Graph(tuple(entities.values()), num_statements - len(entities), (), num_repeated)


def check_bad(bad: Sequence[BadLine], num_records: int, max_bad_share: float) -> None:
    """Raises `UserError` above the tolerable share of bad records, and where no record can be used."""
    if not num_records:
        raise UserError("The graph files hold no record; give at least one entity with a fact.")
    if len(bad) == num_records or len(bad) / num_records > max_bad_share:
        first = "; ".join(str(line) for line in bad[:3])
        raise UserError(
            f"{len(bad)} of {num_records} records of the graph cannot be used, more than the allowed "
            f"share of {max_bad_share:g}: {first}{' …' if len(bad) > 3 else ''}. Mend them, or "
            "allow a larger share."
        )
