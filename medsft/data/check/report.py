"""The review as Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medsft.data.check.lengths import histogram
from medsft.data.check.review import Review
from medsft.files import write_text

_PAGE = Path(__file__).with_name("report.html.jinja")
_BAR = 30


def write_report(output: Path, review: Review, settings: Mapping[str, str]) -> tuple[Path, Path]:
    """Writes `<output>.report.md` and `.html` beside an output file; returns both."""
    markdown, page = (output.with_name(f"{output.stem}.report.{kind}") for kind in ("md", "html"))
    write_text(markdown, as_markdown(review, settings))
    write_text(page, as_html(review, settings))
    return markdown, page


def _charts(review: Review) -> dict[str, list[tuple[str, int, float]]]:
    """Heading -> (label, count, share of the largest) of each bin."""
    lengths = {
        "Questions read, characters 问题长度": review.questions,
        "Answers read, characters 回答长度": review.answers,
        "Answers kept, characters 保留的回答长度": review.answers_kept,
    }
    charts = {}
    for heading, counter in lengths.items():
        bins = histogram(counter)
        largest = max((count for _, count in bins), default=1) or 1
        charts[heading] = [(label, count, count / largest) for label, count in bins]
    return charts


def as_html(review: Review, settings: Mapping[str, str]) -> str:
    """One page; all text of the data is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(_PAGE.read_text(encoding="utf-8"))
    return template.render(review=review, settings=settings, charts=_charts(review))


def as_markdown(review: Review, settings: Mapping[str, str]) -> str:
    """The same for a terminal or a repository."""
    lines = ["# Data check 数据检查", "", review.describe() + ".", "", "| setting | value |", "| --- | --- |"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in settings.items()]
    for heading, counts in (("rejected 剔除", review.rejected), ("mended 修正", review.mended)):
        if counts:
            lines += ["", f"| {heading} | records | share |", "| --- | --- | --- |"]
            lines += [
                f"| {reason} | {count:,} | {count / review.num_read:.2%} |"
                for reason, count in counts.most_common()
            ]
    for heading, bins in _charts(review).items():
        lines += ["", f"## {heading}", "", "```text"]
        lines += [f"{label:>12} {count:>9,} {'█' * round(_BAR * share)}" for label, count, share in bins]
        lines += ["```"]
    for reason, some in review.shown.items():
        lines += ["", f"## {reason}", "", "| where | question | answer | why |", "| --- | --- | --- | --- |"]
        lines += [
            "| " + " | ".join(map(_cell, (shown.source, shown.question, shown.answer, shown.detail))) + " |"
            for shown in some
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    short = text if len(text) <= 200 else text[:200] + " …"
    return short.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
