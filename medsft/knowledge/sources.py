"""Files in the forms that graphs come in -> statements: an entity's name with some of its relations.

| form | looks like |
| --- | --- |
| records, in any data file | `{"中心词": "偏头痛", "相关症状": ["恶心", "畏光"]}` |
| triples (`.csv`; also as objects) | columns `head,relation,tail`, or others of TRIPLE_COLUMNS |
| Neo4j (`.json`, `.jsonl`) | `apoc.export.json` in any of its forms; the browser's export of paths or rows |

Formats are recognised record by record, so that files may be given together. What cannot be used comes out as
a `BadLine`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medsft.data.files import BadRecord, OnBytes, iter_objects
from medsft.data.records import BadLine
from medsft.knowledge.cleaning import clean_name, clean_text, clean_values
from medsft.knowledge.texts_file import read_texts

NAME_FIELD = "中心词"
TRIPLE_COLUMNS = (
    ("head", "relation", "tail"),
    ("subject", "predicate", "object"),
    ("头实体", "关系", "尾实体"),
    ("实体1", "关系", "实体2"),
    ("entity1", "relation", "entity2"),
)

_NODE_NAMES = ("name", "名称", "title", NAME_FIELD)
_ALIASES = Path(__file__).with_name("aliases.yaml")


@dataclass(frozen=True)
class Statement:
    """What one record says.

    Attributes:
        name: of the entity.
        facts: relation -> values, cleaned; not empty.
        source: "file:line".
        num_cleared: values left out because they say nothing or repeat one before.
    """

    name: str
    facts: Mapping[str, Sequence[str]]
    source: str
    num_cleared: int = 0


def iter_statements(path: Path, on_bytes: OnBytes | None = None) -> Iterator[Statement | BadLine]:
    """Statements of one file in order, one at a time, and what could not be used.

    Raises:
        UserError: as in `medsft.data.files.iter_objects`.
    """
    nodes: dict[str, str] = {}
    for line, value in iter_objects(path, on_bytes):
        source = f"{path}:{line}"
        for item in _entities(value, nodes):
            try:
                if isinstance(item, BadRecord):
                    raise item
                name, fields = item
                facts, num_cleared = _facts(name, fields)
                if facts:
                    yield Statement(name, facts, source, num_cleared)
                elif _is_record(value):
                    raise BadRecord("no facts", f"nothing is said about {name}")
            except BadRecord as fault:
                yield BadLine(source, fault.reason, fault.detail)


def canonical(relation: str) -> str:
    """The name under which the templates know a relation; its own where they do not."""
    return _aliases().get(_key(relation), relation)


@cache
def _aliases() -> dict[str, str]:
    names = read_texts(_ALIASES, "file of aliases")
    return {_key(alias): name for name, aliases in names.items() for alias in [name, *aliases]}


def _key(relation: str) -> str:
    return relation.casefold().replace("_", "").replace(" ", "")


def _is_record(value: object) -> bool:
    return isinstance(value, Mapping) and NAME_FIELD in value


def _facts(name: str, fields: Mapping[str, object]) -> tuple[dict[str, list[str]], int]:
    """Relation -> cleaned values, and how many were left out. An entity is not its own value."""
    facts: dict[str, list[str]] = {}
    num_cleared = 0
    for field, value in fields.items():
        relation = canonical(clean_text(str(field)))
        if not relation:
            continue
        values, cleared = clean_values(relation, value)
        kept = [text for text in values if text != name and text not in facts.get(relation, [])]
        num_cleared += cleared + len(values) - len(kept)
        if kept:
            facts[relation] = [*facts.get(relation, []), *kept]
    return facts, num_cleared


def _entities(value: object, nodes: dict[str, str]) -> Iterator[tuple[str, Mapping[str, object]] | BadRecord]:
    """(name, raw fields) of everything a raw object tells, and what of it cannot be used.

    `nodes` (id -> name) remembers Neo4j's nodes.
    """
    try:
        if isinstance(value, BadRecord):
            raise value
        if not isinstance(value, Mapping):
            raise BadRecord("not a JSON object", f"a {type(value).__name__}")
        for columns in TRIPLE_COLUMNS:
            if value.keys() >= set(columns):
                head, relation, tail = (value[column] for column in columns)
                yield clean_name(columns[0], head), {_text(columns[1], relation): tail}
                return
        if NAME_FIELD in value:
            fields = {key: item for key, item in value.items() if key != NAME_FIELD}
            yield clean_name(NAME_FIELD, value[NAME_FIELD]), fields
        else:
            yield from _neo4j(value, nodes)
    except BadRecord as fault:
        yield fault


def _text(field: str, value: object) -> str:
    if not isinstance(value, str) or not clean_text(value):
        raise BadRecord(f"{field} must be one text", f"it is {value!r}")
    return value


def _neo4j(value: Mapping, nodes: dict[str, str]) -> Iterator[tuple[str, Mapping[str, object]] | BadRecord]:
    """Walks an exported object: nodes first, then relationships.

    A node or a relationship that cannot be used is told, and the others are taken: an export may be one
    object. Raises `BadRecord` for an object that holds neither.
    """
    graph_nodes: list[Mapping] = []
    edges: list[Mapping] = []
    _collect(value, graph_nodes, edges)
    if not graph_nodes and not edges:
        names = ", ".join(map(str, list(value)[:6])) or "no fields"
        raise BadRecord(
            f"no {NAME_FIELD}",
            f"has {names}; neither a record, nor a triple (head, relation, tail), nor from Neo4j",
        )
    for node in graph_nodes:
        try:
            name, facts = _node(node)
        except BadRecord as fault:
            yield fault
            continue
        nodes[_id(node)] = name
        if facts:
            yield name, facts
    for edge in edges:
        try:
            start, end = (_end(edge, side, nodes) for side in ("start", "end"))
        except BadRecord as fault:
            yield fault
        else:
            yield start, {str(edge.get("label") or edge.get("type")): end}


def _node(node: Mapping) -> tuple[str, dict[str, object]]:
    """The name of a node, and what else it says."""
    properties = node["properties"]
    key = next((key for key in _NODE_NAMES if properties.get(key)), None)
    if key is None:
        raise BadRecord("node without a name", f"id {_id(node)}; a node is named by its property name")
    facts = {field: item for field, item in properties.items() if field not in (key, "id")}
    return clean_name(key, properties[key]), facts


def _end(edge: Mapping, side: str, nodes: Mapping[str, str]) -> str:
    """The name of the node that a relationship starts or ends at."""
    end = edge[side]
    identity = _id(end) if isinstance(end, Mapping) else str(end)
    if identity not in nodes:
        raise BadRecord("unknown node", f"the {side} of a relationship is {identity}, not seen before")
    return nodes[identity]


def _collect(value: object, nodes: list[Mapping], edges: list[Mapping]) -> None:
    """Sorts the nodes and relationships of a nested export into two lists; paths are walked through."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += reversed(item)
        elif isinstance(item, Mapping):
            if item.keys() >= {"start", "end"} and "segments" not in item and {"label", "type"} & item.keys():
                edges.append(item)
                # APOC may repeat the ends' properties there.
                pending += [end for end in (item["end"], item["start"]) if isinstance(end, Mapping)]
            elif isinstance(item.get("properties"), Mapping) and {"id", "identity"} & item.keys():
                nodes.append(item)
            else:
                pending += reversed([part for part in item.values() if isinstance(part, Mapping | list)])


def _id(node: Mapping) -> str:
    return str(node.get("id", node.get("identity")))
