"""The base-versus-tuned table: the same questions before and after training."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.inference.postprocess import postprocess

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Comparison:
    """One question with what it should be answered with and what both models say."""

    question: str
    expected: str
    base: str
    tuned: str

    @property
    def base_exact(self) -> bool:
        """Whether the base model's answer is the expected one."""
        return same_answer(self.base, self.expected)

    @property
    def tuned_exact(self) -> bool:
        """Whether the tuned model's answer is the expected one."""
        return same_answer(self.tuned, self.expected)


def same_answer(answer: str, expected: str) -> bool:
    """Equal but for white space around and for width of characters, which the tokenizer does not keep."""
    return _plain(answer) == _plain(expected)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", postprocess(text)).split())


def exact_share(comparisons: Sequence[Comparison]) -> float:
    """Share of questions that the tuned model answers exactly, 0 to 1."""
    return sum(item.tuned_exact for item in comparisons) / len(comparisons)


def compare_models(
    base: Path,
    tuned: Path,
    questions: Path,
    num_questions: int,
    max_new_tokens: int,
    template: str,
    dtype: str,
    device: str,
) -> list[Comparison]:
    """Asks both models the first questions of an instruction file, greedily.

    One model is in memory at a time. Both are asked in the form the tuned one was trained with unless
    `template` says otherwise. Raises `UserError` for a file without usable questions.
    """
    from medsft.chatglm.weights import check_release
    from medsft.data.records import Columns, read_files
    from medsft.inference.responder import Sampling, open_responder
    from medsft.provenance import trained_template
    from medsft.run_folder import model_folder

    examples = read_files([questions], Columns()).usable()[:num_questions]
    if template == "auto":
        template = trained_template(model_folder(tuned))
    queries = [(example.query, example.history) for example in examples]
    sampling = Sampling(max_new_tokens=max_new_tokens, greedy=True)
    for folder in (base, tuned):
        check_release(model_folder(folder))  # a wrong name shall not surface after the first half
    answers = {}
    for folder in (base, tuned):
        answers[folder] = open_responder(folder, template, dtype, device).answers(queries, sampling)
    return [
        Comparison(example.query, example.response, before, after)
        for example, before, after in zip(examples, answers[base], answers[tuned], strict=True)
    ]


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
            escape(item.expected),
            _cell(item.base, item.base_exact),
            _cell(item.tuned, item.tuned_exact),
        )
    num = len(comparisons)
    before = sum(item.base_exact for item in comparisons)
    after = sum(item.tuned_exact for item in comparisons)
    table.caption = f"exact answers 完全一致: {before}/{num} → {after}/{num}"
    return table


def _cell(answer: str, exact: bool, limit: int = 200) -> str:
    from rich.markup import escape

    short = answer if len(answer) <= limit else answer[:limit] + "…"
    if not answer:
        return "[red]×[/] [dim](empty 空)[/]"
    return f"[green]√[/] {escape(short)}" if exact else f"[red]×[/] {escape(short)}"
