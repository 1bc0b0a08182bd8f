"""The conversation in a terminal or a pipe."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TextIO

from medsft.errors import UserError
from medsft.inference.responder import History, Responder, Sampling

_LEAVE = ("exit", "quit", "q", "stop")
_CLEAR = "clear"

_GREETING = (
    "Answers come from a language model and may be wrong; no medical advice.\n"
    "回答由模型生成，可能有误，不构成医疗建议。\n"
    "clear: new conversation 清空历史 · exit or q: leave 退出 · Ctrl-C: stop an answer 中断回答"
)


def _questions(source: TextIO, interactive: bool) -> Iterator[str]:
    """Lines without their end; blank ones are passed over. Ends at the end of input."""
    while True:
        try:
            line = input("\n问：") if interactive else source.readline()
        except EOFError:
            return
        except UnicodeDecodeError as error:
            raise UserError(
                f"the questions are not in {source.encoding} ({error.reason}). Convert them, for example "
                "with iconv -f GBK -t UTF-8, or set PYTHONIOENCODING to what they are in."
            ) from error
        if not line and not interactive:
            return
        if line.strip():
            yield line.strip()


def chat(
    responder: Responder,
    sampling: Sampling,
    keep_history: bool,
    source: TextIO,
) -> None:
    """Answers line after line until `exit` or the end of input.

    On a terminal it prompts and streams; from a pipe it prints one answer after the other, nothing else.
    `clear` forgets the rounds so far. Without `keep_history` each question stands alone, as in Med-ChatGLM's
    infer.py. On a terminal Ctrl-C ends the answer that is being written, and at the prompt the conversation.
    """
    interactive = source.isatty()
    if interactive:
        _enable_line_editing()

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    if interactive:
        show(_GREETING + "\n")
    history: History = ()
    for question in _questions(source, interactive):
        if question.lower() in _LEAVE:
            return
        if question.lower() == _CLEAR:
            history = ()
            if interactive:
                show("(new conversation 历史已清空)\n")
            continue
        if interactive:
            show("答：")
        answer = _answer(responder, question, history, sampling, show, interactive)
        show("\n")
        if keep_history and answer is not None:
            history = (*history, (question, answer))


def _answer(
    responder: Responder,
    question: str,
    history: History,
    sampling: Sampling,
    show: Callable[[str], None],
    interactive: bool,
) -> str | None:
    """Streams one answer; None when the user stopped it."""
    answer = ""
    try:
        with closing(responder.stream(question, history, sampling)) as pieces:
            for piece in pieces:
                answer += piece
                show(_without_control_characters(piece))
    except KeyboardInterrupt:
        if not interactive:
            raise
        show("… (stopped 已中断)")
        return None
    return answer


def _without_control_characters(text: str) -> str:
    """A model can write anything, also what would reprogram a terminal."""
    return "".join(item for item in text if item in "\n\t" or unicodedata.category(item) != "Cc")


def _enable_line_editing() -> None:
    """Arrow keys and recall at the prompt, where Python has readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
