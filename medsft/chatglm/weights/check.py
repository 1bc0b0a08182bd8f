"""Whether a model folder is sound: supported, complete, of one release and of its config's shapes."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.chatglm.quantization import BITS, QUANTIZED_NAMES, SCALE_SUFFIX
from medsft.chatglm.weights.files import EMBEDDING_NAME, HEAD_NAME, TIED_PARTNERS, WeightFiles, open_weights
from medsft.chatglm.weights.release import check_parts, read_tokenizer_facts
from medsft.chatglm.weights.shards import check_folder, read_json
from medsft.chatglm.weights.verify import NUM_SAMPLED_ROWS, bytes_to_verify, check_tie, verify_contents
from medsft.errors import UserError
from medsft.shapes import not_whole

CONFIG_FILE = "config.json"
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The release stores these buffers; the model computes them from pure numbers.
IGNORED_NAMES = re.compile(r"transformer\.layers\.\d+\.attention\.rotary_emb\.inv_freq")
PREFIX_NAMES = re.compile(r"(transformer\.)?prefix_encoder\..*")
MAX_LISTED = 4

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


def check_release(
    folder: str | Path,
    tokenizer_dir: str | Path | None = None,
    read_everything: bool = False,
    progress: Progress | None = None,
) -> None:
    """Raises UserError, naming file and remedy, unless the model folder is sound.

    Without `read_everything` only headers and a sample of the tied rows are read. With it every
    byte is: the checksums of ``.bin`` files, all rows that should be tied, NaN and infinite values, matrices
    of zeros (as broken downloads leave them). The tokenizer is checked where `tokenizer_dir` (default:
    `folder`) has one. Rows that should be tied and differ are an error, as half of them would be lost.
    """
    model, files = open_release(folder, tokenizer_dir)
    if read_everything:
        verify_release(model, files, progress)


def verify_release(
    model: ChatGLMForConditionalGeneration, files: WeightFiles, progress: Progress | None = None
) -> None:
    """Reads every byte of what `open_release` opened; raises as `check_release(read_everything=True)`."""
    total, done = bytes_to_verify(files), 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(min(done, total), total)

    verify_contents(files, stores_both_tied(model, files), advance)


def stores_both_tied(model: ChatGLMForConditionalGeneration, files: WeightFiles) -> bool:
    """Whether the config ties embedding and head and the files hold both."""
    return model.config.tie_word_embeddings and EMBEDDING_NAME in files and HEAD_NAME in files


def open_release(
    folder: str | Path, tokenizer_dir: str | Path | None = None
) -> tuple[ChatGLMForConditionalGeneration, WeightFiles]:
    """The model of a checked folder on the meta device, and its mapped weights; raises as `check_release`."""
    folder = Path(folder)
    tokenizer_dir = folder if tokenizer_dir is None else Path(tokenizer_dir)
    check_folder(folder)
    content = read_json(folder / CONFIG_FILE)
    _check_supported(folder, content)
    files = open_weights(folder)
    _check_kind(files, bool(content.get("quantization_bit")))
    if (EMBEDDING_NAME in files or HEAD_NAME in files) and len(files.shape(EMBEDDING_NAME)) == 2:
        num_rows = files.shape(EMBEDDING_NAME)[0]
        tokenizer = read_tokenizer_facts(tokenizer_dir)
        check_parts(folder, content, num_rows, files.file(EMBEDDING_NAME), tokenizer_dir, tokenizer)
    model = model_on_meta(read_config(folder))
    _check_names_and_shapes(files, model)
    if stores_both_tied(model, files):
        check_tie(files, NUM_SAMPLED_ROWS)
    return model, files


def read_config(folder: Path) -> ChatGLMConfig:
    """The config of a model folder; raises UserError naming config.json when it describes no ChatGLM."""
    content = read_json(folder / CONFIG_FILE)
    try:
        return ChatGLMConfig.from_dict(content)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / CONFIG_FILE} does not describe a ChatGLM: {' '.join(str(error).split())}. Mend it, "
            "or take it from the release that the weights are from."
        ) from error


def model_on_meta(config: ChatGLMConfig) -> ChatGLMForConditionalGeneration:
    """The model without memory for its parameters."""
    with torch.device("meta"):
        return ChatGLMForConditionalGeneration(config)


def _check_supported(folder: Path, content: Mapping[str, Any]) -> None:
    """What config.json says about kinds of models that cannot be used here."""
    path = folder / CONFIG_FILE
    if content.get("model_type", "chatglm") != "chatglm":
        raise UserError(
            f"{path} has model_type {content['model_type']!r}; only 'chatglm' is supported. Take a folder of "
            "ChatGLM-6B (the first generation) or of a model fine-tuned from it."
        )
    if "padded_vocab_size" in content or "multi_query_attention" in content:
        raise UserError(
            f"{path} describes a ChatGLM2 or ChatGLM3, whose architecture is another one (multi-query "
            "attention, RMSNorm). Take a folder of ChatGLM-6B (the first generation) or of a model "
            "fine-tuned from it."
        )
    if "vocab_size" not in content:
        raise UserError(
            f"{path} has no vocab_size. Take config.json from the release that the weights are from."
        )
    faults = not_whole(content)
    if faults:
        raise UserError(
            f"{path} has values that are not whole numbers: {', '.join(faults)}. Take config.json from "
            "the release that the weights are from."
        )
    if content.get("quantization_embeddings"):
        raise UserError(
            f"{path} says quantization_embeddings: the model's embedding is quantised too (the variants "
            "called int4-qe), which is not supported. Take chatglm-6b-int4, or the fp16 release."
        )
    if content.get("quantization_bit") not in (None, 0, *BITS):
        raise UserError(
            f"{path} says quantization_bit {content['quantization_bit']!r}; it may be 8 or 4, or be absent "
            "for a model that is not quantised."
        )
    if content.get("pre_seq_len"):
        raise _prefix(f"{path} says pre_seq_len {content['pre_seq_len']}")


def _check_kind(files: WeightFiles, quantised: bool) -> None:
    """What names and types of the tensors say about kinds of models that cannot be used here."""
    for name in files.names:
        is_integer = quantised and QUANTIZED_NAMES.fullmatch(name) is not None
        if is_integer and files.dtype(name) != torch.int8:
            raise UserError(
                f"{files.place(name)} is stored as {files.dtype(name)}, but config.json has a "
                f"quantization_bit: it must be torch.int8. Take weights and {CONFIG_FILE} from one release."
            )
        is_scale = name.endswith(SCALE_SUFFIX) and not quantised
        if not is_integer and (is_scale or files.dtype(name) not in WEIGHT_TYPES):
            raise UserError(
                f"{files.file(name)} holds {name} as {files.dtype(name)}: quantised weights, of which "
                f"{CONFIG_FILE} knows nothing. Take its {CONFIG_FILE} with quantization_bit, or the fp16 "
                "release (THUDM/chatglm-6b)."
            )
        if 0 in files.shape(name):
            raise UserError(
                f"{files.place(name)} is empty, as ZeRO-3 leaves it when a model is saved without gathering "
                "its parameters. Make a whole model of that run's checkpoint with DeepSpeed's "
                "zero_to_fp32.py."
            )
        if PREFIX_NAMES.fullmatch(name):
            raise _prefix(f"{files.file(name)} holds {name}")


def refuse_quantised(folder: Path, config: ChatGLMConfig, use: str) -> None:
    """Raises UserError when the folder holds integers where `use` needs the weights themselves."""
    if config.quantization_bit:
        raise UserError(
            f"{folder / CONFIG_FILE} says quantization_bit {config.quantization_bit}: this is a quantised "
            f"model, and {use} needs the weights themselves. Take the fp16 release (THUDM/chatglm-6b, not "
            "chatglm-6b-int8 or -int4), or the model that this one was converted from."
        )


def _prefix(evidence: str) -> UserError:
    return UserError(
        f"{evidence}: this is a P-tuning model, whose trained prefix is not supported. Take the model it was "
        "trained from: its weights are unchanged by P-tuning, and its config.json has no pre_seq_len."
    )


def _check_names_and_shapes(files: WeightFiles, model: ChatGLMForConditionalGeneration) -> None:
    """Every tensor of the model is there with its shape, and no other is."""
    config = model.config
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    stored = [name for name in files.names if not IGNORED_NAMES.fullmatch(name)]
    unknown = [name for name in stored if name not in expected]
    missing = [name for name in expected if name not in files]
    if config.tie_word_embeddings:
        missing = [name for name in missing if TIED_PARTNERS.get(name) not in files]
    if unknown or missing:
        faults = []
        if missing:
            faults.append(f"{len(missing)} tensors are missing ({_listed(missing)})")
        if unknown:
            faults.append(f"{len(unknown)} are unknown ({_listed([files.place(name) for name in unknown])})")
        untied = not config.tie_word_embeddings and set(missing) & set(TIED_PARTNERS)
        hint = (
            'The config says "tie_word_embeddings": false, so both must be stored; set it to true if the '
            "model was trained tied."
            if untied
            else f"Take weights and {CONFIG_FILE} from one release, and all shards of it; a state dict of a "
            "wrapped model or an adapter has to be merged into a plain model first."
        )
        raise UserError(
            f"The weights in {files.folder} do not have the names that its {CONFIG_FILE} asks for "
            f"(num_layers {config.num_layers}): {' and '.join(faults)}. {hint}"
        )
    misshapen = [
        f"{files.place(name)} has shape {tuple(files.shape(name))}, not {tuple(expected[name])}"
        for name in stored
        if files.shape(name) != expected[name]
    ]
    if misshapen:
        raise UserError(
            f"{len(misshapen)} tensors in {files.folder} do not have the shape that its {CONFIG_FILE} asks "
            f"for (hidden_size {config.hidden_size}, inner_hidden_size {config.inner_hidden_size}, "
            f"vocab_size {config.vocab_size}): {_listed(misshapen)}. Take weights and {CONFIG_FILE} from one "
            "release."
        )


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(items[:MAX_LISTED]) + more
