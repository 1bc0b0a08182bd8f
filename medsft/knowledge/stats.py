"""What a graph holds, counted: entities, relations, and how many entities each relation covers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from medsft.knowledge.graph import Graph
from medsft.knowledge.templates import Templates


@dataclass(frozen=True)
class RelationStats:
    """One relation.

    Attributes:
        name: as the templates know it, or the graph's own.
        num_entities: entities that have it.
        num_facts: values in all.
        num_values: different values.
        commonest: the value that most entities share, and how many do.
        has_templates: whether it has phrasings of its own; the general ones are used otherwise.
    """

    name: str
    num_entities: int
    num_facts: int
    num_values: int
    commonest: tuple[str, int]
    has_templates: bool


@dataclass(frozen=True)
class GraphStats:
    """All of it.

    Attributes:
        num_entities, num_facts: of the graph; a fact is one value.
        num_merged, num_repeated, num_bad: records merged, facts repeated or empty, records left out.
        num_links: values that are entities themselves.
        relations: the most frequent first.
        sparse: entities with a single relation, of which few kinds of questions can be asked.
    """

    num_entities: int
    num_facts: int
    num_merged: int
    num_repeated: int
    num_bad: int
    num_links: int
    relations: tuple[RelationStats, ...]
    sparse: tuple[str, ...]


def graph_stats(graph: Graph, templates: Templates) -> GraphStats:
    """Counts a graph."""
    values: dict[str, Counter[str]] = {}
    holders: Counter[str] = Counter()
    for entity in graph.entities:
        for relation, texts in entity.facts:
            values.setdefault(relation, Counter()).update(texts)
            holders[relation] += 1
    names = {entity.name for entity in graph.entities}
    return GraphStats(
        num_entities=len(graph.entities),
        num_facts=graph.num_facts,
        num_merged=graph.num_merged,
        num_repeated=graph.num_repeated,
        num_bad=len(graph.bad),
        num_links=sum(count for texts in values.values() for text, count in texts.items() if text in names),
        relations=tuple(
            RelationStats(
                relation,
                count,
                values[relation].total(),
                len(values[relation]),
                values[relation].most_common(1)[0],
                relation in templates.relations,
            )
            for relation, count in holders.most_common()
        ),
        sparse=tuple(entity.name for entity in graph.entities if len(entity.facts) == 1),
    )
