"""Which release a folder's config, weights and tokenizer are from, and whether the three belong together.

The two releases number the same text pieces differently: v0.1 puts 20,000 image tokens before them. A part of
the other release gives "130001 is not in list" or "150001 is not in list" at best and nonsense at worst.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece

from medsft.chatglm.tokenization import VOCAB_FILE, ChatGLMTokenizer
from medsft.chatglm.weights.shards import DOWNLOAD_AGAIN, check_not_pointer, read_json
from medsft.errors import UserError

TOKENIZER_FILE = VOCAB_FILE
# config.json's field -> the token whose id it states
ID_FIELDS = {
    "mask_token_id": "[MASK]",
    "gmask_token_id": "[gMASK]",
    "bos_token_id": "<sop>",
    "eos_token_id": "<eop>",
    "pad_token_id": "<pad>",
}


@dataclass(frozen=True)
class ReleaseNumbers:
    """What tells a release apart.

    num_rows: rows of embedding and head. num_pieces: pieces in ice_text.model. num_image_tokens: ids before
    the first text piece. ids: config.json's token ids.
    """

    num_rows: int
    num_pieces: int
    num_image_tokens: int
    ids: Mapping[str, int]


RELEASES = {
    "v1.1": ReleaseNumbers(
        num_rows=130_528,
        num_pieces=130_344,
        num_image_tokens=0,
        ids={
            "mask_token_id": 130_000,
            "gmask_token_id": 130_001,
            "bos_token_id": 130_004,
            "eos_token_id": 130_005,
            "pad_token_id": 3,
        },
    ),
    "v0.1": ReleaseNumbers(
        num_rows=150_528,
        num_pieces=130_000,
        num_image_tokens=20_000,
        ids={
            "mask_token_id": 150_000,
            "gmask_token_id": 150_001,
            "bos_token_id": 150_004,
            "eos_token_id": 150_005,
            "pad_token_id": 20_003,
        },
    ),
}


@dataclass(frozen=True)
class TokenizerFacts:
    """What a folder's tokenizer files say.

    num_pieces: pieces in ice_text.model. num_image_tokens: ids before the first of them. num_ids: ids that
    the tokenizer can give, image tokens included. token_ids: ids of the control tokens, <pad> and </s>.
    """

    num_pieces: int
    num_image_tokens: int
    num_ids: int
    token_ids: Mapping[str, int]


def read_tokenizer_facts(folder: Path) -> TokenizerFacts | None:
    """The facts of the tokenizer in `folder`, None where there is no ice_text.model.

    Raises UserError when the file is a git-lfs pointer or no SentencePiece model.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        return None
    num_pieces = load_pieces(path).get_piece_size()
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        read_json(settings)  # for its errors, which name the file
    tokenizer = ChatGLMTokenizer.from_pretrained(folder)
    tokens = (*ID_FIELDS.values(), "</s>")
    token_ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokens}
    return TokenizerFacts(num_pieces, tokenizer.num_image_tokens, tokenizer.vocab_size, token_ids)


def load_pieces(path: Path) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model in `path`; raises UserError when it is a git-lfs pointer or cannot be read."""
    content = path.read_bytes()
    check_not_pointer(path, content[:512])
    pieces = sentencepiece.SentencePieceProcessor()
    try:
        pieces.LoadFromSerializedProto(content)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{path} is not a SentencePiece model or is damaged ({error}). {DOWNLOAD_AGAIN}."
        ) from error
    return pieces


def release_of_rows(num_rows: int) -> str:
    """ "v1.1", "v0.1" or "custom" """
    return next((name for name, release in RELEASES.items() if release.num_rows == num_rows), "custom")


def release_of_config(config: Mapping[str, Any]) -> str:
    """ "v1.1", "v0.1", "custom", or "mixed" when vocab_size and ids are of different releases."""
    found = {
        name
        for name, release in RELEASES.items()
        if config.get("vocab_size") == release.num_rows
        or any(config.get(field) == release.ids[field] for field in ("bos_token_id", "gmask_token_id"))
    }
    if len(found) > 1:
        return "mixed"
    return found.pop() if found else "custom"


def release_of_tokenizer(facts: TokenizerFacts) -> str:
    """ "v1.1", "v0.1", "custom", or "mixed" when the two tokenizer files are of different releases."""
    pieces = {name for name, release in RELEASES.items() if facts.num_pieces == release.num_pieces}
    if not pieces:
        return "custom"
    name = pieces.pop()
    if facts.num_image_tokens == RELEASES[name].num_image_tokens:
        return name
    return "mixed"


def release_faults(config: Mapping[str, Any], num_rows: int, tokenizer: TokenizerFacts | None) -> list[str]:
    """Where config.json, the embedding rows and the tokenizer contradict each other; empty if nowhere.

    Ids that config.json does not state are not compared (v0.1's states no mask ids).
    """
    faults = []
    vocab_size = config.get("vocab_size")
    if vocab_size != num_rows:
        faults.append(f"vocab_size is {vocab_size} but the embedding has {num_rows} rows")
    for field, token in ID_FIELDS.items():
        stated = config.get(field)
        if not isinstance(stated, int):
            continue
        if stated >= num_rows:
            faults.append(f"{field} is {stated} but the embedding ends at row {num_rows - 1}")
        if tokenizer is None:
            continue
        allowed = {tokenizer.token_ids[token]}
        if field == "eos_token_id":
            allowed.add(tokenizer.token_ids["</s>"])
        if stated not in allowed:
            faults.append(
                f"{field} is {stated} but the tokenizer gives {token} the id {tokenizer.token_ids[token]}"
            )
    if tokenizer is not None and tokenizer.num_ids > num_rows:
        faults.append(
            f"the tokenizer gives ids up to {tokenizer.num_ids - 1} but the embedding has {num_rows} rows"
        )
    return faults


def check_parts(
    folder: Path,
    config: Mapping[str, Any],
    num_rows: int,
    embedding_file: Path,
    tokenizer_dir: Path,
    tokenizer: TokenizerFacts | None,
) -> None:
    """Raises UserError saying which release each part is from when config, weights and tokenizer disagree."""
    faults = release_faults(config, num_rows, tokenizer)
    if not faults:
        return
    ids = ", ".join(f"{field} {config[field]}" for field in ID_FIELDS if config.get(field) is not None)
    parts = [
        f"{folder / 'config.json'} is {_origin(release_of_config(config))} (vocab_size "
        f"{config.get('vocab_size')}{', ' if ids else ''}{ids})",
        f"the weights are {_origin(release_of_rows(num_rows))} ({embedding_file.name} has {num_rows} "
        "embedding rows)",
    ]
    if tokenizer is not None:
        parts.append(
            f"the tokenizer {tokenizer_dir / TOKENIZER_FILE} is {_origin(release_of_tokenizer(tokenizer))} "
            f"({tokenizer.num_pieces} pieces after {tokenizer.num_image_tokens} image tokens, [gMASK] is "
            f"{tokenizer.token_ids['[gMASK]']})"
        )
    raise UserError(
        f"Config, weights and tokenizer do not belong together: {'; '.join(parts)}. They contradict each "
        f"other: {'; '.join(faults)}. Take config.json, the weights and the tokenizer files "
        f"({TOKENIZER_FILE}, tokenizer_config.json) from one release; v0.1 weights such as Med-ChatGLM's can "
        "be slimmed to the v1.1 vocabulary with 'medsft convert'."
    )


def _origin(release: str) -> str:
    if release == "mixed":
        return "put together from v1.1 and v0.1"
    return "of no known release" if release == "custom" else f"from {release}"
