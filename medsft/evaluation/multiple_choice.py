"""Multiple-choice suites from local files, in the forms of C-Eval, CMB and MedQA, judged in two ways.

By likelihood: which letter the model finds likeliest as the whole answer. By generation: which letter its
written answer gives (see `medsft.evaluation.letter`); it may give none.

| suite | file | question | options | answer |
| --- | --- | --- | --- | --- |
| C-Eval | .csv | `question` | columns `A` to `D` | `answer` |
| CMB | .json | `question` | `option`: {letter: text} | `answer` |
| MedQA | .jsonl | `question` | `options`: {letter: text} | `answer_idx` |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.data.files import BadRecord
from medsft.data.records import Example
from medsft.evaluation.letter import letter_in
from medsft.evaluation.records import read_each
from medsft.inference.responder import Responder

LETTERS = "ABCDEFGH"
_NEEDS = (
    "It needs question, answer (one letter), and options as columns A, B, … or as an object option or "
    "options, as C-Eval, CMB and MedQA have it; mend the file."
)


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its options by letter, and the letter of the right one."""

    question: str
    options: Mapping[str, str]
    answer: str

    def prompt(self) -> str:
        """The question as a model is asked it."""
        lines = [self.question, *(f"{letter}. {text}" for letter, text in self.options.items())]
        return "\n".join([*lines, "请只回答正确选项的字母。"])


@dataclass(frozen=True)
class Suite:
    """The questions of one file; is_general: whether they have nothing to do with medicine."""

    name: str
    questions: tuple[ChoiceQuestion, ...]
    is_general: bool


def read_suite(path: Path, is_general: bool = False, most: int | None = None) -> Suite:
    """The questions of a file with one right option each, at most `most` from the front.

    Raises `UserError` for a file that cannot be read or is empty, and for the first bad record.
    """
    found = read_each(path, _choice_question, "multiple-choice question", _NEEDS)
    return Suite(str(path), tuple(question for _, question in found[:most]), is_general)


def _choice_question(record: object) -> ChoiceQuestion:
    if not isinstance(record, Mapping):
        raise BadRecord("not an object")
    given = record.get("option", record.get("options", record))
    if not isinstance(given, Mapping):
        raise BadRecord("wrong type", "its options are no object of letters")
    answer_column = "answer_idx" if "answer_idx" in record else "answer"
    missing = {"question", answer_column} - record.keys()
    if missing:
        raise BadRecord("missing columns", f"no {', '.join(sorted(missing))}")
    options = {
        letter: str(given[letter]).strip() for letter in LETTERS if given.get(letter) not in (None, "")
    }
    answer = str(record[answer_column]).strip().upper()
    if len(options) < 2:
        raise BadRecord("too few options", f"{len(options)} options")
    if answer not in options:
        raise BadRecord("bad answer", f"its answer {answer!r} is none of {', '.join(options)}")
    return ChoiceQuestion(str(record["question"]), options, answer)


def likeliest_letters(responder: Responder, questions: Sequence[ChoiceQuestion]) -> list[str]:
    """For each question the letter that the model finds most likely as the whole answer."""
    from medsft.evaluation.answer_loss import loss_sums

    longest = responder.model.config.max_sequence_length // 2
    letters = []
    for question in questions:
        answers = [Example(question.prompt(), letter, (), "") for letter in question.options]
        sums = loss_sums(responder, answers, longest, longest, batch_size=1)
        letters.append(min(zip(sums, question.options, strict=True))[1])
    return letters


def written_letters(answers: Sequence[str], questions: Sequence[ChoiceQuestion]) -> list[str | None]:
    """For each question the letter that its written answer gives; None where it gives none."""
    pairs = zip(answers, questions, strict=True)
    return [letter_in(answer, question.options) for answer, question in pairs]
