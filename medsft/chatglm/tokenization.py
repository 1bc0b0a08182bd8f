"""ChatGLM's tokenizer: SentencePiece unigram with blanks, tabs and newlines made visible, in both releases.

v1.1's `ice_text.model` holds every token. v0.1's holds the text pieces only: the special tokens, the blanks
and the byte pieces are appended here, and 20000 image tokens stand before all of them.
"""

import copy
import hashlib
import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import sentencepiece
from transformers import AddedToken, PreTrainedTokenizer

from medsft.errors import UserError
from medsft.files import replace_file

VOCAB_FILE = "ice_text.model"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
TAB_TOKEN = "<|tab|>"
NEWLINE_TOKEN = "<n>"
MAX_BLANKS = 80

_V0_NUM_IMAGE_TOKENS = 20000
_V0_NUM_PIECES = 130000
_V1_NUM_PIECES = 130344

# Written by transformers for its own use; the original code neither needs nor expects them.
_PRIVATE_CONFIG_KEYS = (
    "added_tokens_decoder",
    "backend",
    "is_local",
    "local_files_only",
    "model_specific_special_tokens",
    "trust_remote_code",
)
_AUTO_MAP = {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}


def blank_token(num_blanks: int) -> str:
    """The token for a run of 2 to 80 blanks."""
    return f"<|blank_{num_blanks}|>"


def whitespace_tokens() -> list[str]:
    """Tab and blank tokens in the release's order."""
    return [TAB_TOKEN, *(blank_token(count) for count in range(2, MAX_BLANKS + 1))]


def mark_whitespace(text: str) -> str:
    """Text with newlines, tabs and runs of blanks spelled as tokens, the longest runs first."""
    text = text.replace("\n", NEWLINE_TOKEN).replace("\t", TAB_TOKEN)
    if "  " in text:
        for count in range(MAX_BLANKS, 1, -1):
            text = text.replace(" " * count, blank_token(count))
    return text


def unmark_whitespace(text: str) -> str:
    """Reverse of `mark_whitespace`."""
    text = text.replace(NEWLINE_TOKEN, "\n").replace(TAB_TOKEN, "\t")
    if "<|blank_" in text:
        for count in range(2, MAX_BLANKS + 1):
            text = text.replace(blank_token(count), " " * count)
    return text


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Tokenizer of both releases, told apart by what the folder's files say.

    `encode` and `__call__` follow the reference: the special tokens that tokenizer_config.json names are
    recognised in the text, and `[gMASK] <sop>` is appended. `encode_plain` is for text that people typed: it
    never yields a control token. Padding is on the left. Ids come from the files, never from constants.

    `eos_token` is `<eop>` in v1.1 and `</s>` in v0.1; `eop_token_id` is what ends an answer in both.
    `decode` follows the reference too: control tokens have no text, whether skipped or not.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": VOCAB_FILE}
    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | Path,
        do_lower_case: bool = False,
        remove_space: bool = False,
        bos_token: str = "<sop>",
        eos_token: str = "<eop>",
        end_token: str | None = None,
        mask_token: str = "[MASK]",
        gmask_token: str = "[gMASK]",
        eop_token: str | None = None,
        pad_token: str = "<pad>",
        unk_token: str = "<unk>",
        num_image_tokens: int = _V0_NUM_IMAGE_TOKENS,
        **kwargs: Any,
    ):
        if vocab_file is None or not Path(vocab_file).is_file():
            raise UserError(
                f"the tokenizer's vocabulary {VOCAB_FILE} is not there (looked for {vocab_file}). "
                "Copy it from the same release as the weights."
            )
        # transformers 5 hands *_token arguments that it does not know in one dict. They must not become
        # special tokens: "[gMASK]" in a text is plain text in both releases.
        named = dict(kwargs.pop("model_specific_special_tokens", None) or {})
        self.gmask_token = str(named.pop("gmask_token", gmask_token))
        self.end_token = named.pop("end_token", end_token)
        self.eop_token = str(named.pop("eop_token", eop_token) or "<eop>")
        if named:
            kwargs["model_specific_special_tokens"] = named
        self.do_lower_case = do_lower_case
        self.remove_space = remove_space
        self.num_image_tokens = num_image_tokens
        self.vocab_file = str(vocab_file)
        self._model_bytes = Path(vocab_file).read_bytes()
        self._load_model()

        special = {
            self._convert_token_to_id(token): AddedToken(
                token, lstrip=True, rstrip=True, normalized=False, special=True
            )
            for token in map(str, (bos_token, eos_token, mask_token, pad_token, unk_token))
        }
        super().__init__(
            bos_token=str(bos_token),
            eos_token=str(eos_token),
            mask_token=str(mask_token),
            pad_token=str(pad_token),
            unk_token=str(unk_token),
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            num_image_tokens=num_image_tokens,
            added_tokens_decoder={**kwargs.pop("added_tokens_decoder", {}), **special},
            **kwargs,
        )

    def _load_model(self) -> None:
        self._pieces, self._num_file_pieces = _load_pieces(self._model_bytes, self.vocab_file)
        self._vocab: dict[str, int] | None = None
        self._control_ids: frozenset[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_pieces"]  # rebuilt from _model_bytes, half the size to send to a process
        state["_vocab"] = state["_control_ids"] = None  # a copy hashes the same whatever was asked before
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_model()

    # --- vocabulary

    def fingerprint(self) -> str:
        """SHA-256 over the SentencePiece model, the image tokens before it and the special tokens."""
        special = sorted((name, str(token)) for name, token in self.special_tokens_map.items())
        return hashlib.sha256(self._model_bytes + repr((self.num_image_tokens, special)).encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of ids: image tokens, text pieces, special tokens and bytes."""
        return self.num_image_tokens + self._pieces.vocab_size()

    @property
    def release(self) -> str:
        """ "v1.1", "v0.1", or "custom" for a vocabulary of neither."""
        if self.num_image_tokens == 0 and self._num_file_pieces == _V1_NUM_PIECES:
            return "v1.1"
        if self.num_image_tokens == _V0_NUM_IMAGE_TOKENS and self._num_file_pieces == _V0_NUM_PIECES:
            return "v0.1"
        return "custom"

    @property
    def gmask_token_id(self) -> int:
        """Id of `[gMASK]`, which the answer stands for."""
        return self._convert_token_to_id(self.gmask_token)

    @property
    def eop_token_id(self) -> int:
        """Id of `<eop>`, which ends an answer in both releases."""
        return self._convert_token_to_id(self.eop_token)

    @property
    def control_token_ids(self) -> frozenset[int]:
        """Ids of all pieces that steer the model and have no text: special tokens, `<s>`, `</s>`, `<pad>`."""
        if self._control_ids is None:
            self._control_ids = frozenset(
                self.num_image_tokens + piece
                for piece in range(self._pieces.vocab_size())
                if self._pieces.is_control(piece)
            )
        return self._control_ids

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        if self._vocab is None:
            self._vocab = {self._convert_id_to_token(index): index for index in range(self.vocab_size)}
        return {**self._vocab, **self._added_tokens_encoder}

    def _convert_token_to_id(self, token: str) -> int:
        if self.num_image_tokens and token.startswith("<image_") and token[7:-1].isdigit():
            return int(token[7:-1])
        return self.num_image_tokens + self._pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        if index < self.num_image_tokens:
            return f"<image_{index}>"
        piece = index - self.num_image_tokens
        # Weights have more rows than there are tokens, so an untrained model can choose such an id.
        if piece >= self._pieces.vocab_size():
            return f"<unused_row_{index}>"
        return self._pieces.id_to_piece(piece)

    # --- text to ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of typed text, without `[gMASK] <sop>`; control tokens spelled in it stay plain text.

        The same ids as `encode(text, add_special_tokens=False)` for text that spells no special token.
        """
        return [self.num_image_tokens + piece for piece in self._pieces.encode(self._prepare(text))]

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._pieces.encode(self._prepare(text), out_type=str)

    def _prepare(self, text: str) -> str:
        if self.remove_space:
            text = " ".join(text.split())
        if self.do_lower_case:
            text = text.lower()
        return mark_whitespace(text)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Prompt plus `[gMASK] <sop>`, plus answer and end token for a pair; v0.1 has its own rule."""
        bos, gmask, mask, eos = self.bos_token_id, self.gmask_token_id, self.mask_token_id, self.eos_token_id
        if self.eos_token == self.eop_token:
            prompt = [*token_ids_0, gmask, bos]
            return prompt if token_ids_1 is None else [*prompt, *token_ids_1, eos]
        ids = [*token_ids_0, *(token_ids_1 or ())]
        if mask not in ids and gmask not in ids:
            ids.append(gmask)
        if ids[-1] not in (mask, gmask):
            ids.append(eos)
        return [*ids, bos]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where the built sequence holds a control token, else 0."""
        ids = token_ids_0
        if not already_has_special_tokens:
            ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        control = self.control_token_ids
        return [int(index in control) for index in ids]

    # --- ids to text

    def _decode(
        self,
        token_ids: int | Iterable[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        if skip_special_tokens:
            hidden = set(self.all_special_ids) | self.control_token_ids
            ids = [index for index in ids if index not in hidden]
        text = "".join(self._decode_run(run, added) for run, added in self._runs(ids))
        return self.clean_up_tokenization(text) if clean_up_tokenization_spaces else text

    def _runs(self, ids: list[int]) -> Iterable[tuple[list[int], bool]]:
        """Ids cut into runs of the file's vocabulary and of tokens that a user added behind it."""
        added = {index for index in self._added_tokens_decoder if index >= self.vocab_size}
        for is_added, run in groupby(ids, added.__contains__):
            yield list(run), is_added

    def _decode_run(self, ids: list[int], added: bool) -> str:
        if added:
            return "".join(self._added_tokens_decoder[index].content for index in ids)
        first, last = self.num_image_tokens, self.vocab_size
        pieces = [index - first for index in ids if first <= index < last]
        return unmark_whitespace(self._pieces.decode(pieces))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of a list of tokens."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    # --- files

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write ice_text.model as it was read."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{VOCAB_FILE}"
        replace_file(path, self._model_bytes)
        return (str(path),)

    def save_pretrained(
        self, save_directory: str | Path, *args: Any, filename_prefix: str | None = None, **kwargs: Any
    ) -> tuple[str, ...]:
        """As the base class, with a tokenizer_config.json that the original code reads as well."""
        files = super().save_pretrained(save_directory, *args, filename_prefix=filename_prefix, **kwargs)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / f"{prefix}{CONFIG_FILE}"
        written = json.loads(path.read_text(encoding="utf-8"))
        content = json.dumps(self._release_config(written), indent=2, ensure_ascii=False) + "\n"
        replace_file(path, content.encode())
        return files

    def _release_config(self, written: dict[str, Any]) -> dict[str, Any]:
        config = {key: value for key, value in written.items() if key not in _PRIVATE_CONFIG_KEYS}
        config |= {"gmask_token": self.gmask_token, "tokenizer_class": "ChatGLMTokenizer"}
        if self.end_token is not None:
            config["end_token"] = str(self.end_token)
        if self.eos_token != self.eop_token:
            config["eop_token"] = self.eop_token
        tokens = written["added_tokens_decoder"]
        added = {index: token for index, token in tokens.items() if int(index) >= self.vocab_size}
        if added:
            config["added_tokens_decoder"] = added
        config.setdefault("auto_map", copy.deepcopy(_AUTO_MAP))
        return config


def _load_pieces(model_bytes: bytes, origin: str) -> tuple[sentencepiece.SentencePieceProcessor, int]:
    """Processor with every token of the release, and how many pieces the file itself holds."""
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    except RuntimeError as error:
        raise UserError(
            f"{origin} is not a SentencePiece model ({error}). It may be cut short, or a Git LFS pointer: "
            "download ice_text.model (2.7 MB) again."
        ) from error
    num_file_pieces = pieces.vocab_size()
    if pieces.is_control(pieces.piece_to_id(SPECIAL_TOKENS[0])):
        return pieces, num_file_pieces
    return sentencepiece.SentencePieceProcessor(model_proto=complete_model(model_bytes)), num_file_pieces


def complete_model(model_bytes: bytes) -> bytes:
    """A SentencePiece model of text pieces with the specials, blanks and bytes appended, in v1.1's order."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(model_bytes)
    kinds = proto.ModelProto.SentencePiece
    for token in SPECIAL_TOKENS:
        model.pieces.add(piece=token, score=0.0, type=kinds.CONTROL)
    for token in whitespace_tokens():
        model.pieces.add(piece=token, score=0.0, type=kinds.USER_DEFINED)
    for value in range(256):
        model.pieces.add(piece=f"<0x{value:02X}>", score=0.0, type=kinds.BYTE)
    model.trainer_spec.byte_fallback = True
    return model.SerializeToString()
