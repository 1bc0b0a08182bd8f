"""Questions with what is known of their answers: those in the box, or files whose answers may be missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsft.data.files import BadRecord
from medsft.data.layouts import Columns, parse_record
from medsft.data.records import BadLine, Example, Records
from medsft.evaluation.match import names
from medsft.evaluation.records import read_each

IN_THE_BOX = Path(__file__).with_name("questions.jsonl")
"""32 medical and 32 general questions; the first two are those of Med-ChatGLM's README."""

GENERAL, MEDICAL = "general", "medical"

_ANSWER_OF = {"prompt": "response", "context": "target", "instruction": "output"}
"""Column of the question -> column of its answer, which may be missing."""
_NO_ANSWER = "-"
_NEEDS = (
    'Give one object a line with a question ("prompt") and, where it is known, its answer ("response"), or '
    "mend the line."
)


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        query: the question.
        expected: its answer; empty where nobody wrote one.
        history: earlier (question, answer) rounds, oldest first.
        kind: `general`, or `medical` for all else.
        accepted: texts of which a right answer names one; empty where right and wrong cannot be told so.
        entities: what it is about, in a set made from a knowledge graph.
        facts: relation -> values that are true of these, in such a set.
    """

    query: str
    expected: str
    history: tuple[tuple[str, str], ...] = ()
    kind: str = MEDICAL
    accepted: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    facts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def example(self) -> Example:
        """As the data code knows it; only for a question with an answer."""
        return Example(self.query, self.expected, self.history, self.kind)


def read_questions(files: Sequence[Path]) -> tuple[Question, ...]:
    """Questions of instruction files, in order; a record may lack its answer.

    Raises `UserError` for an unreadable or empty file, and for a record without a question.
    """
    return tuple(question for path in files for _, question in read_each(path, _question, "question", _NEEDS))


def read_answered(files: Sequence[Path]) -> tuple[Question, ...]:
    """The same, but only those with an answer; the others are warned of.

    Raises `UserError` as `read_questions`, and where no question has an answer.
    """
    found = [item for path in files for item in read_each(path, _question, "question", _NEEDS)]
    answered = tuple(question for _, question in found if question.expected)
    lacking = tuple(BadLine(place, "empty answer") for place, question in found if not question.expected)
    Records(tuple(question.example() for question in answered), lacking).usable()
    return answered


def first_of_each_kind(questions: Sequence[Question], most: int | None) -> tuple[Question, ...]:
    """At most `most` questions of each kind, in order; None: all."""
    taken: Counter[str] = Counter()
    chosen = []
    for question in questions:
        taken[question.kind] += 1
        if most is None or taken[question.kind] <= most:
            chosen.append(question)
    return tuple(chosen)


def _question(record: object) -> Question:
    if not isinstance(record, Mapping):
        raise BadRecord("not a JSON object")
    asked = [name for name in _ANSWER_OF if name in record]
    has_answer = not asked or record.get(_ANSWER_OF[asked[0]]) not in (None, "")
    layout = record if has_answer else {**record, _ANSWER_OF[asked[0]]: _NO_ANSWER}
    query, expected, history = parse_record(layout, Columns())
    return Question(
        query,
        expected if has_answer else "",
        history,
        GENERAL if record.get("kind") == GENERAL else MEDICAL,
        _accepted(record.get("accepted"), query),
        *_provenance(record.get("provenance")),
    )


def _accepted(given: Any, query: str) -> tuple[str, ...]:
    if given in (None, "", []):  # a column of CSV may be empty
        return ()
    if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
        raise BadRecord("wrong type", 'accepted is no list of texts such as ["北京"]')
    for text in given:
        if names(query, text):
            raise BadRecord("bad accepted", f"{text!r} stands in the question: repeating it would be right")
    return tuple(given)


def _provenance(given: Any) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Entities and facts of a record that `medsft data` wrote; nothing for any other."""
    if not isinstance(given, Mapping) or not isinstance(given.get("facts"), Mapping):
        return (), {}
    facts = {
        str(relation): tuple(map(str, values))
        for relation, values in given["facts"].items()
        if isinstance(values, list)
    }
    entities = given.get("entities")
    return tuple(map(str, entities)) if isinstance(entities, list) else (), facts
