"""Two relations of an entity at once, and what is known of it in short: 请介绍一下偏头痛。"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import Entity
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates
from medsft.knowledge.wording import joined

_MAX_OVERVIEW_RELATIONS = 4


def several(
    entity: Entity, around: Neighbourhood, templates: Templates, choose: SeededChoice, count: int
) -> Iterator[Pair]:
    """For an entity `count` couples of relations, and `count` overviews."""
    facts = dict(sorted(entity.facts, key=lambda fact: templates.place(fact[0])))
    if len(facts) < 2:
        return
    about = ("several", (entity.source,), (entity.name,))
    couples = {"\x1e".join(couple): couple for couple in itertools.combinations(facts, 2)}
    for key in choose(list(couples), count, entity.name, "several"):
        asks = "，".join(templates.of(name).ask.format(relation=name) for name in couples[key])
        (question,) = choose(templates.several, 1, entity.name, key, "question")
        asked = {name: facts[name] for name in couples[key]}
        yield Pair(
            question.format(entity=entity.name, asks=asks),
            _sentence(entity.name, asked, templates),
            *about,
            couples[key],
            f"several.{templates.several.index(question)}",
            tuple(asked.items()),
        )
    told = dict(itertools.islice(facts.items(), _MAX_OVERVIEW_RELATIONS))
    for question in choose(templates.overview, count, entity.name, "overview"):
        yield Pair(
            question.format(entity=entity.name),
            _sentence(entity.name, told, templates),
            *about,
            tuple(told),
            f"overview.{templates.overview.index(question)}",
            tuple(told.items()),
        )


def _sentence(name: str, facts: Mapping[str, tuple[str, ...]], templates: Templates) -> str:
    """Facts in one sentence: the first as its answer has it, then the clauses of the others."""
    (first, values), *others = facts.items()
    start = templates.of(first).answers[0].format(entity=name, relation=first, **joined(values))
    clauses = [
        templates.of(relation).clause.format(relation=relation, **joined(values))
        for relation, values in others
    ]
    return "，".join([start.rstrip("。"), *clauses]) + "。"
