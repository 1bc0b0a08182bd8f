"""Raw record -> question, answer and history, by the layouts that public instruction sets use.

| layout | columns |
| --- | --- |
| chat | `messages`: [{`role`: system / user / assistant, `content`}]; `conversations`: `from`, `value` |
| Alpaca | `instruction`, `output`, optional `input` (after the instruction, on a new line) and `history` |
| Med-ChatGLM | `context`, `target` |
| ChatGLM | `prompt`, `response`, optional `history` |

A history is a list of [question, answer] pairs, oldest first; in CSV, the same as JSON text. Of a chat with
several assistant turns the last is the answer that is trained on and the earlier rounds are history, as
ChatGLM's own training data has it; system text goes before the first user turn.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from medsft.data.files import NOT_UTF8, BadRecord
from medsft.errors import UserError

Fields = tuple[str, str, tuple[tuple[str, str], ...]]
"""Query, response, history."""

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
}


@dataclass(frozen=True)
class Columns:
    """Column names given by flag; all None: the layout is recognised for each record.

    Attributes:
        prompt: column of the question.
        response: column of the answer.
        history: column of the earlier rounds.
    """

    prompt: str | None = None
    response: str | None = None
    history: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.response is None):
            raise UserError(
                f"prompt_column is {self.prompt!r} and response_column is {self.response!r}; give both, or "
                "neither to have the columns recognised."
            )
        if self.history is not None and self.prompt is None:
            raise UserError(
                f"history_column is {self.history!r}, but prompt_column and response_column are not given; "
                "give all three."
            )


def parse_record(record: object, columns: Columns) -> Fields:
    """Query, response and history of a raw record.

    Raises:
        BadRecord: it is no object, lacks columns, holds other things than text, or has no question or answer.
    """
    if not isinstance(record, Mapping):
        raise BadRecord("not a JSON object", f"a {type(record).__name__}")
    if columns.prompt is not None and columns.response is not None:
        query, response, history = _by_columns(record, columns.prompt, columns.response, columns.history)
    elif "messages" in record:
        query, response, history = _chat(record["messages"], "role", "content")
    elif "conversations" in record:
        query, response, history = _chat(record["conversations"], "from", "value")
    elif {"instruction", "output"} <= record.keys():
        query, response, history = _alpaca(record)
    elif {"context", "target"} <= record.keys():
        query, response, history = _by_columns(record, "context", "target", None)
    elif {"prompt", "response"} <= record.keys():
        query, response, history = _by_columns(record, "prompt", "response", None)
        history = _history(record.get("history"))
    else:
        raise BadRecord("missing columns", f"has {_names(record)}; name the columns by flag")
    if not query.strip():
        raise BadRecord("empty prompt")
    if not response.strip():
        raise BadRecord("empty answer")
    check_unicode(query, response, *(text for pair in history for text in pair))
    return query, response, history


def with_response(record: Mapping, columns: Columns, response: str) -> dict:
    """A record with another answer and all else as it is; for one that `parse_record` takes."""
    for turns, text in (("messages", "content"), ("conversations", "value")):
        if columns.response is None and turns in record:
            *earlier, last = record[turns]
            return {**record, turns: [*earlier, {**last, text: response}]}
    column = columns.response or next(
        answer
        for question, answer in (("instruction", "output"), ("context", "target"), ("prompt", "response"))
        if {question, answer} <= record.keys()
    )
    return {**record, column: response}


def _names(record: Mapping) -> str:
    names = [str(name) for name in record]
    return ", ".join(names[:6]) + (" …" if len(names) > 6 else "") if names else "none"


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecord("wrong type", f"{name} is {_kind(value)}, not text")
    return value


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _by_columns(record: Mapping, prompt: str, response: str, history: str | None) -> Fields:
    wanted = [name for name in (prompt, response, history) if name is not None]
    missing = [name for name in wanted if name not in record]
    if missing:
        raise BadRecord("missing columns", f"no {', '.join(missing)}; has {_names(record)}")
    rounds = _history(record[history]) if history is not None else ()
    return _text(record[prompt], prompt), _text(record[response], response), rounds


def _alpaca(record: Mapping) -> Fields:
    instruction = _text(record["instruction"], "instruction")
    extra = record.get("input")
    extra = "" if extra is None else _text(extra, "input")
    query = "\n".join(text for text in (instruction, extra) if text.strip())
    return query, _text(record["output"], "output"), _history(record.get("history"))


def _history(value: object) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRecord("bad history", f"not JSON: {error}") from error
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, list):
        raise BadRecord("bad history", f"{_kind(value)}, not a list of [question, answer] pairs")
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise BadRecord("bad history", "a round is not a pair of texts [question, answer]")
    return tuple((question, answer) for question, answer in value)


def _chat(turns: object, role_key: str, text_key: str) -> Fields:
    if not isinstance(turns, list):
        raise BadRecord("bad conversation", f"{_kind(turns)}, not a list of turns")
    system: list[str] = []
    texts: list[str] = []
    for turn in turns:
        if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
            raise BadRecord("bad conversation", f"a turn is not an object with {role_key} and {text_key}")
        role = _ROLES.get(turn[role_key]) if isinstance(turn[role_key], str) else None
        text = _text(turn[text_key], text_key)
        if role == "system" and not texts:
            system.append(text)
        elif role == ("assistant" if len(texts) % 2 else "user"):
            texts.append(text)
        elif role is None:
            raise BadRecord("bad conversation", f"the role {turn[role_key]!r} is not known")
        else:
            raise BadRecord("bad conversation", "the turns are not [system,] user, assistant, user, …")
    if not texts or len(texts) % 2:
        raise BadRecord("bad conversation", "the last turn is not the assistant's")
    texts[0] = "\n".join([*(text for text in system if text.strip()), texts[0]])
    *earlier, (query, response) = zip(texts[::2], texts[1::2], strict=True)
    return query, response, tuple(earlier)


def check_unicode(*texts: str) -> None:
    """Raises `BadRecord` where a text holds bytes that were not UTF-8."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRecord(NOT_UTF8, f"character {error.start + 1} of a text") from error
