"""Phrasings of questions and answers, read from a YAML file (`templates.yaml` explains its form)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medsft.errors import UserError
from medsft.knowledge.texts_file import in_braces, placeholders_in, read_texts

DEFAULT_TEMPLATES = Path(__file__).with_name("templates.yaml")

# Field -> placeholders that its texts must hold; `relation` may stand in any of them, `choices` for `values`.
_REQUIRED = {
    "questions": {"entity"},
    "answers": {"entity", "values"},
    "ask": set(),
    "clause": {"values"},
}
# Fields that stand together or not at all.
_OPTIONAL = (
    {"reverse_questions": {"value"}, "reverse_answers": {"value", "entities"}},
    {
        "yes_no_questions": {"entity", "value"},
        "yes_answers": {"entity", "value"},
        "no_answers": {"entity", "value", "values"},
    },
)
_SINGLE_TEXT = {"ask", "clause"}
_SECTIONS = {"relations", "other", "several", "overview"}
_QUESTION_SECTIONS = {
    "vignette": ({"symptoms"}, {"entities", "values"}),
    "medication": ({"entity", "value"}, {"entity", "value"}),
}
_COMPARISON = {
    "shared": {"first", "second", "shared"},
    "differences": {"first", "second", "first_values", "second_values"},
    "differences_only": {"first", "second", "first_values", "second_values"},
    "same_department": {"first_choices"},
    "departments": {"first", "second", "first_choices", "second_choices"},
}


@dataclass(frozen=True)
class RelationTemplates:
    """Phrasings for one relation; the reverse ones, and those for yes and no, may be empty."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    ask: str
    clause: str
    reverse_questions: tuple[str, ...] = ()
    reverse_answers: tuple[str, ...] = ()
    yes_no_questions: tuple[str, ...] = ()
    yes_answers: tuple[str, ...] = ()
    no_answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Phrasings:
    """Questions and answers of a kind; any answer fits any question."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Phrasings that tell two diseases apart; an answer is two or three of the parts."""

    questions: tuple[str, ...]
    shared: str
    differences: str
    differences_only: str
    same_department: str
    departments: str


@dataclass(frozen=True)
class Templates:
    """All phrasings: by relation, for any other relation, and for kinds that are about more than one.

    A kind whose section a file leaves out makes no pairs.
    """

    relations: Mapping[str, RelationTemplates]
    other: RelationTemplates
    several: tuple[str, ...]
    overview: tuple[str, ...]
    comparison: Comparison | None = None
    vignette: Phrasings | None = None
    medication: Phrasings | None = None

    def name_of(self, relation: str) -> str:
        """The section that a relation's phrasings stand in."""
        return relation if relation in self.relations else "other"

    def of(self, relation: str) -> RelationTemplates:
        """Phrasings for a relation, known or not."""
        return self.relations.get(relation, self.other)

    def place(self, relation: str) -> int:
        """Where a relation stands when several are told: as in the file, unknown ones last."""
        known = list(self.relations)
        return known.index(relation) if relation in self.relations else len(known)


def load_templates(path: Path = DEFAULT_TEMPLATES) -> Templates:
    """Reads and checks a template file.

    Raises `UserError` that names file and entry for missing and unknown entries, empty lists, and
    placeholders that are missing, unknown or not closed.
    """
    content = read_texts(path, "template file")
    try:
        given = set(content) if isinstance(content, dict) else set()
        optional = {"comparison", *_QUESTION_SECTIONS} & given
        content = _mapping(content, "the file", _SECTIONS | optional)
        relations = _mapping(content["relations"], "relations", None)
        return Templates(
            relations={name: _relation(entry, name) for name, entry in relations.items()},
            other=_relation(content["other"], "other"),
            several=_texts(content["several"], "several", {"entity", "asks"}),
            overview=_texts(content["overview"], "overview", {"entity"}),
            comparison=_comparison(content["comparison"]) if "comparison" in optional else None,
            **{
                name: _phrasings(content[name], name, *placeholders)
                for name, placeholders in _QUESTION_SECTIONS.items()
                if name in optional
            },
        )
    except _Fault as fault:
        raise UserError(f"The template file {path}: {fault}. {DEFAULT_TEMPLATES} shows the form.") from fault


class _Fault(Exception):
    """What is wrong, and with which entry."""


def _mapping(value: object, entry: str, allowed: set[str] | None) -> dict:
    if not isinstance(value, dict):
        raise _Fault(f"{entry} must hold names with values, but is a {type(value).__name__}")
    if allowed is not None and value.keys() != allowed:
        missing, unknown = allowed - value.keys(), value.keys() - allowed
        raise _Fault(
            f"{entry} "
            + " and ".join(
                f"{what} {', '.join(sorted(map(str, names)))}"
                for what, names in (("lacks", missing), ("has unknown", unknown))
                if names
            )
        )
    return value


def _relation(value: object, name: str) -> RelationTemplates:
    given = _mapping(value, name, None)
    groups = [group for group in _OPTIONAL if group.keys() & given.keys()]
    known = {field: wanted for group in (_REQUIRED, *groups) for field, wanted in group.items()}
    _mapping(given, name, set(known))
    fields = {}
    for field, placeholders in known.items():
        texts = given[field]
        if field in _SINGLE_TEXT:
            (fields[field],) = _texts([texts], f"{name}.{field}", placeholders, {"relation"})
        else:
            fields[field] = _texts(texts, f"{name}.{field}", placeholders, {"relation"})
    return RelationTemplates(**fields)


def _phrasings(value: object, name: str, asked: set[str], answered: set[str]) -> Phrasings:
    given = _mapping(value, name, {"questions", "answers"})
    return Phrasings(
        _texts(given["questions"], f"{name}.questions", asked),
        _texts(given["answers"], f"{name}.answers", answered, asked),
    )


def _comparison(value: object) -> Comparison:
    given = _mapping(value, "comparison", {"questions", *_COMPARISON})
    parts = {
        field: _texts([given[field]], f"comparison.{field}", placeholders)[0]
        for field, placeholders in _COMPARISON.items()
    }
    return Comparison(_texts(given["questions"], "comparison.questions", {"first", "second"}), **parts)


def _texts(
    value: object, entry: str, placeholders: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise _Fault(f"{entry} must be a list of texts, not empty")
    for text in value:
        try:
            found = placeholders_in(text)
        except ValueError as error:
            raise _Fault(f"{entry}: {text!r} has {error}") from error
        if "choices" in found:
            found = found - {"choices"} | {"values"}
        if not placeholders <= found <= placeholders | optional:
            raise _Fault(f"{entry}: {text!r} must hold {in_braces(placeholders)} and nothing else in braces")
    return tuple(value)
