"""The comparison as a document: Markdown, or one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medsft.errors import UserError
from medsft.evaluation.comparison_file import write_facts
from medsft.evaluation.findings import Findings, measures
from medsft.evaluation.question_set import Question
from medsft.files import write_text
from medsft.pages.markdown import plain, table
from medsft.pages.page import render
from medsft.terminal import harmless

_PAGE = Path(__file__).with_name("comparison_page.html.jinja")
_TITLE = "Before and after training 训练前后"
_QUESTION_HEAD = ("question 问题", "expected 标准答案", "before 训练前", "after 训练后")
_MEASURE_HEAD = ("measure 指标", "before 训练前", "after 训练后")
_EMPTY = "(empty 空)"
_REFUSED = "Not accepted 未通过"


def check_name(path: Path) -> None:
    """Raises `UserError` unless a comparison can be written under that name."""
    if path.suffix not in (".md", ".html"):
        raise UserError(f"--output {path} must end in .md or .html; give such a name.")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}. Make it, or give another name.")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; give the name of a file.")


def write_comparison(
    path: Path, base: Path, tuned: Path, findings: Findings, faults: Sequence[str] = ()
) -> None:
    """Writes both tables and the verdict to `path`, whose name `check_name` has let through.

    Beside `page.html` comes `page.html.json`. base, tuned: the models. faults: what the gate found. Raises
    `UserError` where the writing fails.
    """
    make = _markdown if path.suffix == ".md" else _html
    try:
        write_text(path, harmless(make(findings, faults)))
        write_facts(path.with_name(f"{path.name}.json"), base, tuned, findings, faults)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}.") from error


def _html(findings: Findings, faults: Sequence[str]) -> str:
    return render(
        _PAGE,
        title=_TITLE,
        refused=_REFUSED,
        faults=faults,
        question_head=_QUESTION_HEAD,
        answered=findings.answered,
        measure_head=_MEASURE_HEAD,
        measures=measures(findings),
        empty=_EMPTY,
    )


def _markdown(findings: Findings, faults: Sequence[str]) -> str:
    questions = [
        (
            item.question.query.strip(),
            item.question.expected or "—",
            _marked(item.base, item.base_exact, item.question),
            _marked(item.tuned, item.tuned_exact, item.question),
        )
        for item in findings.answered
    ]
    tables = (table(_QUESTION_HEAD, questions), table(_MEASURE_HEAD, measures(findings)))
    verdict = [f"**{_REFUSED}:** {plain(fault)}.\n" for fault in faults]
    return "\n".join([f"# {_TITLE}\n", *verdict, *tables])


def _marked(answer: str, is_exact: bool, question: Question) -> str:
    shown = answer if answer.strip() else _EMPTY
    return f"{'√' if is_exact else '×'} {shown}" if question.expected else shown
