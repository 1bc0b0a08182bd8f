"""Entities that are easily taken for one another: they share a symptom, or one names the other as related."""

from __future__ import annotations

from functools import cached_property

from medsft.knowledge.graph import Entity, Graph
from medsft.knowledge.relations import RELATED, SYMPTOMS

# A symptom of so many entities (fever, fatigue) tells nothing about how near two of them are; and looking at
# all couples that share it would take the square of their number.
_MAX_HOLDERS = 6


class Neighbourhood:
    """Who shares what, for one graph.

    Attributes:
        entities: of the graph, in its order.
    """

    def __init__(self, graph: Graph) -> None:
        self.entities = graph.entities

    @cached_property
    def holders(self) -> dict[tuple[str, str], list[Entity]]:
        """(relation, value) -> the entities that have it, in the order of the graph."""
        holders: dict[tuple[str, str], list[Entity]] = {}
        for entity in self.entities:
            for relation, values in entity.facts:
                for value in values:
                    holders.setdefault((relation, value), []).append(entity)
        return holders

    @cached_property
    def _places(self) -> dict[str, int]:
        return {entity.name: place for place, entity in enumerate(self.entities)}

    def index(self) -> None:
        """Makes now what is looked up later."""
        assert self.holders is not None and self._places is not None

    def place(self, entity: Entity) -> int:
        """Its number in the order of the graph."""
        return self._places[entity.name]

    def has(self, name: str) -> bool:
        """Whether an entity of the graph has the name."""
        return name in self._places

    def related(self, entity: Entity) -> list[Entity]:
        """Entities of the graph that it names as related, or that name it so."""
        named = entity.values(RELATED)
        found = [self.entities[self._places[name]] for name in named if name in self._places]
        found += self.holders.get((RELATED, entity.name), [])
        return _others(entity, found)

    def alike(self, entity: Entity) -> list[Entity]:
        """Entities that share a symptom with it which is not everybody's."""
        found: list[Entity] = []
        for symptom in entity.values(SYMPTOMS):
            holders = self.holders[SYMPTOMS, symptom]
            if len(holders) <= _MAX_HOLDERS:
                found += holders
        return _others(entity, found)


def _others(entity: Entity, found: list[Entity]) -> list[Entity]:
    return list({other.name: other for other in found if other.name != entity.name}.values())
