"""How v0.1's numbering becomes v1.1's: the image tokens before the text pieces go, all ids move down."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.weights.check import read_config
from medsft.chatglm.weights.files import EMBEDDING_NAME, WeightFiles
from medsft.chatglm.weights.release import (
    ID_FIELDS,
    RELEASES,
    TOKENIZER_FILE,
    TokenizerFacts,
    load_pieces,
    read_tokenizer_facts,
    release_of_config,
)
from medsft.errors import UserError


@dataclass(frozen=True)
class Slimming:
    """What turns v0.1's numbering into v1.1's.

    num_dropped: rows dropped from the front of embedding and head. num_rows: rows that stay. ids:
    config.json's token ids afterwards.
    """

    num_dropped: int
    num_rows: int
    ids: Mapping[str, int]


def plan_slimming(
    source: Path, config: Mapping[str, Any], files: WeightFiles, tokenizer_dir: str | Path | None
) -> Slimming:
    """How `source` is brought to the numbering of the tokenizer in `tokenizer_dir`.

    Raises UserError when there is nothing to drop, the tokenizer is missing, or ids, pieces or row counts of
    the two numberings do not fit.
    """
    old = read_tokenizer_facts(source)
    if old is None and release_of_config(config) != "v0.1":
        raise UserError(
            f"{source} has no {TOKENIZER_FILE} and its config.json is not v0.1's, so nothing says how many "
            "image tokens its vocabulary begins with. Put the model's own tokenizer files into the folder."
        )
    num_dropped = RELEASES["v0.1"].num_image_tokens if old is None else old.num_image_tokens
    if num_dropped == 0:
        raise UserError(
            f"{source} has no image tokens in its vocabulary (vocab_size {config['vocab_size']}): it is slim "
            "already. Leave the vocabulary away to change only the format."
        )
    if tokenizer_dir is None:
        raise UserError(
            "Slimming to the v1.1 vocabulary needs v1.1's tokenizer files, which cannot be derived from "
            f"v0.1's: {TOKENIZER_FILE} itself is another one. Give a folder with {TOKENIZER_FILE} and "
            "tokenizer_config.json of the current THUDM/chatglm-6b as tokenizer (--tokenizer)."
        )
    tokenizer_dir = Path(tokenizer_dir)
    new = read_tokenizer_facts(tokenizer_dir)
    if new is None:
        raise UserError(
            f"{tokenizer_dir} has no {TOKENIZER_FILE}. Give a folder with the tokenizer files of v1.1 as "
            "tokenizer (--tokenizer)."
        )
    slimming = Slimming(
        num_dropped,
        files.shape(EMBEDDING_NAME)[0] - num_dropped,
        {field: new.token_ids[token] for field, token in ID_FIELDS.items()},
    )
    faults = slimming_faults(slimming, read_config(source), old, new)
    if not faults and old is not None:
        faults = piece_faults(source / TOKENIZER_FILE, tokenizer_dir / TOKENIZER_FILE)
    if faults:
        raise UserError(
            f"The weights in {source} cannot be slimmed to the tokenizer in {tokenizer_dir} by dropping "
            f"{num_dropped} image tokens: {'; '.join(faults)}. Give the tokenizer files of v1.1 as "
            "tokenizer (--tokenizer)."
        )
    return slimming


def slimming_faults(
    slimming: Slimming, config: ChatGLMConfig, old: TokenizerFacts | None, new: TokenizerFacts
) -> list[str]:
    """Where the new numbering is not the old one less the dropped rows; `config` is the source's."""
    faults = []
    if new.num_image_tokens:
        faults.append(f"that tokenizer has {new.num_image_tokens} image tokens itself")
    if new.num_ids > slimming.num_rows:
        faults.append(
            f"{slimming.num_rows} rows stay but the tokenizer gives {new.num_ids} ids; "
            f"{slimming.num_dropped} rows are too many to drop"
        )
    for field, token in ID_FIELDS.items():
        before = old.token_ids[token] if old is not None else getattr(config, field)
        if before is not None and before - slimming.num_dropped != slimming.ids[field]:
            faults.append(
                f"{token} is {before}, so {before - slimming.num_dropped} afterwards, but "
                f"{slimming.ids[field]} in the tokenizer"
            )
    return faults


def piece_faults(old_file: Path, new_file: Path) -> list[str]:
    """The first piece of the old file that is another one in the new file, as a list of one or none."""
    old, new = load_pieces(old_file), load_pieces(new_file)
    if new.get_piece_size() < old.get_piece_size():
        return [f"its {TOKENIZER_FILE} has {new.get_piece_size()} pieces, fewer than {old.get_piece_size()}"]
    for piece in range(old.get_piece_size()):
        if old.id_to_piece(piece) != new.id_to_piece(piece):
            return [f"piece {piece} is {old.id_to_piece(piece)!r} here and {new.id_to_piece(piece)!r} there"]
    return []


def shift_ids(settings: Mapping[str, Any], num_dropped: int) -> dict[str, Any]:
    """`settings` in the new numbering: every `*_token_id`, single or list, less the dropped rows."""
    shifted = dict(settings)
    for key, value in settings.items():
        if key.endswith("_token_id") and isinstance(value, int):
            shifted[key] = value - num_dropped
        elif key.endswith("_token_id") and isinstance(value, list):
            shifted[key] = [item - num_dropped for item in value]
    return shifted
