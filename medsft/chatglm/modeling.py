"""ChatGLM as a transformers 5 model with the release's parameter names.

Legend: B batch, T tokens of this call, S tokens that can be seen (cached ones included), E hidden size,
V vocabulary rows, N rows with a supervised next token.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from medsft.chatglm.attention import Attend, Dense, Segments, choose, over_segments
from medsft.chatglm.block import ChatGLMBlock, Embedding, Linear
from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.generation import ChatGLMGenerationMixin, release_generation_config
from medsft.chatglm.initialization import fill_parameter
from medsft.chatglm.positions import batch_positions, batch_prefix_mask
from medsft.chatglm.quantization import quantize_layers
from medsft.chatglm.rotary import rotary_tables
from medsft.errors import UserError

IGNORED_LABEL = -100


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What both ChatGLM classes have in common: names, capabilities, initialisation."""

    config: ChatGLMConfig
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["ChatGLMBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    # Stored by the release in every layer; computed here from pure numbers.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, Linear | Embedding | nn.LayerNorm):
            return
        role = "layernorm" if isinstance(module, nn.LayerNorm) else module.role
        for name, parameter in module.named_parameters(recurse=False):
            if not getattr(parameter, "_is_hf_initialized", False):  # set by from_pretrained on loaded ones
                fill_parameter(parameter, role, name, self.config)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """Embedding, blocks and final LayerNorm."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLMBlock(config, layer_idx) for layer_idx in range(config.num_layers))
        if config.quantization_bit:
            quantize_layers(self.layers, config.quantization_bit)
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.attention_way: str | None = None  # a name in `attention.WAYS`, or None: chosen by device
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        segments: Segments | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, E] after the final LayerNorm.

        `attention_mask` is None, a padding mask [B, S] (0 = padding), or bool [B, 1, T, S] (True = may
        attend).
        `position_ids` [B, 2, T] may be left out while nothing is cached: they are then read off `input_ids`.
        A row of a boolean mask that sees nothing is padding: it is let see everything, so that no NaN arises.
        `segments` says the same as the mask of whole examples, and lets them be attended to one by one; it
        goes before `attention_mask` where that is less work.
        Raises UserError when positions are neither given nor to be found.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        num_cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = self._read_positions(input_ids, attention_mask, num_cached)
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)

        length = position_ids.shape[-1]
        num_slots = num_cached + length
        if past_key_values is not None:
            num_slots, _ = past_key_values.get_mask_sizes(length, 0)  # a static cache has slots to spare
        attend = self._by_segments(segments, inputs_embeds, length) if segments is not None else None
        if attend is None:
            attend = Dense(attention_pattern(attention_mask, position_ids, num_cached, num_slots))
        rotary = rotary_tables(position_ids, self.config.head_dim, inputs_embeds.dtype)
        hidden_states = inputs_embeds  # [B, T, E]
        collected = [hidden_states] if output_hidden_states else None
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, rotary=rotary, attend=attend, past_key_values=past_key_values
            )
            if collected is not None:
                collected.append(hidden_states)
        hidden_states = self.final_layernorm(hidden_states)
        if collected is not None:
            collected[-1] = hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values,
            hidden_states=tuple(collected) if collected is not None else None,
        )

    def _by_segments(self, segments: Segments, embeds: torch.Tensor, length: int) -> Attend | None:
        way = self.attention_way or choose(embeds.device, embeds.dtype, self.config.head_dim)[0]
        return over_segments(segments, embeds.shape[0] * length, length, way)

    def _read_positions(
        self, input_ids: torch.LongTensor | None, attention_mask: torch.Tensor | None, num_cached: int
    ) -> torch.LongTensor:
        if input_ids is None or num_cached:
            raise UserError(
                "position_ids [batch, 2, tokens] are needed with inputs_embeds or with a filled cache: they "
                "depend on where <sop> and the mask token stand in the whole sequence."
            )
        padding_mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        return batch_positions(
            input_ids,
            self.config.bos_token_id,
            self.config.mask_token_id,
            self.config.gmask_token_id,
            padding_mask,
        )


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, ChatGLMGenerationMixin):
    """ChatGLM with its head, for training and generation.

    The head runs on supervised rows only when labels are given, and always as a module, so that ZeRO-3
    gathers its weight (which is the embedding's when `tie_word_embeddings` is true) there.
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.word_embeddings.weight"}
    # `loss` divides by num_items_in_batch itself; tells the Trainer not to divide by accumulation steps.
    accepts_loss_kwargs = True

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, role="lm_head", bias=False)
        self.generation_config = release_generation_config(config)
        self.post_init()

    def recompute_activations(self) -> None:
        """Gradient checkpointing of every block, by the name that the installed transformers has for it."""
        enable = getattr(self, "activation_checkpointing_enable", None) or self.gradient_checkpointing_enable
        enable()

    def compile_blocks(self) -> None:
        """torch.compile of every block, once for all of them and for rows of any length.

        A block that is called with a cache, to generate, runs as it is: its shapes change with every token.
        """
        for layer in self.transformer.layers:
            layer.forward = _compiled_without_cache(layer.forward)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        target_rows: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | float | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        segments: Segments | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss when `labels` are given; other arguments as in `ChatGLMModel.forward`.

        Without labels, `.logits` is [B, K, V] for the last `logits_to_keep` = K tokens (0: all of them; a 1-D
        tensor: the tokens at these indices). With `labels` [B, T], aligned with `input_ids` (token t is
        predicted from token t - 1, -100 is not supervised), `.logits` is [N, V] for the rows of the flattened
        [B * T] whose next token is supervised. `target_rows` [N] names these rows if they are known already.
        `.loss` is the cross-entropy in fp32, summed over targets and divided by `num_items_in_batch`, or by N
        when that is None; without a single target it is 0 and still reaches every parameter backwards.
        """
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False if use_cache is None and labels is not None else use_cache,
            output_hidden_states=output_hidden_states,
            segments=segments,
        )
        hidden_states = outputs.last_hidden_state  # [B, T, E]
        loss = None
        if labels is None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept])
        else:
            if target_rows is None:
                target_rows = supervised_rows(labels)
            targets = labels.flatten()[target_rows + 1]  # [N]
            logits = self.lm_head(hidden_states.flatten(0, 1)[target_rows])  # [N, V]
            loss = F.cross_entropy(logits.float(), targets, reduction="sum")
            loss = loss / (max(len(targets), 1) if num_items_in_batch is None else num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


def _compiled_without_cache(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    compiled = torch.compile(forward, dynamic=True)

    @wraps(forward)
    def run(*args: Any, past_key_values: Cache | None = None, **kwargs: Any) -> torch.Tensor:
        call = compiled if past_key_values is None else forward
        return call(*args, past_key_values=past_key_values, **kwargs)

    return run


def supervised_rows(labels: torch.LongTensor) -> torch.LongTensor:
    """Rows [N] of the flattened `labels` [B, T] whose next token is supervised, that is not -100."""
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED_LABEL
    return predicts.flatten().nonzero()[:, 0]


def attention_pattern(
    attention_mask: torch.Tensor | None, position_ids: torch.LongTensor, num_cached: int, num_slots: int
) -> torch.BoolTensor | None:
    """Mask [B, 1, T, slots] for the attention, True = may attend, or None where all may attend to all.

    Slots are the keys the cache hands back: the cached and the new tokens, and in a static cache empty ones
    behind them. Raises ValueError for an `attention_mask` that is neither [B, S] nor boolean [B, 1, T, S].
    """
    length = position_ids.shape[-1]
    num_seen = num_cached + length
    if attention_mask is not None and attention_mask.dim() == 4:
        if attention_mask.dtype != torch.bool:
            raise ValueError(
                f"a 4-D attention_mask must be boolean (True = may attend), got {attention_mask.dtype}"
            )
        # The kernels give NaN to a row that sees nothing, and its gradient poisons every other row.
        mask = attention_mask | ~attention_mask.any(dim=-1, keepdim=True)
    elif attention_mask is not None and attention_mask.shape[1:] != (num_seen,):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, must be [batch, {num_seen}] (cached "
            "and new tokens) or boolean [batch, 1, new tokens, cached and new tokens]"
        )
    elif attention_mask is None and length == 1 and num_slots == num_seen:
        return None
    elif attention_mask is not None and length == 1:
        mask = attention_mask.bool()[:, None, None]  # a single new token sees all that is no padding
    else:
        # Padding rows see the context of their sequence, so no row is empty.
        mask = batch_prefix_mask(position_ids, attention_mask, num_cached)
    return F.pad(mask, (0, num_slots - mask.shape[-1])) if num_slots > mask.shape[-1] else mask
