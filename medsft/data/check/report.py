"""The review as Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsft.data.check.lengths import histogram
from medsft.data.check.review import Review
from medsft.files import write_text
from medsft.pages.markdown import table
from medsft.pages.page import render
from medsft.terminal import harmless

_PAGE = Path(__file__).with_name("report.html.jinja")
_TITLE = "Data check 数据检查"
_EXAMPLES = "examples 例子"
_HEAD = ("where 出处", "question 问题", "answer 回答", "why 原因")
_BAR = 30
_MAX_CELL = 200
"""Characters of a text in the Markdown; the page shows more of it."""


@dataclass(frozen=True)
class _Group:
    """What became of some records: (reason or mend, records) from the commonest on."""

    title: str
    counts: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class _Bin:
    """Texts of some lengths; `share`: of the largest bin."""

    label: str
    num_texts: int
    share: float


def write_report(output: Path, review: Review, settings: Mapping[str, str]) -> tuple[Path, Path]:
    """Writes `<output>.report.md` and `.html` beside an output file; returns both."""
    markdown, page = (output.with_name(f"{output.stem}.report.{kind}") for kind in ("md", "html"))
    write_text(markdown, harmless(as_markdown(review, settings)))
    write_text(page, harmless(as_html(review, settings)))
    return markdown, page


def as_html(review: Review, settings: Mapping[str, str]) -> str:
    """One page; all text of the data is escaped."""
    return render(
        _PAGE,
        title=_TITLE,
        review=review,
        settings=settings,
        groups=_groups(review),
        charts=_charts(review),
        head=_HEAD,
        examples=_EXAMPLES,
    )


def as_markdown(review: Review, settings: Mapping[str, str]) -> str:
    """The same for a terminal or a repository."""
    parts = [f"# {_TITLE}\n", f"{review.describe()}.\n", table(("setting", "value"), list(settings.items()))]
    groups = _groups(review)
    for group in groups:
        rows = [(name, f"{count:,}", f"{count / review.num_read:.2%}") for name, count in group.counts]
        parts.append(table((group.title, "records", "share"), rows))
    for heading, bins in _charts(review).items():
        bars = [f"{bin.label:>12} {bin.num_texts:>9,} {'█' * round(_BAR * bin.share)}\n" for bin in bins]
        parts.append(f"## {heading}\n\n```text\n{''.join(bars)}```\n")
    for group in groups:
        parts.append(f"## {group.title}: {_EXAMPLES}\n")
        for name, _ in group.counts:
            rows = [
                tuple(map(_short, (shown.source, shown.question, shown.answer, shown.detail)))
                for shown in review.shown[name]
            ]
            parts.append(f"### {name}\n\n{table(_HEAD, rows)}")
    return "\n".join(parts)


def _groups(review: Review) -> list[_Group]:
    groups = (("Rejected 剔除", review.rejected), ("Mended 修正", review.mended))
    return [_Group(title, counts.most_common()) for title, counts in groups if counts]


def _charts(review: Review) -> dict[str, list[_Bin]]:
    lengths = {
        "Questions read 读入的问题, characters 字": review.questions,
        "Questions kept 保留的问题, characters 字": review.questions_kept,
        "Answers read 读入的回答, characters 字": review.answers,
        "Answers kept 保留的回答, characters 字": review.answers_kept,
    }
    charts = {}
    for heading, counter in lengths.items():
        bins = histogram(counter)
        largest = max((count for _, count in bins), default=1) or 1
        charts[heading] = [_Bin(label, count, count / largest) for label, count in bins]
    return charts


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CELL else text[:_MAX_CELL] + " …"
