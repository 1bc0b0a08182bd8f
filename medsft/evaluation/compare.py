"""The base-versus-tuned table: the same questions before and after training, with a verdict on forgetting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.evaluation.match import same_answer
from medsft.evaluation.scores import SCORE_NAMES, Scores, mean_scores

if TYPE_CHECKING:
    from rich.table import Table

    from medsft.evaluation.choices import Choice
    from medsft.evaluation.question_set import Question
    from medsft.inference.responder import Responder


@dataclass(frozen=True)
class Comparison:
    """One question with what it should be answered with (empty: not known) and what both models say."""

    question: str
    expected: str
    base: str
    tuned: str
    kind: str = "medical"

    @property
    def base_exact(self) -> bool:
        """Whether the base model's answer is the expected one."""
        return bool(self.expected) and same_answer(self.base, self.expected)

    @property
    def tuned_exact(self) -> bool:
        """Whether the tuned model's answer is the expected one."""
        return bool(self.expected) and same_answer(self.tuned, self.expected)


@dataclass(frozen=True)
class Change:
    """One measure before and after."""

    name: str
    base: float
    tuned: float


@dataclass(frozen=True)
class Findings:
    """What two models say, and their measures.

    Attributes:
        comparisons: one for each question.
        losses: kind of question -> loss of the expected answers in nats, before and after.
        scores: kind -> scores before and after; kinds without any expected answer are missing.
        accuracies: suite of multiple-choice questions -> share of right letters, before and after.
    """

    comparisons: tuple[Comparison, ...]
    losses: tuple[Change, ...]
    scores: dict[str, tuple[Scores, Scores]]
    accuracies: tuple[Change, ...]

    @property
    def forgetting(self) -> float | None:
        """By how many nats the loss of general answers grew; None without general questions."""
        grown = [change.tuned - change.base for change in self.losses if change.name == "general"]
        return grown[0] if grown else None


def exact_share(comparisons: Sequence[Comparison]) -> float:
    """Share of the questions with a known answer that the tuned model answers exactly, 0 to 1."""
    known = [item for item in comparisons if item.expected]
    return sum(item.tuned_exact for item in known) / len(known) if known else 0.0


@dataclass(frozen=True)
class _Side:
    """What one of the two models was found to do."""

    answers: list[str]
    losses: dict[str, float]
    accuracies: dict[str, float]


def compare_models(
    base: Path,
    tuned: Path,
    asked: Sequence[Question],
    suites: Sequence[Path],
    max_new_tokens: int,
    template: str,
    dtype: str,
    device: str,
) -> Findings:
    """Asks both models the questions greedily, and all of the multiple-choice suites.

    One model is in memory at a time. Both are asked in the form the tuned one was trained with unless
    `template` says otherwise. Raises `UserError` for a suite that cannot be used.
    """
    from medsft.chatglm.weights import check_release
    from medsft.evaluation.choices import accuracy, read_choices
    from medsft.inference.responder import Sampling, open_responder
    from medsft.provenance import trained_template
    from medsft.run_folder import model_folder

    choices: dict[str, Sequence[Choice]] = {str(path): read_choices(path) for path in suites}
    kinds: dict[str, list[Question]] = {}
    for question in asked:
        if question.expected:
            kinds.setdefault(question.kind, []).append(question)
    if template == "auto":
        template = trained_template(model_folder(tuned))
    for folder in (base, tuned):
        check_release(model_folder(folder))  # a wrong name shall not surface after the first half
    sampling = Sampling(max_new_tokens=max_new_tokens, greedy=True)

    def look_at(responder: Responder) -> _Side:
        return _Side(
            responder.answers([(question.query, question.history) for question in asked], sampling),
            {kind: _loss(responder, of_kind) for kind, of_kind in kinds.items()},
            {name: accuracy(responder, suite) for name, suite in choices.items()},
        )

    before, after = (look_at(open_responder(folder, template, dtype, device)) for folder in (base, tuned))
    comparisons = tuple(
        Comparison(question.query, question.expected, *answers, question.kind)
        for question, *answers in zip(asked, before.answers, after.answers, strict=True)
    )
    return Findings(
        comparisons,
        tuple(Change(kind, before.losses[kind], after.losses[kind]) for kind in kinds),
        {kind: _scores([item for item in comparisons if item.kind == kind]) for kind in kinds},
        tuple(Change(name, before.accuracies[name], after.accuracies[name]) for name in choices),
    )


def _loss(responder: Responder, questions: Sequence[Question]) -> float:
    """Mean loss of the expected answers, nats a token."""
    from medsft.evaluation.answer_loss import loss_sums

    longest = responder.model.config.max_sequence_length // 2
    sums = loss_sums(responder, [question.example() for question in questions], longest, longest)
    return sum(loss for loss, _ in sums) / sum(targets for _, targets in sums)


def _scores(comparisons: Sequence[Comparison]) -> tuple[Scores, Scores]:
    """Mean scores before and after, over the questions with an expected answer."""
    known = [item for item in comparisons if item.expected]
    expected = [item.expected for item in known]
    before, after = [item.base for item in known], [item.tuned for item in known]
    return mean_scores(before, expected), mean_scores(after, expected)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Question, expected answer, and what both models say; exact answers are marked."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Before and after training 训练前后", show_lines=True)
    for column in ("question 问题", "expected 标准答案", "before 训练前", "after 训练后"):
        table.add_column(column, overflow="fold")
    for item in comparisons:
        table.add_row(
            escape(item.question.strip()),
            escape(item.expected) or "—",
            _cell(item.base, item.base_exact, bool(item.expected)),
            _cell(item.tuned, item.tuned_exact, bool(item.expected)),
        )
    num = sum(bool(item.expected) for item in comparisons)
    before = sum(item.base_exact for item in comparisons)
    after = sum(item.tuned_exact for item in comparisons)
    table.caption = f"exact answers 完全一致: {before}/{num} → {after}/{num}"
    return table


def measures(findings: Findings) -> list[tuple[str, str, str]]:
    """Rows of the second table: a measure, its value before and after."""
    rows = [
        (f"{change.name}: loss 损失 (nats)", f"{change.base:.3f}", f"{change.tuned:.3f}")
        for change in findings.losses
    ]
    for kind, (before, after) in findings.scores.items():
        for name, shown in SCORE_NAMES.items():
            rows.append((f"{kind}: {shown}", f"{getattr(before, name):.1f}", f"{getattr(after, name):.1f}"))
    for change in findings.accuracies:
        rows.append((f"{change.name}: accuracy 正确率", f"{change.base:.1%}", f"{change.tuned:.1%}"))
    return rows


def measures_table(findings: Findings) -> Table:
    """Losses, scores and accuracies before and after."""
    from rich.table import Table

    table = Table()
    for column in ("measure 指标", "before 训练前", "after 训练后"):
        table.add_column(column)
    for row in measures(findings):
        table.add_row(*row)
    return table


def _cell(answer: str, exact: bool, is_known: bool, limit: int = 200) -> str:
    from rich.markup import escape

    short = escape(answer if len(answer) <= limit else answer[:limit] + "…")
    if not answer:
        return "[red]×[/] [dim](empty 空)[/]"
    if not is_known:
        return short
    return f"[green]√[/] {short}" if exact else f"[red]×[/] {short}"
