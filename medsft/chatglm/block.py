"""One ChatGLM block: attention, feed-forward and the post-norm residual.

Legend: B batch, T tokens of this call, S tokens that can be seen (cached ones included), H heads, D head dim,
E = H * D hidden size.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from medsft.chatglm.attention import Attend, Dense
from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.rotary import rotate

EVERYONE = Dense(None)
"""Each token attends to all."""


class Linear(nn.Linear):
    """Linear layer that leaves its memory as it is; `ChatGLMPreTrainedModel._init_weights` fills it.

    `role` is the last part of the layer's name in the release; it decides how the weight is filled.
    """

    def __init__(self, in_features: int, out_features: int, role: str, bias: bool = True):
        super().__init__(in_features, out_features, bias=bias)
        self.role = role

    def reset_parameters(self) -> None:
        """Do nothing: every weight is either loaded or filled once by `_init_weights`."""


class Embedding(nn.Embedding):
    """Embedding that leaves its memory as it is, like `Linear`."""

    role = "word_embeddings"

    def reset_parameters(self) -> None:
        """Do nothing: every weight is either loaded or filled once by `_init_weights`."""


class ChatGLMAttention(nn.Module):
    """Multi-head attention with two-dimensional rotary positions, in a way of `medsft.chatglm.attention`.

    The reference divides scores by layer + 1 before and multiplies after masking; that only widens the range
    of fp16 and is left to the kernel, which accumulates in fp32.
    """

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size, role="query_key_value")
        self.dense = Linear(config.hidden_size, config.hidden_size, role="dense")

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attend: Attend,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """States [B, T, E] to [B, T, E]; `attend` knows who sees whom."""
        mixed = self.query_key_value(hidden_states)
        mixed = mixed.unflatten(-1, (self.num_heads, 3 * self.head_dim))  # split in three per head
        query, key, value = mixed.chunk(3, dim=-1)  # each [B, T, H, D]
        query = rotate(query, *rotary).transpose(1, 2)  # [B, H, T, D]
        key = rotate(key, *rotary).transpose(1, 2)
        value = value.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)  # [B, H, S, D]
        context = attend(query, key, value)  # [B, H, T, D]
        return self.dense(context.transpose(1, 2).flatten(2))


class ChatGLMMLP(nn.Module):
    """Feed-forward with the tanh form of GELU."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = Linear(config.hidden_size, config.inner_hidden_size, role="dense_h_to_4h")
        self.dense_4h_to_h = Linear(config.inner_hidden_size, config.hidden_size, role="dense_4h_to_h")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """States [B, T, E] to [B, T, E]."""
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    """a = LN1(h); h = alpha * a + Attn(a); m = LN2(h); out = alpha * m + MLP(m), alpha = sqrt(2 * layers).

    The residual branches off after the LayerNorm (GLM-130B, arXiv 2210.02414, section 2.1, "DeepNorm").
    """

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.residual_scale = (2 * config.num_layers) ** 0.5
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attend: Attend = EVERYONE,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """States [B, T, E] to [B, T, E]; the other arguments as in `ChatGLMAttention.forward`."""
        normed = self.input_layernorm(hidden_states)
        attended = self.attention(normed, rotary, attend, past_key_values)
        normed = self.post_attention_layernorm(self.residual_scale * normed + attended)
        return self.residual_scale * normed + self.mlp(normed)
