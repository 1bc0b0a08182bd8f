"""Trains a small SentencePiece model in the layout of ChatGLM-6B v1.1, for models made from scratch.

The layout: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3 `<pad>`, 4 `<n>`, 5 `▁`, text pieces by falling score, the eight
special tokens, `<|tab|>`, `<|blank_2|>` … `<|blank_80|>`, and 256 byte pieces for what the text pieces lack.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from medsft.chatglm.tokenization import (
    CONFIG_FILE,
    NEWLINE_TOKEN,
    SPECIAL_TOKENS,
    VOCAB_FILE,
    ChatGLMTokenizer,
    complete_model,
    whitespace_tokens,
)
from medsft.errors import UserError
from medsft.files import replace_file

NUM_BYTE_PIECES = 256
NUM_APPENDED_PIECES = len(SPECIAL_TOKENS) + len(whitespace_tokens()) + NUM_BYTE_PIECES
_NUM_LEADING_PIECES = 5  # <unk> <s> </s> <pad> <n>
_MIN_TEXT_PIECES = 32
MIN_VOCAB_SIZE = NUM_APPENDED_PIECES + _NUM_LEADING_PIECES + _MIN_TEXT_PIECES

_BLANK = "▁"
_NORMALIZATION = "nmt_nfkc"  # full-width forms become half-width, as in the release
_MAX_LINE_BYTES = 1 << 16
_CHARACTER_COVERAGE = 0.9999  # the release's
# Of the text pieces, at most this share is given to single characters; rarer ones are spelled in bytes.
_MAX_CHARACTER_SHARE = 0.75

_TOKENIZER_CONFIG = {
    "name_or_path": "medsft",
    "bos_token": "<sop>",
    "eos_token": "<eop>",
    "end_token": "</s>",
    "gmask_token": "[gMASK]",
    "mask_token": "[MASK]",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "remove_space": False,
    "do_lower_case": False,
    "tokenizer_class": "ChatGLMTokenizer",
    "num_image_tokens": 0,
    "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
}


def train_tokenizer(texts: Iterable[str], output_dir: str | Path, vocab_size: int) -> ChatGLMTokenizer:
    """Train on `texts`, write `ice_text.model` and `tokenizer_config.json` to `output_dir`, open the result.

    `vocab_size` counts every id, the 344 special, whitespace and byte pieces included; a corpus too small for
    it gives a smaller vocabulary. The same texts in the same order give the same file. Any text can be
    encoded: characters that the corpus lacks are spelled in bytes. Raises UserError for a vocabulary too
    small to hold the layout, for texts without a single character, and for a folder that holds a tokenizer.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"vocab_size is {vocab_size}, must be at least {MIN_VOCAB_SIZE}: {NUM_APPENDED_PIECES} special, "
            f"whitespace and byte pieces, {_NUM_LEADING_PIECES} control pieces, and some room for text."
        )
    folder = Path(output_dir)
    if (folder / VOCAB_FILE).exists():
        raise UserError(
            f"{folder} already holds a tokenizer ({VOCAB_FILE}), and a model that uses it would be lost. "
            "Choose another folder, or remove the file first."
        )
    lines = list(_training_lines(texts))
    if not lines:
        raise UserError("a tokenizer cannot be trained on empty texts; give some sentences of its domain.")
    model = complete_model(_put_blank_first(_train(lines, vocab_size - NUM_APPENDED_PIECES)))

    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / VOCAB_FILE, model)
    config = json.dumps(_TOKENIZER_CONFIG, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / CONFIG_FILE, config.encode())
    return ChatGLMTokenizer.from_pretrained(folder)


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines without the whitespace that has tokens of its own; the trainer would learn their spelling."""
    for text in texts:
        for line in text.splitlines():
            words = " ".join(line.split())
            if words:
                yield words


def keep_common_characters(lines: list[str], max_characters: int) -> list[str]:
    """The lines with a blank for each character that is not among the `max_characters` commonest.

    The commonest are cut at the release's coverage, too. (The trainer's own character_coverage cannot go
    below 0.98, which a small vocabulary of Chinese needs.)
    """
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=_NORMALIZATION)
    lines = [normalizer.normalize(line).replace(_BLANK, " ") for line in lines]
    counts = Counter(character for line in lines for character in line if character != " ")
    common: set[str] = set()
    num_covered = 0
    for character, count in counts.most_common(max_characters):
        if num_covered >= _CHARACTER_COVERAGE * counts.total():
            break
        common.add(character)
        num_covered += count
    rare = str.maketrans({character: " " for character in counts if character not in common})
    return [line.translate(rare) for line in lines]


def _train(lines: list[str], num_pieces: int) -> bytes:
    max_characters = int((num_pieces - _NUM_LEADING_PIECES) * _MAX_CHARACTER_SHARE)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(keep_common_characters(lines, max_characters)),
            model_writer=model,
            model_type="unigram",
            vocab_size=num_pieces,
            hard_vocab_limit=False,
            character_coverage=1.0,
            max_sentence_length=_MAX_LINE_BYTES,
            split_digits=True,
            user_defined_symbols=[NEWLINE_TOKEN],
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            normalization_rule_name=_NORMALIZATION,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(
            f"SentencePiece could not make a vocabulary of {num_pieces} text pieces from {len(lines)} lines: "
            f"{error}. Ask for a larger vocab_size or give more text."
        ) from error
    return model.getvalue()


def _put_blank_first(model_bytes: bytes) -> bytes:
    """The model with `▁` at id 5, where the release has it and the generation guard expects it."""
    model = proto.ModelProto.FromString(model_bytes)
    leading, text = list(model.pieces[:_NUM_LEADING_PIECES]), list(model.pieces[_NUM_LEADING_PIECES:])
    blank = [piece for piece in text if piece.piece == _BLANK]
    if not blank:
        lowest = min(piece.score for piece in text)
        blank = [proto.ModelProto.SentencePiece(piece=_BLANK, score=lowest)]
    text = [piece for piece in text if piece.piece != _BLANK]
    del model.pieces[:]
    model.pieces.extend([*leading, *blank, *text])
    return model.SerializeToString()
