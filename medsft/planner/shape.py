"""The shape of a ChatGLM, and the number of its parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from medsft.errors import UserError
from medsft.shapes import PRESETS, RELEASED_ROWS, SIZES, size_faults

CHATGLM_6B = "chatglm-6b"
"""The released model's name, for preset 6b."""


class HasShape(Protocol):
    """A configuration as `medsft.chatglm.ChatGLMConfig` has it."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    inner_hidden_size: int
    tie_word_embeddings: bool


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: rows of the vocabulary, widths, layers, heads, and whether head and embedding are
    one.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of a token's state.
        num_layers: blocks.
        num_attention_heads: heads of a block.
        inner_hidden_size: width inside the feed-forward.
        tie_word_embeddings: the head is the embedding's matrix.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    inner_hidden_size: int
    tie_word_embeddings: bool = True

    @classmethod
    def of(cls, config: HasShape) -> Self:
        """The shape of a model's configuration, which has been checked when it was made."""
        return cls(
            config.vocab_size,
            config.hidden_size,
            config.num_layers,
            config.num_attention_heads,
            config.inner_hidden_size,
            config.tie_word_embeddings,
        )

    @property
    def matrix_parameters(self) -> int:
        """Elements of the embedding, and as many of the head."""
        return self.vocab_size * self.hidden_size

    @property
    def layer_parameters(self) -> int:
        """Of one block: 4E² + 4E attention, 2EF + F + E feed-forward, 4E in two LayerNorms."""
        width, inner = self.hidden_size, self.inner_hidden_size
        return 4 * width**2 + 4 * width + 2 * width * inner + inner + width + 4 * width

    @property
    def body_parameters(self) -> int:
        """Of all blocks and the final LayerNorm: what every token passes through."""
        return self.num_layers * self.layer_parameters + 2 * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Trainable parameters; a tied head counts once."""
        return self.body_parameters + self.matrix_parameters * (1 if self.tie_word_embeddings else 2)

    @property
    def block_tensors(self) -> tuple[int, ...]:
        """Elements of each parameter of a block, in the model's order."""
        width, inner = self.hidden_size, self.inner_hidden_size
        attention = (width, width, 3 * width**2, 3 * width, width**2, width)
        return (*attention, width, width, width * inner, inner, width * inner, width)

    def tensors(self) -> Iterator[int]:
        """Elements of each parameter, in the model's order."""
        yield self.matrix_parameters
        for _ in range(self.num_layers):
            yield from self.block_tensors
        yield from (self.hidden_size, self.hidden_size)
        if not self.tie_word_embeddings:
            yield self.matrix_parameters

    def slice_elements(self, world_size: int) -> int:
        """Elements of one rank under ZeRO-3: each parameter is cut apart, its last slice padded."""
        return sum(math.ceil(size / world_size) for size in self.tensors())

    def sub_groups(self, world_size: int, sub_group_size: int) -> tuple[int, ...]:
        """Elements of each of a rank's sub-groups.

        DeepSpeed closes a sub-group with the parameter by which it reaches `sub_group_size` elements, so it
        may be larger by nearly a whole slice (deepspeed/runtime/zero/stage3.py, `_create_fp16_sub_groups`).
        """
        groups, size = [], 0
        for elements in self.tensors():
            size += math.ceil(elements / world_size)
            if size >= sub_group_size:
                groups.append(size)
                size = 0
        return (*groups, size) if size else tuple(groups)

    def kept_whole(self, threshold: int) -> int:
        """Elements of the parameters of at most `threshold` elements, which every rank keeps gathered."""
        return sum(size for size in self.tensors() if size <= threshold)


def preset_shape(name: str) -> Shape:
    """The shape of that name, with the released vocabulary. Raises `UserError`, which lists the names."""
    preset = PRESETS.get("6b" if name == CHATGLM_6B else name)
    if preset is None:
        raise UserError(f"there is no preset {name!r}; choose one of {CHATGLM_6B}, {', '.join(PRESETS)}.")
    return Shape(RELEASED_ROWS, **preset)


def read_shape(folder: Path) -> Shape:
    """The shape that a model folder's config.json gives; what it leaves out is as in ChatGLM-6B.

    Raises `UserError` naming the file, where it cannot be read, and where no model can have these sizes.
    """
    path = folder / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"--model_name_or_path {folder}: {path} cannot be read ({error}). Give a folder with a "
            "config.json, or a --preset."
        ) from error
    sizes = {"vocab_size": RELEASED_ROWS, **PRESETS["6b"]}
    sizes |= {name: fields[name] for name in SIZES if name in fields}
    faults = size_faults(sizes)
    if faults:
        raise UserError(f"{path}: " + "; ".join(faults) + ".")
    return Shape(**sizes, tie_word_embeddings=bool(fields.get("tie_word_embeddings", True)))
