"""ChatGLM's configuration, field for field as in the released config.json."""

import json
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from medsft.errors import UserError
from medsft.shapes import SIZES, size_faults

# Distance from <sop> to [MASK] and [gMASK] in both releases; v0.1's config.json does not name the latter two.
_MASK_BEFORE_BOS = 4
_GMASK_BEFORE_BOS = 3

# Files of the original code, for those who put them beside the weights. Registered local classes come first.
RELEASED_AUTO_MAP = {
    "AutoConfig": "configuration_chatglm.ChatGLMConfig",
    "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
}


class ChatGLMConfig(PreTrainedConfig):
    """Shape and token ids of a ChatGLM; the defaults are ChatGLM-6B v1.1.

    `mask_token_id` and `gmask_token_id` may be absent, as in v0.1's config.json: they are then taken from
    `bos_token_id`, to which they have the same distance in both releases. Raises UserError for a shape or a
    feature that the model cannot have.
    """

    model_type: ClassVar[str] = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
        "layer_norm_eps": "layernorm_epsilon",
    }

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 130004
    eos_token_id: int | list[int] | None = 130005
    mask_token_id: int | None = None
    gmask_token_id: int | None = None
    pad_token_id: int | None = 3
    quantization_bit: int = 0
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.mask_token_id is None and self.bos_token_id is not None:
            self.mask_token_id = self.bos_token_id - _MASK_BEFORE_BOS
        if self.gmask_token_id is None and self.bos_token_id is not None:
            self.gmask_token_id = self.bos_token_id - _GMASK_BEFORE_BOS
        kwargs.setdefault("auto_map", dict(RELEASED_AUTO_MAP))
        super().__post_init__(**kwargs)
        faults = shape_faults(self)
        if faults:
            raise UserError("this ChatGLM configuration cannot be built: " + "; ".join(faults))

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    def to_json_string(self, use_diff: bool = True) -> str:
        """As the base class, plus `torch_dtype` beside `dtype`: the original code only reads the former."""
        content = json.loads(super().to_json_string(use_diff))
        if content.get("dtype") is not None:
            content["torch_dtype"] = content["dtype"]
        return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def shape_faults(config: ChatGLMConfig) -> list[str]:
    """What makes the configuration impossible to build, all of it; empty if nothing does."""
    faults = size_faults({name: getattr(config, name) for name in SIZES})
    if not config.position_encoding_2d:
        faults.append("position_encoding_2d is false; only the released two-dimensional positions are built")
    if config.pre_seq_len is not None:
        faults.append(
            f"pre_seq_len is {config.pre_seq_len}; P-tuning prefixes are not built, remove the field"
        )
    for name in ("bos_token_id", "mask_token_id", "gmask_token_id", "pad_token_id"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < config.vocab_size:
            faults.append(f"{name} {value} lies outside the vocabulary of {config.vocab_size} rows")
    return faults
