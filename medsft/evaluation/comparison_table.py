"""The comparison on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from medsft.evaluation.findings import Answered, Findings, measures
from medsft.terminal import harmless

_LONGEST = 200
"""Characters of an answer that are shown; documents have all of it."""


def comparison_table(answered: Sequence[Answered]) -> Table:
    """Question, expected answer, and what both models say; exact answers are marked."""
    table = Table(title="Before and after training 训练前后", show_lines=True)
    for column in ("question 问题", "expected 标准答案", "before 训练前", "after 训练后"):
        table.add_column(column, overflow="fold")
    for item in answered:
        expected = item.question.expected
        table.add_row(
            _text(item.question.query.strip()),
            _text(expected) or "—",
            _answer(item.base, item.base_exact, bool(expected)),
            _answer(item.tuned, item.tuned_exact, bool(expected)),
        )
    num = sum(bool(item.question.expected) for item in answered)
    before = sum(item.base_exact for item in answered)
    after = sum(item.tuned_exact for item in answered)
    if num:
        table.caption = f"exact answers 完全一致: {before}/{num} → {after}/{num}"
    return table


def measures_table(findings: Findings) -> Table:
    """Losses, scores and accuracies before and after."""
    table = Table()
    table.add_column("measure 指标", overflow="fold")
    for column in ("before 训练前", "after 训练后"):
        table.add_column(column, justify="right")
    for row in measures(findings):
        table.add_row(*map(_text, row))
    return table


def _text(text: str) -> str:
    return escape(harmless(text))


def _answer(answer: str, is_exact: bool, is_known: bool) -> RenderableType:
    short = _text(answer if len(answer) <= _LONGEST else answer[:_LONGEST] + "…")
    if not short.strip():
        short = "[dim](empty 空)[/]"
    if not is_known:
        return short
    marked = Table.grid(padding=(0, 1))  # else a line would end after the mark, where a blank is
    marked.add_column()
    marked.add_column(overflow="fold")
    marked.add_row("[green]√[/]" if is_exact else "[red]×[/]", short)
    return marked
