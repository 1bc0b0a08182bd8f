"""Entities that are easily taken for one another: they share a symptom, or one names the other as related."""

from __future__ import annotations

from medsft.knowledge.graph import Entity, Graph
from medsft.knowledge.relations import RELATED, SYMPTOMS

# A symptom of so many entities (fever, fatigue) tells nothing about how near two of them are; and looking at
# all couples that share it would take the square of their number.
_MAX_HOLDERS = 6


class Neighbourhood:
    """Who shares what, for one graph.

    Attributes:
        facts: entity -> relation -> values.
        holders: (relation, value) -> the entities that have it, in the order of the graph.
    """

    def __init__(self, graph: Graph) -> None:
        self.facts = {entity.name: dict(entity.facts) for entity in graph.entities}
        self.holders: dict[tuple[str, str], list[Entity]] = {}
        self._entities = {entity.name: entity for entity in graph.entities}
        for entity in graph.entities:
            for relation, values in entity.facts:
                for value in values:
                    self.holders.setdefault((relation, value), []).append(entity)

    def related(self, entity: Entity) -> list[Entity]:
        """Entities of the graph that it names as related, or that name it so."""
        named = self.facts[entity.name].get(RELATED, ())
        found = [self._entities[name] for name in named if name in self._entities]
        found += self.holders.get((RELATED, entity.name), [])
        return _others(entity, found)

    def alike(self, entity: Entity) -> list[Entity]:
        """Entities that share a symptom with it which is not everybody's."""
        found: list[Entity] = []
        for symptom in self.facts[entity.name].get(SYMPTOMS, ()):
            holders = self.holders[SYMPTOMS, symptom]
            if len(holders) <= _MAX_HOLDERS:
                found += holders
        return _others(entity, found)


def _others(entity: Entity, found: list[Entity]) -> list[Entity]:
    return list({other.name: other for other in found if other.name != entity.name}.values())
