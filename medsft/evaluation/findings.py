"""What a comparison of two models found, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from medsft.evaluation.match import is_right, same_answer
from medsft.evaluation.question_set import GENERAL, Question
from medsft.evaluation.scores import SCORE_NAMES, Scores


@dataclass(frozen=True)
class Answered:
    """One question with what both models say."""

    question: Question
    base: str
    tuned: str

    @property
    def base_exact(self) -> bool:
        """Whether the base model's answer is the expected one."""
        return _is_exact(self.base, self.question)

    @property
    def tuned_exact(self) -> bool:
        """Whether the tuned model's answer is the expected one."""
        return _is_exact(self.tuned, self.question)


def _is_exact(answer: str, question: Question) -> bool:
    return bool(question.expected) and same_answer(answer, question.expected)


@dataclass(frozen=True)
class Change:
    """A loss before and after, nats a token."""

    name: str
    base: float
    tuned: float


@dataclass(frozen=True)
class Accuracy:
    """Right answers before and after, of some questions that can be right or wrong.

    Attributes:
        name: of the questions, and how they were judged.
        is_general: whether they have nothing to do with medicine.
        num_questions: all of them, unanswered ones too.
        base, tuned: right answers.
        base_unanswered, tuned_unanswered: answers that give no letter; None where a letter was not asked for.
    """

    name: str
    is_general: bool
    num_questions: int
    base: int
    tuned: int
    base_unanswered: int | None = None
    tuned_unanswered: int | None = None

    @property
    def drop(self) -> float:
        """By how much the share of right answers fell, 0 to 1; negative where it rose."""
        return (self.base - self.tuned) / self.num_questions


@dataclass(frozen=True)
class Gate:
    """What the tuned model must hold; None: anything goes.

    Attributes:
        min_exact: least share of exact answers, 0 to 1.
        max_forgetting: by how many nats the loss of general answers may grow.
        max_accuracy_drop: by how much the share of right general answers may fall, 0 to 1.
    """

    min_exact: float | None = None
    max_forgetting: float | None = None
    max_accuracy_drop: float | None = None


@dataclass(frozen=True)
class Findings:
    """What two models say, and their measures.

    Attributes:
        answered: one for each question.
        losses: kind of question -> loss of the expected answers, before and after.
        scores: kind -> scores before and after; kinds without any expected answer are missing.
        accuracies: of the questions with accepted answers, by kind, and of the multiple-choice suites.
    """

    answered: tuple[Answered, ...]
    losses: tuple[Change, ...]
    scores: dict[str, tuple[Scores, Scores]]
    accuracies: tuple[Accuracy, ...]

    def faults(self, gate: Gate) -> list[str]:
        """What the gate does not let through, a sentence each; none: it opens."""
        faults = []
        share = exact_share(self.answered)
        if gate.min_exact is not None and share < gate.min_exact:
            faults.append(
                f"only {share:.0%} exact answers after training, {gate.min_exact:.0%} were asked for"
            )
        for loss in self.losses:
            grown = loss.tuned - loss.base
            # Not "more than": a loss that is no number has been forgotten too.
            if loss.name == GENERAL and gate.max_forgetting is not None and not grown <= gate.max_forgetting:
                faults.append(
                    f"forgetting: the loss of general answers grew by {grown:.3f} nats, "
                    f"{gate.max_forgetting:.3f} were allowed"
                )
        for one in self.accuracies:
            if one.is_general and gate.max_accuracy_drop is not None and one.drop > gate.max_accuracy_drop:
                faults.append(
                    f"forgetting: {one.name}: right answers fell from {one.base} to {one.tuned} of "
                    f"{one.num_questions}, by {one.drop:.1%}; {gate.max_accuracy_drop:.1%} were allowed"
                )
        return faults


def exact_share(answered: Sequence[Answered]) -> float:
    """Share of the questions with a known answer that the tuned model answers exactly, 0 to 1."""
    known = [item for item in answered if item.question.expected]
    return sum(item.tuned_exact for item in known) / len(known) if known else 0.0


def accuracies_by_kind(answered: Sequence[Answered]) -> list[Accuracy]:
    """Of the questions with accepted answers, a line for each kind that has any."""
    found: dict[str, Accuracy] = {}
    for item in answered:
        asked = item.question
        if not asked.accepted:
            continue
        so_far = found.get(asked.kind) or Accuracy(asked.kind, asked.kind == GENERAL, 0, 0, 0)
        base, tuned = (is_right(answer, asked.expected, asked.accepted) for answer in (item.base, item.tuned))
        found[asked.kind] = replace(
            so_far,
            num_questions=so_far.num_questions + 1,
            base=so_far.base + base,
            tuned=so_far.tuned + tuned,
        )
    return list(found.values())


def measures(findings: Findings) -> list[tuple[str, str, str]]:
    """Rows of the second table: a measure, its value before and after."""
    rows = [
        (f"{change.name}: loss 损失 (nats)", f"{change.base:.3f}", f"{change.tuned:.3f}")
        for change in findings.losses
    ]
    for kind, (before, after) in findings.scores.items():
        for name, shown in SCORE_NAMES.items():
            values = (getattr(before, name), getattr(after, name))
            if None not in values:
                rows.append((f"{kind}: {shown}", f"{values[0]:.1f}", f"{values[1]:.1f}"))
    for one in findings.accuracies:
        right = (f"{count / one.num_questions:.1%}" for count in (one.base, one.tuned))
        rows.append((f"{one.name}: right 正确率 ({one.num_questions:,})", *right))
        if one.base_unanswered is not None:
            rows.append(
                (f"{one.name}: without a letter 未作答", str(one.base_unanswered), str(one.tuned_unanswered))
            )
    return rows
