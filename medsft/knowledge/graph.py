"""Knowledge graphs in files -> entities with their facts.

A record is an object like `{"中心词": "偏头痛", "相关症状": ["恶心", "畏光"], "所属科室": ["神经内科"]}`:
the name of an entity, then any number of relations, each a list of texts or one text. The files are those
of `medsft.data.files`, most often one object a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.data.files import BadRecord, expand_files, iter_objects
from medsft.data.records import BadLine
from medsft.errors import UserError

NAME_FIELD = "中心词"
SAMPLE_GRAPH = Path(__file__).with_name("sample.jsonl")
"""Common medical knowledge written for this project: for trying things out, no medical advice."""


@dataclass(frozen=True)
class Entity:
    """One thing that is known about, most often a disease.

    Attributes:
        name: unique in its graph.
        facts: (relation, values) in the order of the file; values are not empty and differ.
        source: "file:line" of its first record.
    """

    name: str
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    source: str


@dataclass(frozen=True)
class Graph:
    """What some files hold.

    Attributes:
        entities: in the order of their first records.
        num_merged: records that added to an entity named before.
        bad: records that could not be used.
    """

    entities: tuple[Entity, ...]
    num_merged: int
    bad: tuple[BadLine, ...]

    @property
    def num_facts(self) -> int:
        """Number of (entity, relation, value) triples."""
        return sum(len(values) for entity in self.entities for _, values in entity.facts)


def read_graph(files: Sequence[str | Path], max_bad_share: float = 0.01) -> Graph:
    """Reads files into one graph; records of the same name become one entity.

    `max_bad_share`: largest tolerable share of unusable records, 0 to 1. Raises `UserError` above it, when
    no record can be used, and for files that cannot be read.
    """
    merged: dict[str, dict[str, list[str]]] = {}
    sources: dict[str, str] = {}
    bad: list[BadLine] = []
    num_records = 0
    for path in expand_files(files):
        for line, value in iter_objects(path):
            num_records += 1
            source = f"{path}:{line}"
            try:
                name, facts = parse_record(value)
            except BadRecord as fault:
                bad.append(BadLine(source, fault.reason, fault.detail))
                continue
            sources.setdefault(name, source)
            known = merged.setdefault(name, {})
            for relation, values in facts.items():
                known[relation] = _distinct([*known.get(relation, []), *values])
    _check_bad(bad, num_records, max_bad_share)
    entities = tuple(
        Entity(name, tuple((relation, tuple(values)) for relation, values in facts.items()), sources[name])
        for name, facts in merged.items()
    )
    return Graph(entities, num_records - len(bad) - len(entities), tuple(bad))


def parse_record(record: object) -> tuple[str, dict[str, list[str]]]:
    """Name and relation -> values of a raw record; empty values and relations are left out.

    Raises `BadRecord` for what is no object, has no name, holds other things than texts and numbers, or
    says nothing about its entity.
    """
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, Mapping):
        raise BadRecord("not a JSON object", f"a {type(record).__name__}")
    if NAME_FIELD not in record:
        raise BadRecord(f"no {NAME_FIELD}", "has " + (", ".join(map(str, record)) or "no fields"))
    names = _texts(NAME_FIELD, record[NAME_FIELD])
    if len(names) != 1:
        raise BadRecord(f"{NAME_FIELD} must be one text", f"it is {record[NAME_FIELD]!r}")
    facts = {
        clean: values
        for relation, value in record.items()
        if relation != NAME_FIELD and (clean := _clean(str(relation))) and (values := _texts(clean, value))
    }
    if not facts:
        raise BadRecord("no facts", f"nothing is said about {names[0]}")
    return names[0], facts


def _texts(field: str, value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    texts = []
    for item in items:
        if item is None:
            continue
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise BadRecord("wrong type", f"{field} holds a {type(item).__name__}, not text")
        texts.append(_clean(str(item)))
    return _distinct([text for text in texts if text])


def _clean(text: str) -> str:
    """White space made single; `BadRecord` for text that UTF-8 cannot express (half a surrogate pair)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord("not valid UTF-8", f"character {error.start + 1} of a text") from error
    return " ".join(text.split())


def _distinct(values: list[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _check_bad(bad: Sequence[BadLine], num_records: int, max_bad_share: float) -> None:
    if not num_records:
        raise UserError("The graph files hold no record; give at least one entity with a fact.")
    if len(bad) == num_records or len(bad) / num_records > max_bad_share:
        first = "; ".join(str(line) for line in bad[:3])
        raise UserError(
            f"{len(bad)} of {num_records} records of the graph cannot be used, more than the allowed "
            f"share of {max_bad_share:g}: {first}{' …' if len(bad) > 3 else ''}. Mend them, or "
            "allow a larger share."
        )
