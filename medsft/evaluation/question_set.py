"""Questions for `medsft compare`: those in the box, or a file whose answers may be missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.data.files import BadRecord, expand_files, iter_objects
from medsft.data.layouts import Columns, parse_record
from medsft.data.records import Example
from medsft.errors import UserError

IN_THE_BOX = Path(__file__).with_name("questions.jsonl")
"""Eight medical and eight general questions; the first two are those of Med-ChatGLM's README."""

_ANSWER_OF = {"prompt": "response", "context": "target", "instruction": "output"}
"""Column of the question -> column of its answer, which may be missing."""
_NO_ANSWER = "-"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        query: the question.
        expected: its answer; empty where nobody wrote one.
        history: earlier (question, answer) rounds, oldest first.
        kind: `general`, or `medical` for all else.
    """

    query: str
    expected: str
    history: tuple[tuple[str, str], ...] = ()
    kind: str = "medical"

    def example(self) -> Example:
        """As the data code knows it; only for a question with an answer."""
        return Example(self.query, self.expected, self.history, self.kind)


def read_questions(files: Sequence[Path]) -> tuple[Question, ...]:
    """Questions of instruction files, in order; a record may lack its answer.

    Raises `UserError` for an unreadable or empty file, and for a record without a question.
    """
    found = []
    for path in expand_files(files):
        before = len(found)
        for line, value in iter_objects(path):
            try:
                found.append(_question(value))
            except BadRecord as bad:
                raise UserError(
                    f"{path}:{line} is no question ({bad.reason} {bad.detail}). Give one object a line with "
                    "a question and, where it is known, its answer, or mend the line."
                ) from bad
        if len(found) == before:
            raise UserError(f"The question file {path} holds no question. Give a file with one a line.")
    return tuple(found)


def first_of_each_kind(questions: Sequence[Question], most: int | None) -> tuple[Question, ...]:
    """At most `most` questions of each kind, in order; None: all."""
    taken: Counter[str] = Counter()
    chosen = []
    for question in questions:
        taken[question.kind] += 1
        if most is None or taken[question.kind] <= most:
            chosen.append(question)
    return tuple(chosen)


def _question(value: object) -> Question:
    if isinstance(value, BadRecord):
        raise value
    if not isinstance(value, dict):
        raise BadRecord("not a JSON object")
    kind = "general" if value.get("kind") == "general" else "medical"
    asked = [name for name in _ANSWER_OF if name in value]
    if asked and value.get(_ANSWER_OF[asked[0]]) in (None, ""):
        query, _, history = parse_record({**value, _ANSWER_OF[asked[0]]: _NO_ANSWER}, Columns())
        return Question(query, "", history, kind)
    return Question(*parse_record(value, Columns()), kind)
