"""`medsft compare`: the same questions to two models, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.chatglm.base import open_tokenizer
from medsft.chatglm.weights import check_release
from medsft.data.progress import Steps
from medsft.engine.distributed import World
from medsft.evaluation.answer_loss import answer_loss
from medsft.evaluation.findings import Accuracy, Answered, Change, Findings, accuracies_by_kind
from medsft.evaluation.multiple_choice import Suite, likeliest_letters, written_letters
from medsft.evaluation.question_set import Question
from medsft.evaluation.scores import Scores, mean_scores
from medsft.inference.responder import History, Responder, open_responder
from medsft.inference.sampling import Sampling
from medsft.provenance import trained_template
from medsft.run_folder import model_folder

_AT_ONCE = 32
"""Questions between two reports of progress."""


@dataclass(frozen=True)
class _Side:
    """What one of the two models was found to do.

    answers: to the questions. losses: kind of question -> nats. likeliest, written: for each suite its
    letters by likelihood and by generation.
    """

    answers: list[str]
    losses: dict[str, float]
    likeliest: list[list[str]]
    written: list[list[str | None]]


def compare_models(
    base: Path,
    tuned: Path,
    asked: Sequence[Question],
    suites: Sequence[Suite],
    max_new_tokens: int,
    template: str,
    dtype: str,
    device: str,
    quantize: int | None,
    progress: Steps,
) -> Findings:
    """Asks both models the questions greedily, and all of the multiple-choice suites.

    One model is in memory at a time. Both are asked in the form the tuned one was trained with unless
    `template` says otherwise. Raises `UserError` for a folder that is no model.
    """
    if template == "auto":
        template = trained_template(model_folder(tuned))
    for folder in (base, tuned):  # what is wrong with the second shall not surface after the first
        check_release(model_folder(folder))
        open_tokenizer(model_folder(folder))
    sampling = Sampling(max_new_tokens=max_new_tokens, greedy=True)
    before, after = (
        _look_at(
            open_responder(folder, template, dtype, device, quantize), asked, suites, sampling, progress, name
        )
        for folder, name in ((base, "before 训练前"), (tuned, "after 训练后"))
    )
    answered = tuple(
        Answered(question, *answers)
        for question, *answers in zip(asked, before.answers, after.answers, strict=True)
    )
    accuracies = accuracies_by_kind(answered)
    for number, suite in enumerate(suites):
        accuracies += _accuracies(suite, before, after, number)
    return Findings(
        answered,
        tuple(Change(kind, loss, after.losses[kind]) for kind, loss in before.losses.items()),
        {kind: _scores([item for item in answered if item.question.kind == kind]) for kind in before.losses},
        tuple(accuracies),
    )


def _look_at(
    responder: Responder,
    asked: Sequence[Question],
    suites: Sequence[Suite],
    sampling: Sampling,
    progress: Steps,
    name: str,
) -> _Side:
    longest = responder.model.config.max_sequence_length // 2
    alone = World(0, 1, 0, responder.model.device)
    by_kind: dict[str, list[Question]] = {}
    for question in asked:
        if question.expected:
            by_kind.setdefault(question.kind, []).append(question)
    queries: list[tuple[str, History]] = [(question.query, question.history) for question in asked]
    queries += [(question.prompt(), ()) for suite in suites for question in suite.questions]
    answers: list[str] = []
    with progress(name) as shown:
        for start in range(0, len(queries), _AT_ONCE):
            answers += responder.answers(queries[start : start + _AT_ONCE], sampling)
            shown(len(answers), len(queries))
    losses = {}
    for kind, some in by_kind.items():
        examples = [question.example() for question in some]
        with progress(f"{name}: loss of {kind} answers") as shown:
            losses[kind] = answer_loss(responder, examples, alone, longest, longest, progress=shown).loss
    likeliest = []
    for suite in suites:
        with progress(f"{name}: letters of {suite.name}") as shown:
            likeliest.append(likeliest_letters(responder, suite.questions, shown))
    written = iter(answers[len(asked) :])
    return _Side(
        answers[: len(asked)],
        losses,
        likeliest,
        [written_letters([next(written) for _ in suite.questions], suite.questions) for suite in suites],
    )


def _accuracies(suite: Suite, before: _Side, after: _Side, number: int) -> list[Accuracy]:
    """Of the suite of that number by likelihood, and by generation."""
    right = [question.answer for question in suite.questions]

    def num_right(letters: Sequence[str | None]) -> int:
        return sum(letter == answer for letter, answer in zip(letters, right, strict=True))

    num = len(right)
    likeliest, written = (
        [getattr(side, field)[number] for side in (before, after)] for field in ("likeliest", "written")
    )
    return [
        Accuracy(f"{suite.name}, likeliest letter 似然", suite.is_general, num, *map(num_right, likeliest)),
        Accuracy(
            f"{suite.name}, written letter 生成",
            suite.is_general,
            num,
            *map(num_right, written),
            *(letters.count(None) for letters in written),
        ),
    ]


def _scores(answered: Sequence[Answered]) -> tuple[Scores, Scores]:
    """Mean scores before and after, over the questions with an expected answer."""
    known = [item for item in answered if item.question.expected]
    questions = [item.question for item in known]
    return mean_scores([item.base for item in known], questions), mean_scores(
        [item.tuned for item in known], questions
    )
