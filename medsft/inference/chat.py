"""The conversation in a terminal or a pipe."""

from __future__ import annotations

import json
import locale
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TextIO

from medsft.errors import UserError
from medsft.files import write_text
from medsft.inference.responder import History, Responder
from medsft.inference.sampling import Sampling
from medsft.terminal import harmless

_LEAVE = ("exit", "quit", "q", "stop")
_CLEAR = "clear"
# On a terminal only: in a pipe every other line is a question.
_AGAIN, _HISTORY, _SAVE = "/again", "/history", "/save"

_GREETING = f"""\
Answers come from a language model and may be wrong; no medical advice.
回答由模型生成，可能有误，不构成医疗建议。
{_CLEAR}: new conversation 清空历史 · exit or q: leave 退出 · Ctrl-C: stop an answer 中断回答
{_AGAIN}: another answer 重新回答 · {_HISTORY}: what was said 查看对话 · {_SAVE} FILE: keep it 保存对话
"""


def chat(
    responder: Responder,
    sampling: Sampling,
    keep_history: bool,
    source: TextIO,
) -> None:
    """Answers line after line until `exit` or the end of input.

    On a terminal it prompts, streams, tells the speed and knows the commands of the greeting; from a pipe it
    prints one answer after the other, nothing else. `clear` forgets the rounds so far. Without `keep_history`
    each question stands alone, as in Med-ChatGLM's infer.py. On a terminal Ctrl-C ends the answer that is
    being written, and at the prompt the conversation.
    """
    interactive = source.isatty()
    if interactive:
        _enable_line_editing()
        _show(_GREETING)
    rounds: History = ()  # all that was said since the last `clear`, oldest first
    for line in _questions(source, interactive):
        question, earlier = line, rounds
        if line.lower() in _LEAVE:
            return
        if line.lower() == _CLEAR:
            rounds = ()
            if interactive:
                _show("(new conversation 历史已清空)\n")
            continue
        if interactive and line.split()[0] in (_AGAIN, _HISTORY, _SAVE):
            if line != _AGAIN or not rounds:
                _show(_told(line, rounds))
                continue
            question, earlier = rounds[-1][0], rounds[:-1]
        answer = _answer(responder, question, earlier if keep_history else (), sampling, interactive)
        if answer is not None:  # else all stays as it was, the old answer of `/again` included
            rounds = (*earlier, (question, answer))


def _told(line: str, rounds: History) -> str:
    """What the program itself has to say to a command."""
    name, _, argument = line.partition(" ")
    if not rounds:
        return "(nothing has been said yet 尚无对话)\n"
    if name == _SAVE:
        try:
            save(rounds, argument.strip())
        except UserError as error:
            return f"({error})\n"
        return f"(saved 已保存: {argument.strip()})\n"
    return harmless("".join(f"问：{question}\n答：{answer}\n" for question, answer in rounds))


def save(rounds: History, name: str) -> None:
    """Writes the conversation as one line of `messages`, as `medsft train` reads it, to a new file."""
    if not name:
        raise UserError(f"name a file: {_SAVE} talk.jsonl")
    turns = [(("user", question), ("assistant", answer)) for question, answer in rounds]
    messages = [{"role": role, "content": text} for turn in turns for role, text in turn]
    try:
        path = Path(os.path.expanduser(name))  # noqa: PTH111  pathlib's raises where ~ names nobody
        if path.exists():
            raise UserError(f"{path} exists; name a new file.")
        write_text(path, json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


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
        line = line.removeprefix("\ufeff").strip()  # the mark with which Windows begins a file in UTF-8
        if line:
            yield line


def _answer(
    responder: Responder, question: str, history: History, sampling: Sampling, interactive: bool
) -> str | None:
    """Streams one answer; None when the user stopped it."""
    if interactive:
        _show("答：")
    answer, num_tokens = "", -1  # the last piece comes without a token
    begin_s = time.perf_counter()
    try:
        with closing(responder.stream(question, history, sampling)) as pieces:
            for piece in pieces:
                answer += piece
                num_tokens += 1
                _show(harmless(piece))
    except KeyboardInterrupt:
        if not interactive:
            raise
        _show("… (stopped 已中断)\n")
        return None
    _show("\n")
    if interactive:
        _show(f"({num_tokens} tokens, {num_tokens / (time.perf_counter() - begin_s):.1f} tokens/s)\n")
    return answer


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _enable_line_editing() -> None:
    """Arrow keys and recall at the prompt, where Python has readline.

    Not in the C locale, which stands in for each that is not installed here: readline takes the bytes of a
    Chinese character for key commands there.
    """
    if locale.setlocale(locale.LC_CTYPE) == "C":
        return
    try:
        import readline  # noqa: F401
    except ImportError:
        return
