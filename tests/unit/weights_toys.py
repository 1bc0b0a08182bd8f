"""Toy model folders in the released layout, for the tests of medsft.chatglm.weights."""

import json
import re
import shutil
from pathlib import Path

import torch
from sentencepiece import sentencepiece_model_pb2 as proto
from torch import Tensor

from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.chatglm.tokenizer_training import NUM_APPENDED_PIECES, train_tokenizer
from medsft.chatglm.weights import ShardWriter

NUM_IMAGE_TOKENS = 20_000
NUM_SPARE_ROWS = 24
TEXT = (
    "感冒 的 常见 症状 是 发热 咳嗽 流涕 和 头痛",
    "糖尿病 患者 应当 控制 饮食 并 监测 血糖",
    "fever and cough are symptoms of influenza",
    "hypertension is treated by a physician every day",
)


def train_toy_tokenizer(folder: Path) -> Path:
    """A tokenizer in v1.1's layout."""
    train_tokenizer(TEXT * 20, folder, vocab_size=480)
    return folder


def write_v01_tokenizer(v11: Path, folder: Path) -> Path:
    """The same text pieces in v0.1's layout: nothing behind them in the file, 20,000 image tokens before."""
    folder.mkdir(parents=True)
    model = proto.ModelProto.FromString((v11 / "ice_text.model").read_bytes())
    del model.pieces[-NUM_APPENDED_PIECES:]
    model.trainer_spec.byte_fallback = False
    (folder / "ice_text.model").write_bytes(model.SerializeToString())
    settings = json.loads((v11 / "tokenizer_config.json").read_text())
    del settings["num_image_tokens"], settings["end_token"]
    settings |= {"eos_token": "</s>", "eop_token": "<eop>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def num_pieces(tokenizer_dir: Path) -> int:
    model = proto.ModelProto.FromString((tokenizer_dir / "ice_text.model").read_bytes())
    return len(model.pieces)


def toy_settings(first_control_id: int, num_rows: int, num_image_tokens: int = 0, **changes: object) -> dict:
    """config.json of a toy whose control tokens begin at `first_control_id`."""
    settings = {
        "model_type": "chatglm",
        "vocab_size": num_rows,
        "hidden_size": 32,
        "inner_hidden_size": 64,
        "num_layers": 2,
        "num_attention_heads": 2,
        "max_sequence_length": 128,
        "mask_token_id": first_control_id,
        "gmask_token_id": first_control_id + 1,
        "bos_token_id": first_control_id + 4,
        "eos_token_id": first_control_id + 5,
        "pad_token_id": num_image_tokens + 3,
        "torch_dtype": "float16",
    }
    return {**settings, **changes}


def random_tensors(settings: dict, seed: int = 0, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Tensors under the released names, the rotary buffers included, embedding and head equal."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        names = ChatGLMForConditionalGeneration(ChatGLMConfig.from_dict(settings)).state_dict()
    tensors = {name: torch.randn(tensor.shape).mul(0.1).to(dtype) for name, tensor in names.items()}
    if settings.get("tie_word_embeddings", True):
        tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
    for layer in range(settings["num_layers"]):
        tensors[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(
            4, dtype=torch.float16
        )
    return tensors


def write_model(
    folder: Path,
    settings: dict,
    tensors: dict[str, Tensor],
    tokenizer_dir: Path | None = None,
    weights_format: str = "bin",
    max_shard_bytes: int = 40_000,
) -> Path:
    """A model folder; the default shard size makes several shards of a toy."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    with ShardWriter(folder, max_shard_bytes, weights_format) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish()
    if tokenizer_dir is not None:
        for name in ("ice_text.model", "tokenizer_config.json"):
            shutil.copyfile(tokenizer_dir / name, folder / name)
    return folder


def change_json(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def assert_paragraph(message: str, *parts: object) -> None:
    """One paragraph that holds all `parts` and ends like a sentence."""
    assert "\n" not in message
    assert re.search(r"[.!?)\"']$", message), message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
