"""What clients send and get: OpenAI's chat completions, and the form of ChatGLM-6B's original api.py.

https://platform.openai.com/docs/api-reference/chat; https://github.com/THUDM/ChatGLM-6B/blob/main/api.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from medsft.data.files import BadRecord
from medsft.data.layouts import Columns, parse_record
from medsft.errors import UserError
from medsft.inference.responder import History
from medsft.inference.sampling import Sampling
from medsft.inference.server.limits import Limits

# Asking for these changes the answer in a way that is not to be had here; their empty values are harmless.
_UNSUPPORTED = (
    "tools",
    "functions",
    "logprobs",
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "audio",
)


_MOST_STOPS, _LONGEST_STOP = 16, 256


class ContentPart(BaseModel):
    """A part of a message; only text is understood."""

    type: str
    text: str = ""


class ChatMessage(BaseModel):
    """One turn."""

    role: str
    content: str | list[ContentPart]


class StreamOptions(BaseModel):
    """include_usage: whether the last piece tells the numbers of tokens."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """Body of /v1/chat/completions; top_k and repetition_penalty go beyond OpenAI's."""

    model_config = ConfigDict(extra="allow")

    messages: list[ChatMessage] = Field(min_length=1)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1, le=1)

    def check(self, limits: Limits) -> None:
        """Raises UserError for what is asked in vain and for too many messages."""
        asked = [name for name in _UNSUPPORTED if (self.model_extra or {}).get(name)]
        if asked:
            raise UserError(f"{', '.join(asked)}: not supported here; leave it out.")
        kind = (self.model_extra or {}).get("response_format")
        if kind and (not isinstance(kind, Mapping) or kind.get("type") != "text"):
            raise UserError("response_format: only text is supported.")
        if len(self.messages) > limits.max_messages:
            raise UserError(
                f"{len(self.messages)} messages, of at most {limits.max_messages}; leave out the oldest."
            )

    def stops(self) -> list[str]:
        """Strings that end the answer. Raises UserError for too many, or longer ones than are looked for."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(given) > _MOST_STOPS or any(len(each) > _LONGEST_STOP for each in given):
            raise UserError(f"stop: at most {_MOST_STOPS} strings of at most {_LONGEST_STOP} characters.")
        return [each for each in given if each]

    def conversation(self) -> tuple[str, History]:
        """The question and the rounds before it. Raises UserError where the turns make no conversation."""
        turns = []
        for message in self.messages:
            content = message.content
            if not isinstance(content, str):
                if any(part.type != "text" for part in content):
                    raise UserError("messages: only parts of type text are supported.")
                content = "".join(part.text for part in content)
            role = "system" if message.role == "developer" else message.role
            turns.append({"role": role, "content": content})
        if turns[-1]["role"] != "user":
            raise UserError("messages: the last one must be the user's.")
        return _question({"messages": [*turns, {"role": "assistant", "content": "…"}]})

    def sampling(self, limits: Limits, max_sequence_length: int) -> Sampling:
        """How to answer. Raises UserError for more tokens than an answer may have."""
        asked = self.max_completion_tokens or self.max_tokens
        return make_sampling(
            limits,
            max_sequence_length,
            asked,
            greedy=self.temperature == 0,
            temperature=self.temperature or None,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


class OldRequest(BaseModel):
    """Body of api.py. max_length counts prompt and answer together, as there."""

    prompt: str = Field(min_length=1)
    history: list[tuple[str, str]] | None = None
    max_length: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    temperature: float | None = Field(None, ge=0, le=10)

    @property
    def rounds(self) -> list[tuple[str, str]]:
        """The history; null, or none, is an empty one."""
        return self.history or []

    def stops(self) -> list[str]:
        """None: api.py has no such thing."""
        return []

    def conversation(self) -> tuple[str, History]:
        """The question and the rounds before it. Raises UserError for an empty question."""
        pairs = [list(pair) for pair in self.rounds]
        return _question({"prompt": self.prompt, "response": "…", "history": pairs})

    def sampling(self, limits: Limits, max_sequence_length: int) -> Sampling:
        """How to answer: half of `max_length` at most, so that the question has room."""
        asked = None if self.max_length is None else min(max(1, self.max_length // 2), limits.max_new_tokens)
        return make_sampling(
            limits,
            max_sequence_length,
            asked,
            greedy=self.temperature == 0,
            temperature=self.temperature or None,
            top_p=self.top_p,
        )


def make_sampling(limits: Limits, max_sequence_length: int, asked: int | None, **settings: Any) -> Sampling:
    """Settings that are not None, over the release's defaults."""
    if asked is not None and asked > limits.max_new_tokens:
        raise UserError(f"max_tokens is {asked}; this server writes at most {limits.max_new_tokens}.")
    longest = asked or min(Sampling.max_new_tokens, limits.max_new_tokens, max_sequence_length // 2)
    given = {name: value for name, value in settings.items() if value is not None}
    return Sampling(max_new_tokens=longest, **given)


def _question(record: Mapping[str, Any]) -> tuple[str, History]:
    """By the same rules as training data of that layout."""
    try:
        query, _, history = parse_record(record, Columns())
    except BadRecord as error:
        raise UserError(f"{error}.") from error
    return query, history


def completion(
    ident: str, created: int, model: str, text: str, finish: str | None, usage: Mapping[str, int]
) -> dict[str, Any]:
    """A whole answer in OpenAI's form."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {
        "id": ident,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def chunk(
    ident: str,
    created: int,
    model: str,
    delta: Mapping[str, str] | None,
    finish: str | None = None,
    usage: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """A piece of an answer in OpenAI's form; without `delta` the one that tells the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    told = {
        "id": ident,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
    }
    return told if usage is None else {**told, "usage": usage}


def usage(num_prompt_tokens: int, num_tokens: int) -> dict[str, int]:
    """Numbers of tokens in OpenAI's form."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def old_answer(question: str, history: Sequence[tuple[str, str]], text: str) -> dict[str, Any]:
    """A whole answer in api.py's form."""
    return {
        "response": text,
        "history": [*map(list, history), [question, text]],
        "status": 200,
        "time": datetime.now().strftime("%Y-%m-%d %H:%M:%S"),
    }
