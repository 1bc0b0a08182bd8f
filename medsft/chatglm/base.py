"""The model folder that a training starts from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.tokenization import VOCAB_FILE, ChatGLMTokenizer
from medsft.chatglm.weights import WeightFiles
from medsft.chatglm.weights.check import open_release, refuse_quantised
from medsft.chatglm.weights.convert import CODE_FILES
from medsft.errors import UserError

TRAVELLING_FILES = (*CODE_FILES, "LICENSE", "MODEL_LICENSE")

_DECISIVE_FIELDS = tuple(
    name for name, kind in ChatGLMConfig.__annotations__.items() if "ClassVar" not in str(kind)
)


@dataclass(frozen=True)
class BaseModel:
    """Parts of a model folder that belong together; the weights are mapped, not read.

    shapes: of the model's parameters by name, in its order.
    """

    folder: Path
    config: ChatGLMConfig
    tokenizer: ChatGLMTokenizer
    weights: WeightFiles
    shapes: Mapping[str, tuple[int, ...]]

    def fingerprint(self) -> str:
        """SHA-256 over the configuration, and names, shapes, types and first elements of all weights.

        Cheap: a page of each tensor is read. Tells models apart, not every flipped bit. Where the folder is
        and which version of transformers reads it make no difference.
        """
        own = {name: getattr(self.config, name) for name in _DECISIVE_FIELDS}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
        for name in sorted(self.weights.names):
            digest.update(f"{name} {tuple(self.weights.shape(name))} {self.weights.dtype(name)}".encode())
            start = self.weights.read_range(name, 0, min(64, self.weights.shape(name).numel()))
            digest.update(start.clone().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def write_companions(self, folder: Path) -> None:
        """Writes what a model folder holds beside its weights: config.json, tokenizer, what travels along."""
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        copy_travelling_files(self.folder, folder)

    @property
    def pad_token_id(self) -> int:
        """Fills slots that hold no token."""
        return self.config.pad_token_id


def copy_travelling_files(source: Path, folder: Path) -> None:
    """Copies the original code and the licences, which go with a model from folder to folder."""
    for name in TRAVELLING_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


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
    refuse_quantised(folder, on_meta.config, "full-parameter training")
    shapes = {name: tuple(param.shape) for name, param in on_meta.named_parameters()}
    return BaseModel(folder, on_meta.config, open_tokenizer(folder), weights, shapes)
