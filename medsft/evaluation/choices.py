"""Multiple-choice suites from local files, in the forms of C-Eval, CMB and MedQA.

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

from medsft.data.files import BadRecord, iter_objects
from medsft.data.records import Example
from medsft.errors import UserError
from medsft.inference.responder import Responder

LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Choice:
    """A question with its options by letter, and the letter of the right one."""

    question: str
    options: Mapping[str, str]
    answer: str

    def prompt(self) -> str:
        """The question as a model is asked it."""
        lines = [self.question, *(f"{letter}. {text}" for letter, text in self.options.items())]
        return "\n".join([*lines, "请只回答正确选项的字母。"])


def read_choices(path: Path) -> tuple[Choice, ...]:
    """All questions of a file with one right option each.

    Raises `UserError` for a file that cannot be read or is empty, and for the first bad record.
    """
    choices = []
    for line, value in iter_objects(path):
        try:
            choices.append(_choice(value))
        except (BadRecord, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}:{line} is no multiple-choice question ({error}). It needs question, answer (one "
                "letter), and options as columns A, B, … or as an object option or options; mend the line."
            ) from error
    if not choices:
        raise UserError(f"The suite {path} holds no question. Give a file of C-Eval's form, or CMB's.")
    return tuple(choices)


def _choice(record: object) -> Choice:
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, Mapping):
        raise BadRecord("not an object")
    given = record.get("option", record.get("options", record))
    if not isinstance(given, Mapping):
        raise ValueError("its options are no object of letters")
    options = {
        letter: str(given[letter]).strip() for letter in LETTERS if given.get(letter) not in (None, "")
    }
    answer = str(record["answer_idx"] if "answer_idx" in record else record["answer"]).strip().upper()
    if len(options) < 2:
        raise ValueError(f"it has {len(options)} options")
    if answer not in options:
        raise ValueError(f"its answer {answer!r} is none of {', '.join(options)}")
    return Choice(str(record["question"]), options, answer)


def likeliest_letters(responder: Responder, choices: Sequence[Choice]) -> list[str]:
    """For each question the letter that the model finds most likely as the whole answer."""
    from medsft.evaluation.answer_loss import loss_sums

    longest = responder.model.config.max_sequence_length // 2
    letters = []
    for choice in choices:
        answers = [Example(choice.prompt(), letter, (), "") for letter in choice.options]
        sums = loss_sums(responder, answers, longest, longest, batch_size=1)
        letters.append(min(zip(sums, choice.options, strict=True))[1])
    return letters


def accuracy(responder: Responder, choices: Sequence[Choice]) -> float:
    """Share of the questions whose right letter is the likeliest, 0 to 1."""
    letters = likeliest_letters(responder, choices)
    right = sum(letter == choice.answer for letter, choice in zip(letters, choices, strict=True))
    return right / len(choices)
