"""Facts -> question-answer pairs by templates: pure, and the same for the same graph and seed.

A choice depends on the seed and on what is chosen for, not on what came before: a new entity leaves the
pairs of the others as they are.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medsft.errors import UserError
from medsft.knowledge.graph import Entity, Graph
from medsft.knowledge.templates import Templates

KINDS = ("single", "several", "reverse")
"""single: one relation of one entity; several: two or more of them; reverse: from a value to its entities."""

# An answer names no more values than this; longer lists end in 等.
_MAX_VALUES = 8
_MAX_OVERVIEW_RELATIONS = 4


@dataclass(frozen=True)
class Pair:
    """One question with its answer.

    Attributes:
        question: without the form around it.
        answer: whole sentences.
        kind: one of KINDS.
        sources: "file:line" of every entity that the answer rests on.
    """

    question: str
    answer: str
    kind: str
    sources: tuple[str, ...]

    def record(self) -> dict[str, str]:
        """The pair as a line of training data: Med-ChatGLM's columns and form."""
        return {"context": f"问题：{self.question}\n回答: ", "target": self.answer}


def make_pairs(
    graph: Graph,
    templates: Templates,
    seed: int,
    kinds: Sequence[str] = KINDS,
    num_phrasings: int = 2,
    max_pairs: int | None = None,
) -> tuple[Pair, ...]:
    """Pairs of the kinds asked for, in the order of the graph; no question comes twice.

    `num_phrasings`: questions for each fact, fewer where the templates have fewer. `max_pairs`: keep so
    many at most, chosen evenly by the seed. Raises `UserError` for unknown kinds and numbers below 1.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(
            f"The kinds of pairs are {', '.join(KINDS)}; {', '.join(unknown) or 'none'} was asked for."
        )
    if num_phrasings < 1 or (max_pairs is not None and max_pairs < 1):
        raise UserError(
            f"The number of phrasings ({num_phrasings}) and of pairs ({max_pairs}) must be 1 or more."
        )
    choose = _Chooser(seed)
    made: list[Pair] = []
    for entity in graph.entities:
        if "single" in kinds:
            made += _single(entity, templates, choose, num_phrasings)
        if "several" in kinds:
            made += _several(entity, templates, choose, num_phrasings)
    if "reverse" in kinds:
        made += _reverse(graph, templates, choose, num_phrasings)
    distinct = {pair.question: pair for pair in reversed(made)}
    pairs = [pair for pair in made if distinct[pair.question] is pair]
    if max_pairs is not None:
        kept = set(choose([pair.question for pair in pairs], max_pairs, "pairs"))
        pairs = [pair for pair in pairs if pair.question in kept]
    return tuple(pairs)


def join(values: Sequence[str], conjunction: str = "和") -> str:
    """A list as Chinese writes it: A、B和C; 以及 where 和 stands in a value; 等 after eight."""
    if len(values) > _MAX_VALUES:
        return "、".join(values[:_MAX_VALUES]) + "等"
    if len(values) < 2:
        return "".join(values)
    if conjunction == "和" and any("和" in value for value in values):
        conjunction = "以及"
    return "、".join(values[:-1]) + conjunction + values[-1]


def _joined(values: Sequence[str]) -> dict[str, str]:
    """Both ways in which a template may name the values of a fact."""
    return {"values": join(values), "choices": join(values, "或")}


@dataclass(frozen=True)
class _Chooser:
    """Chooses by hash: the same on every machine and Python version."""

    seed: int

    def __call__(self, items: Sequence[str], count: int, *purpose: str) -> list[str]:
        def rank(item: str) -> bytes:
            return hashlib.sha256("\x1f".join([str(self.seed), *purpose, item]).encode()).digest()

        return sorted(items, key=rank)[:count]


def _single(entity: Entity, templates: Templates, choose: _Chooser, count: int) -> Iterator[Pair]:
    for relation, values in entity.facts:
        phrasings = templates.of(relation)
        words = {"entity": entity.name, "relation": relation}
        # One answer for a fact, however it is asked.
        (answer,) = choose(phrasings.answers, 1, entity.name, relation, "answer")
        for question in choose(phrasings.questions, count, entity.name, relation, "question"):
            yield Pair(
                question.format(**words),
                answer.format(**words, **_joined(values)),
                "single",
                (entity.source,),
            )


def _several(entity: Entity, templates: Templates, choose: _Chooser, count: int) -> Iterator[Pair]:
    facts = dict(sorted(entity.facts, key=lambda fact: templates.place(fact[0])))
    if len(facts) < 2:
        return
    couples = {"\x1e".join(couple): couple for couple in itertools.combinations(facts, 2)}
    for key in choose(list(couples), count, entity.name, "several"):
        asks = "，".join(templates.of(name).ask.format(relation=name) for name in couples[key])
        (question,) = choose(templates.several, 1, entity.name, key, "question")
        answer = _sentence(entity.name, {name: facts[name] for name in couples[key]}, templates)
        yield Pair(question.format(entity=entity.name, asks=asks), answer, "several", (entity.source,))
    told = dict(itertools.islice(facts.items(), _MAX_OVERVIEW_RELATIONS))
    for question in choose(templates.overview, count, entity.name, "overview"):
        answer = _sentence(entity.name, told, templates)
        yield Pair(question.format(entity=entity.name), answer, "several", (entity.source,))


def _sentence(name: str, facts: dict[str, tuple[str, ...]], templates: Templates) -> str:
    """Facts in one sentence: the first as its answer has it, then the clauses of the others."""
    (first, values), *others = facts.items()
    start = templates.of(first).answers[0].format(entity=name, relation=first, **_joined(values))
    clauses = [
        templates.of(relation).clause.format(relation=relation, **_joined(values))
        for relation, values in others
    ]
    return "，".join([start.rstrip("。"), *clauses]) + "。"


def _reverse(graph: Graph, templates: Templates, choose: _Chooser, count: int) -> Iterator[Pair]:
    holders: dict[tuple[str, str], list[Entity]] = {}
    for entity in graph.entities:
        for relation, values in entity.facts:
            if templates.of(relation).reverse_questions:
                for value in values:
                    holders.setdefault((relation, value), []).append(entity)
    for (relation, value), entities in holders.items():
        phrasings = templates.of(relation)
        words = {"relation": relation, "value": value}
        names = join([entity.name for entity in entities])
        (answer,) = choose(phrasings.reverse_answers, 1, value, relation, "answer")
        for question in choose(phrasings.reverse_questions, count, value, relation, "question"):
            yield Pair(
                question.format(**words),
                answer.format(**words, entities=names),
                "reverse",
                tuple(entity.source for entity in entities),
            )
