"""Examples written in the layouts that public instruction sets use; the reading of these is in `layouts`.

| name | columns | history |
| --- | --- | --- |
| med-chatglm | `context` (问题：…\\n回答: ), `target` | none |
| alpaca | `instruction`, `input` (empty), `output` | `history` |
| chatglm | `prompt`, `response` | `history` |
| messages | `messages` of `role`, `content` | earlier messages |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.data.files import BadRecord, OnBytes, expand_files
from medsft.data.layouts import Columns
from medsft.data.records import BadLine, Example, iter_raw
from medsft.data.template import bare_question, med_question
from medsft.data.writing import check_output, writing_lines
from medsft.errors import UserError

Record = dict[str, Any]


def _med_chatglm(query: str, response: str, history: tuple[tuple[str, str], ...]) -> Record:
    if history:
        raise BadRecord("bad history", "Med-ChatGLM's columns have no place for earlier rounds")
    return {"context": med_question(query), "target": response}


def _alpaca(query: str, response: str, history: tuple[tuple[str, str], ...]) -> Record:
    record: Record = {"instruction": query, "input": "", "output": response}
    return {**record, "history": [list(pair) for pair in history]} if history else record


def _chatglm(query: str, response: str, history: tuple[tuple[str, str], ...]) -> Record:
    return {"prompt": query, "response": response, "history": [list(pair) for pair in history]}


def _messages(query: str, response: str, history: tuple[tuple[str, str], ...]) -> Record:
    rounds = [*history, (query, response)]
    texts = [text for pair in rounds for text in pair]
    roles = ("user", "assistant") * len(rounds)
    return {"messages": [{"role": r, "content": text} for r, text in zip(roles, texts, strict=True)]}


WRITERS: dict[str, Callable[[str, str, tuple[tuple[str, str], ...]], Record]] = {
    "med-chatglm": _med_chatglm,
    "alpaca": _alpaca,
    "chatglm": _chatglm,
    "messages": _messages,
}


def as_record(example: Example, layout: str, raw: Mapping[str, Any] | None = None) -> Record:
    """An example in a layout; what `raw` says of its provenance comes along.

    Raises `BadRecord` for a history that the layout has no place for.
    """
    history = tuple((bare_question(question), answer) for question, answer in example.history)
    record = WRITERS[layout](bare_question(example.query), example.response, history)
    return {**record, "provenance": raw["provenance"]} if raw and "provenance" in raw else record


def iter_raw_files(
    files: Sequence[str | Path], columns: Columns | None = None, on_bytes: OnBytes | None = None
) -> Iterator[tuple[Any, Example | BadLine]]:
    """(raw record, what it is read as) of all files in order; see `iter_raw`.

    Raises `UserError` as `expand_files` and `iter_raw` do.
    """
    for path in expand_files(files):
        for _, raw, record in iter_raw(path, columns or Columns(), on_bytes):
            yield raw, record


@dataclass(frozen=True)
class Conversion:
    """How many examples were written, and what was left out, by reason, with the first of them."""

    num_written: int
    left_out: Mapping[str, int]
    first: tuple[str, ...]

    def describe(self) -> str:
        """One line for people."""
        if not self.left_out:
            return f"{self.num_written:,} examples"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        return f"{self.num_written:,} examples; left out: {reasons}; {'; '.join(self.first)}"


def convert_files(
    files: Sequence[str | Path],
    output: Path,
    layout: str,
    columns: Columns | None = None,
    on_bytes: OnBytes | None = None,
) -> Conversion:
    """Rewrites instruction files in one layout, one example at a time.

    Raises `UserError` for an unknown layout, for files that cannot be read or written, and when nothing is
    left.
    """
    if layout not in WRITERS:
        raise UserError(f"The layout {layout!r} is not known; give one of {', '.join(WRITERS)}.")
    paths = expand_files(files)
    check_output(output, paths)
    left_out: Counter[str] = Counter()
    first: list[str] = []
    num_written = 0
    with writing_lines(output) as write:
        for raw, example in iter_raw_files(paths, columns, on_bytes):
            try:
                if isinstance(example, BadLine):
                    raise BadRecord(example.reason, example.detail)
                write(as_record(example, layout, raw))
                num_written += 1
            except BadRecord as fault:
                left_out[fault.reason] += 1
                if len(first) < 3:
                    first.append(str(BadLine(example.source, fault.reason, fault.detail)))
        if not num_written:
            raise UserError(f"No example of {', '.join(map(str, files))} can be written: {'; '.join(first)}.")
    return Conversion(num_written, left_out, tuple(first))
