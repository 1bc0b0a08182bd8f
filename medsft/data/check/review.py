"""Files -> what is kept, what is rejected and why: two passes, one example at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medsft.data.check.duplicates import Duplicates, NamesIn
from medsft.data.check.fault import Fault
from medsft.data.check.lengths import Bounds, upper_bound
from medsft.data.check.mending import mend
from medsft.data.check.texts import CHECKS, Check, first_fault, not_chinese
from medsft.data.convert import iter_raw_files
from medsft.data.files import OnBytes, expand_files
from medsft.data.layouts import Columns, with_response
from medsft.data.records import BadLine, Example
from medsft.data.template import bare_question
from medsft.data.writing import check_output, writing_lines
from medsft.errors import UserError

FurtherCheck = Callable[[Example, Any], Fault | None]
"""A check that also sees the raw record, with its provenance."""

REJECTS_SUFFIX = ".rejects"
"""Of the file of rejects, which holds JSON lines too: no folder or pattern of data files takes it for one."""

NUM_SHOWN = 5
"""Examples that are kept for the report, of each reason and of each mend."""

_MAX_SHOWN = 2000
"""Characters of their texts that are kept."""


@dataclass(frozen=True)
class ReviewSettings:
    """What is looked for.

    Attributes:
        near_threshold: similarity from which two examples are near duplicates, 0 to 1; None: exact ones only.
        language: zh: answers that are not Chinese are rejected; any: no.
        mends: whether answers are put right where that is possible.
        columns: column names, see `Columns`.
        held_out: files whose questions may not be in the data.
        further: checks of other rooms, such as facts held against a graph.
        names_in: names that make texts different, see `NamesIn`.
    """

    near_threshold: float | None = 0.75
    language: str = "zh"
    mends: bool = True
    columns: Columns = field(default_factory=Columns)
    held_out: tuple[Path, ...] = ()
    further: tuple[FurtherCheck, ...] = ()
    names_in: NamesIn | None = None

    def __post_init__(self) -> None:
        if self.near_threshold is not None and not 0.5 <= self.near_threshold <= 1:
            raise UserError(
                f"The similarity of near duplicates is {self.near_threshold:g}; give 0.5 to 1, or 0 to look "
                "for exact duplicates only."
            )


@dataclass(frozen=True)
class Shown:
    """An example for the report; `detail` says why it is there."""

    source: str
    question: str
    answer: str
    detail: str


@dataclass
class Review:
    """What was found; lengths are characters -> examples."""

    num_read: int = 0
    num_kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    shown: dict[str, list[Shown]] = field(default_factory=dict)
    questions: Counter[int] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    questions_kept: Counter[int] = field(default_factory=Counter)
    answers_kept: Counter[int] = field(default_factory=Counter)
    bounds: Bounds | None = None

    def describe(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.most_common())
        mends = f"; {self.mended.total():,} mends" if self.mended else ""
        return (
            f"{self.num_read:,} records: {self.num_kept:,} kept{mends}, "
            f"{self.rejected.total():,} rejected" + (f" ({reasons})" if reasons else "")
        )

    def show(self, heading: str, shown: Shown) -> None:
        """Keeps an example for the report, if there are not enough of its kind."""
        some = self.shown.setdefault(heading, [])
        if len(some) < NUM_SHOWN:
            some.append(shown)


def review_files(
    files: Sequence[str | Path],
    output: Path,
    rejects: Path,
    settings: ReviewSettings,
    on_bytes: OnBytes | None = None,
) -> Review:
    """Writes the examples that are kept, as they are but for mends, and the others with their reasons.

    Both files take their names at the end, or neither does. `on_bytes` is told of every byte twice. Raises
    `UserError` for files that cannot be read or written, and when nothing is kept.
    """
    paths = expand_files(files)
    inputs = [*paths, *settings.held_out]
    check_output(output, inputs)
    check_output(rejects, inputs, REJECTS_SUFFIX)
    review = Review()
    held_out = _questions_of(settings)
    _measure(paths, settings.columns, review, on_bytes)
    find = _finder(settings, review, held_out)
    seen = Duplicates(settings.near_threshold, settings.names_in)
    with writing_lines(output) as keep, writing_lines(rejects) as reject:
        for raw, example in iter_raw_files(paths, settings.columns, on_bytes):
            if isinstance(example, BadLine):
                fault, mended, names = Fault("unreadable", _reason(example)), example, ()
            else:
                mended, names = _mended(example) if settings.mends else (example, ())
                fault = find(mended, raw) or seen.find(mended)
            if fault is None:
                assert isinstance(mended, Example)
                seen.add(mended)
                keep(with_response(raw, settings.columns, mended.response) if names else raw)
                _count_kept(review, mended, example, names)
            else:
                reject(
                    {"source": example.source, "reason": fault.reason, "detail": fault.detail, "record": raw}
                )
                review.rejected[fault.reason] += 1
                review.show(fault.reason, _shown(example, fault.detail))
        if not review.num_kept:
            raise UserError(
                f"Nothing would be kept: {review.describe()}. Look at the files and the settings."
            )
    return review


def _measure(paths: Sequence[Path], columns: Columns, review: Review, on_bytes: OnBytes | None) -> None:
    for _, example in iter_raw_files(paths, columns, on_bytes):
        review.num_read += 1
        if isinstance(example, Example):
            review.questions[len(bare_question(example.query))] += 1
            review.answers[len(example.response)] += 1
    if not review.answers:
        raise UserError(f"No record of {', '.join(map(str, paths))} can be read; check names and columns.")
    review.bounds = Bounds(upper_bound(review.questions), upper_bound(review.answers))


def _questions_of(settings: ReviewSettings) -> Duplicates | None:
    if not settings.held_out:
        return None
    held_out = Duplicates(settings.near_threshold, settings.names_in, questions_only=True)
    for _, example in iter_raw_files(settings.held_out, settings.columns):
        if isinstance(example, Example):
            held_out.add(example)
    return held_out


def _finder(
    settings: ReviewSettings, review: Review, held_out: Duplicates | None
) -> Callable[[Example, Any], Fault | None]:
    def leaks(example: Example) -> Fault | None:
        found = held_out.find(example) if held_out else None
        return Fault("stands in held-out data", found.detail) if found else None

    def too_long(example: Example) -> Fault | None:
        assert review.bounds is not None
        for name, text, bound in (
            ("question", bare_question(example.query), review.bounds.question),
            ("answer", example.response, review.bounds.answer),
        ):
            if len(text) > bound:
                return Fault("length outlier", f"{name} of {len(text):,} characters, {bound:,} allowed")
        return None

    language = (not_chinese,) if settings.language == "zh" else ()
    checks: tuple[Check, ...] = (*CHECKS, *language, too_long, leaks)

    def find(example: Example, raw: Any) -> Fault | None:
        found = (check(example, raw) for check in settings.further)
        return first_fault(example, checks) or next((fault for fault in found if fault), None)

    return find


def _mended(example: Example) -> tuple[Example, tuple[str, ...]]:
    answer, names = mend(example.response)
    return (replace(example, response=answer), names) if names else (example, ())


def _count_kept(review: Review, kept: Example, before: Example, names: tuple[str, ...]) -> None:
    review.num_kept += 1
    review.questions_kept[len(bare_question(kept.query))] += 1
    review.answers_kept[len(kept.response)] += 1
    for name in names:
        review.mended[name] += 1
        review.show(name, _shown(before, f"now: {kept.response}"))


def _shown(example: Example | BadLine, detail: str) -> Shown:
    if isinstance(example, BadLine):
        return Shown(example.source, "", "", detail)
    texts = (bare_question(example.query), example.response, detail)
    return Shown(example.source, *(text[:_MAX_SHOWN] for text in texts))


def _reason(bad: BadLine) -> str:
    return bad.reason + (f": {bad.detail}" if bad.detail else "")


def settings_as_text(settings: ReviewSettings, files: Sequence[Any]) -> Mapping[str, str]:
    """Settings for the report."""
    near = settings.near_threshold
    return {
        "files": ", ".join(map(str, files)),
        "near duplicates from": "not looked for" if near is None else f"{near:.0%} similarity",
        "language": settings.language,
        "mends": "yes" if settings.mends else "no",
        "held-out files": ", ".join(map(str, settings.held_out)) or "none",
    }
