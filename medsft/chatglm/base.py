"""The model folder that a training starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.tokenization import VOCAB_FILE, ChatGLMTokenizer
from medsft.chatglm.weights import WeightFiles
from medsft.chatglm.weights.check import open_release
from medsft.errors import UserError


@dataclass(frozen=True)
class BaseModel:
    """Parts of a model folder that belong together; the weights are mapped, not read."""

    folder: Path
    config: ChatGLMConfig
    tokenizer: ChatGLMTokenizer
    weights: WeightFiles

    @property
    def pad_token_id(self) -> int:
        """Fills slots that hold no token."""
        return self.config.pad_token_id


def open_tokenizer(folder: Path) -> ChatGLMTokenizer:
    """The tokenizer of a folder on this machine; raises `UserError` where there is none."""
    if not (folder / VOCAB_FILE).is_file():
        raise UserError(
            f"{folder} holds no tokenizer: {VOCAB_FILE} is missing. Give a folder with {VOCAB_FILE} and "
            "tokenizer_config.json, as the release has them beside the weights."
        )
    return ChatGLMTokenizer.from_pretrained(folder)


def open_base_model(folder: Path) -> BaseModel:
    """Opens and checks a folder in the released layout.

    Raises `UserError` naming file and remedy when a part is missing, damaged or of another release.
    """
    on_meta, weights = open_release(folder)
    return BaseModel(folder, on_meta.config, open_tokenizer(folder), weights)
