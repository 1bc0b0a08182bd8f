"""Example -> token ids, with what of it is context and what is supervised.

    prompt [gMASK] <sop> answer <eop>
    └──── context ───┘ └─ supervised ─┘

User text goes through `encode_plain`, in which nothing that looks like a control token becomes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from medsft.data.records import Example
from medsft.data.template import render
from medsft.errors import UserError


class Tokenizer(Protocol):
    """What encoding and its cache need of `ChatGLMTokenizer`."""

    vocab_file: str
    num_image_tokens: int
    do_lower_case: bool
    remove_space: bool

    @property
    def gmask_token_id(self) -> int: ...

    @property
    def bos_token_id(self) -> int: ...

    @property
    def eop_token_id(self) -> int: ...

    def encode_plain(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


class Tokens(Protocol):
    """An example in tokens: `Encoded`, and a row of `EncodedDataset`."""

    @property
    def input_ids(self) -> Sequence[int] | np.ndarray: ...

    @property
    def context_length(self) -> int: ...


@dataclass(frozen=True)
class Encoded:
    """One example in tokens.

    Attributes:
        input_ids: prompt + [gMASK] + <sop> + answer + <eop>.
        context_length: index of <sop>; every token from there on is supervised.
        source_cut: whether rounds or tokens of the prompt were left out.
        target_cut: whether tokens of the answer were left out.
    """

    input_ids: list[int]
    context_length: int
    source_cut: bool
    target_cut: bool

    @property
    def num_targets(self) -> int:
        return len(self.input_ids) - self.context_length

    @property
    def num_prompt_tokens(self) -> int:
        return self.context_length - 1

    @property
    def num_answer_tokens(self) -> int:
        return self.num_targets - 2


def check_limits(max_source_length: int, max_target_length: int) -> None:
    """Raise UserError unless at least one token of the prompt and one of the answer fit."""
    if max_source_length < 2:
        raise UserError(
            f"max_source_length is {max_source_length} tokens; it must be at least 2: "
            "one of the prompt and [gMASK]."
        )
    if max_target_length < 3:
        raise UserError(
            f"max_target_length is {max_target_length} tokens; it must be at least 3: "
            "<sop>, one of the answer and <eop>."
        )


def encode_prompt(
    query: str,
    history: tuple[tuple[str, str], ...],
    tokenizer: Tokenizer,
    max_prompt_tokens: int,
    template: str,
) -> tuple[list[int], bool]:
    """Ids of the prompt, without control tokens, and whether something had to be left out.

    While it is too long the oldest round goes, and the prompt is written anew as if that round had never
    been; then tokens go from the front of what remains. The end of the question is what the answer hangs on.
    """
    for first in range(len(history) + 1):
        ids = tokenizer.encode_plain(render(template, query, history[first:]))
        if len(ids) <= max_prompt_tokens:
            return ids, first > 0
    return ids[len(ids) - max_prompt_tokens :], True


def encode_example(
    example: Example,
    tokenizer: Tokenizer,
    max_source_length: int,
    max_target_length: int,
    template: str,
) -> Encoded:
    """Encode one example within THUDM's limits.

    Args:
        example: what to encode.
        tokenizer: see `Tokenizer`.
        max_source_length: most tokens of prompt and [gMASK] together.
        max_target_length: most tokens of <sop>, answer and <eop> together; a longer answer loses its end
            and keeps <eop>, as in THUDM's main.py.
        template: one of `medsft.data.template.TEMPLATES`.

    Raises:
        UserError: the limits leave no room for text.
    """
    check_limits(max_source_length, max_target_length)
    prompt, source_cut = encode_prompt(
        example.query, example.history, tokenizer, max_source_length - 1, template
    )
    answer = tokenizer.encode_plain(example.response)
    kept = answer[: max_target_length - 2]
    return Encoded(
        input_ids=[*prompt, tokenizer.gmask_token_id, tokenizer.bos_token_id, *kept, tokenizer.eop_token_id],
        context_length=len(prompt) + 1,
        source_cut=source_cut,
        target_cut=len(kept) < len(answer),
    )


def describe_example(encoded: Tokens, tokenizer: Tokenizer) -> str:
    """Two lines that show an example decoded, context and supervised target told apart."""
    ids, context = [int(token) for token in encoded.input_ids], int(encoded.context_length)
    prompt, answer = ids[: context - 1], ids[context + 1 : -1]
    return (
        f"context    ({context} tokens): {tokenizer.decode(prompt)!r} [gMASK]\n"
        f"supervised ({len(ids) - context} tokens): <sop> {tokenizer.decode(answer)!r} <eop>"
    )
