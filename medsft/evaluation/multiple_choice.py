"""Multiple-choice suites from local files, in the forms of C-Eval, CMB and MedQA, judged in two ways.

By likelihood: which letter the model finds likeliest as the whole answer. By generation: which letter its
written answer gives (see `medsft.evaluation.letter`); it may give none. Of CMB's questions those of the type
多项选择题 may have several right options: there the answer is all their letters (`ACD`), the likeliest of all
that can be formed, and right as a whole or not at all, as CMB counts it.

| suite | file | question | options | answer |
| --- | --- | --- | --- | --- |
| C-Eval | .csv | `question` | columns `A` to `D` | `answer` |
| CMB | .json | `question`, `question_type` | `option`: {letter: text} | `answer` |
| MedQA | .jsonl | `question` | `options`: {letter: text} | `answer_idx` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from medsft.data.files import BadRecord
from medsft.data.layouts import check_unicode
from medsft.data.records import Example
from medsft.evaluation.answer_loss import loss_sums
from medsft.evaluation.letter import letter_in, letters_in
from medsft.evaluation.records import read_each
from medsft.inference.responder import Responder

LETTERS = "ABCDEFGH"
_NEEDS = (
    "It needs question, answer (a letter, or several: ACD), and options as columns A, B, … or as an object "
    "option or options, as C-Eval, CMB and MedQA have it; mend the file. The test files of C-Eval and CMB "
    "have no answers: take those called val."
)
_SEVERAL = "多项选择题"
"""`question_type` in CMB of a question that may have several right options."""


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its options.

    Attributes:
        question: its text.
        options: letter -> text.
        answer: the letter of the right option; where several may be right those of all of them, in order.
        has_several: whether several may be right, and the model is told so.
    """

    question: str
    options: Mapping[str, str]
    answer: str
    has_several: bool = False

    def prompt(self) -> str:
        """The question as a model is asked it."""
        lines = [self.question, *(f"{letter}. {text}" for letter, text in self.options.items())]
        which = "全部正确选项（可能不止一个）" if self.has_several else "正确选项"
        return "\n".join([*lines, f"请只回答{which}的字母。"])

    def answers(self) -> list[str]:
        """All that can be answered: the letters, or every set of them."""
        most = len(self.options) if self.has_several else 1
        return ["".join(some) for num in range(1, most + 1) for some in combinations(self.options, num)]


@dataclass(frozen=True)
class Suite:
    """The questions of one file; is_general: whether they have nothing to do with medicine."""

    name: str
    questions: tuple[ChoiceQuestion, ...]
    is_general: bool


def read_suite(path: Path, is_general: bool = False, most: int | None = None) -> Suite:
    """The questions of a file or of all files of a folder, at most `most` from the front.

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
    question = str(record["question"] or "")
    if not question.strip():
        raise BadRecord("empty question")
    check_unicode(question, *options.values())
    given = str(record[answer_column]).strip().upper()
    answer = "".join(sorted(given))
    if len(options) < 2:
        raise BadRecord("too few options", f"{len(options)} options")
    if not answer or len(set(answer)) < len(answer) or not set(answer) <= options.keys():
        raise BadRecord("bad answer", f"its answer {given!r} is none of {', '.join(options)}")
    has_several = record.get("question_type") == _SEVERAL or len(answer) > 1
    return ChoiceQuestion(question, options, answer, has_several)


def likeliest_letters(
    responder: Responder,
    questions: Sequence[ChoiceQuestion],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """For each question the answer, a letter or several, that the model finds most likely as a whole.

    `progress` is told of the questions, done and in all.
    """
    longest = responder.model.config.max_sequence_length // 2
    letters = []
    for number, question in enumerate(questions, start=1):
        answers = question.answers()
        examples = [Example(question.prompt(), answer, (), "") for answer in answers]
        sums = loss_sums(responder, examples, longest, longest)
        letters.append(min(zip(sums, answers, strict=True))[1])
        progress(number, len(questions))
    return letters


def written_letters(answers: Sequence[str], questions: Sequence[ChoiceQuestion]) -> list[str | None]:
    """For each question the letter, or letters, that its written answer gives; None where it gives none."""
    return [
        (letters_in if question.has_several else letter_in)(answer, question.options)
        for answer, question in zip(answers, questions, strict=True)
    ]
