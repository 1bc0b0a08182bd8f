"""The comparison as a document: Markdown, or one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from medsft.errors import UserError
from medsft.evaluation.compare import Findings, measures
from medsft.files import write_text

TITLE = "Before and after training 训练前后"
_QUESTION_HEAD = ("question 问题", "expected 标准答案", "before 训练前", "after 训练后")
_MEASURE_HEAD = ("measure 指标", "before 训练前", "after 训练后")
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;width:100%;margin:1em 0}"
    "th,td{border:1px solid #ccc;padding:.4em .6em;text-align:left;vertical-align:top;white-space:pre-wrap}"
    "th{background:#f3f5f8}"
)


def check_name(path: Path) -> None:
    """Raises `UserError` unless a comparison can be written under that name."""
    if path.suffix not in (".md", ".html"):
        raise UserError(f"--output {path} must end in .md or .html; give such a name.")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}. Make it, or give another name.")


def write_comparison(path: Path, findings: Findings) -> None:
    """Writes both tables to `path`, whose name `check_name` has let through."""
    questions = [
        (item.question.strip(), item.expected or "—", item.base or "(empty 空)", item.tuned or "(empty 空)")
        for item in findings.comparisons
    ]
    tables = [(_QUESTION_HEAD, questions), (_MEASURE_HEAD, measures(findings))]
    if path.suffix == ".md":
        text = "\n".join([f"# {TITLE}\n", *(_markdown(head, rows) for head, rows in tables)])
    else:
        inside = "".join(_html(head, rows) for head, rows in tables)
        text = (
            f'<!doctype html><html lang="zh"><head><meta charset="utf-8"><title>{TITLE}</title>'
            f"<style>{_STYLE}</style></head><body><h1>{TITLE}</h1>{inside}</body></html>\n"
        )
    write_text(path, text)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        safe = (escape(cell, quote=False).replace("|", "\\|").replace("\n", "<br>") for cell in cells)
        return f"| {' | '.join(safe)} |\n"

    return line(head) + line(["---"] * len(head)) + "".join(map(line, rows))


def _html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table>"
