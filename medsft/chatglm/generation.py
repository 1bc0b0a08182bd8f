"""Generation the way ChatGLM was released: positions, defaults and the guard against invalid scores."""

from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import Cache

from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.positions import batch_positions

# Chosen by the reference when a row of scores is unusable: "▁", the blank that begins a sentence.
_BLANK_AFTER_PAD = 2
_BLANK_SCORE = 5e4

# With none of these set, generation settings were read from config.json, which only knows token ids.
_CHOSEN_BY_A_GENERATION_CONFIG = ("max_length", "max_new_tokens", "do_sample", "top_p")


def release_generation_config(config: ChatGLMConfig) -> GenerationConfig:
    """The release's defaults for chat; `top_k` 50 was the default of the transformers it was written for."""
    return GenerationConfig(
        max_length=config.max_sequence_length,
        do_sample=True,
        num_beams=1,
        top_k=50,
        top_p=0.7,
        temperature=0.95,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )


def blank_token_id(config: ChatGLMConfig) -> int:
    """Id of "▁", which stands two places behind the pad token in both releases."""
    return (config.pad_token_id or 0) + _BLANK_AFTER_PAD


class InvalidScoreLogitsProcessor(LogitsProcessor):
    """Turns rows of scores [B, V] with NaN or +inf, or with nothing but -inf, into "choose the blank".

    The reference does this to the whole batch and for any infinity; here the other rows are left alone, and
    so is a -inf that another processor set to forbid a token.
    """

    def __init__(self, blank_token_id: int):
        self.blank_token_id = blank_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores of the same shape; valid rows unchanged."""
        highest = scores.amax(dim=-1, keepdim=True)  # NaN if any score is
        replacement = torch.zeros_like(scores)
        replacement[:, self.blank_token_id] = min(_BLANK_SCORE, torch.finfo(scores.dtype).max)
        return torch.where(highest.isfinite(), scores, replacement)


class ChatGLMGenerationMixin(GenerationMixin):
    """`generate()` for prompts that end with a mask token and `<sop>`; batches are padded on the left."""

    config: ChatGLMConfig

    def adjust_generation_fn(
        self, generation_config: GenerationConfig | None, *args: Any, **kwargs: Any
    ) -> None:
        """Called by `from_pretrained`; a folder without generation_config.json has the release's defaults."""
        super().adjust_generation_fn(generation_config, *args, **kwargs)
        loaded = self.generation_config
        if all(getattr(loaded, name) is None for name in _CHOSEN_BY_A_GENERATION_CONFIG):
            loaded.update(**release_generation_config(self.config).to_dict(), defaults_only=True)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `GenerationMixin.generate`, with the release's guard against NaN and infinite scores first."""
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        if (
            kwargs.get("max_new_tokens") is not None
            and kwargs.get("max_length") is None
            and prompt is not None
        ):
            # The same limit; transformers warns at each call when one stands beside the default of the other.
            kwargs["max_length"] = prompt.shape[1] + kwargs.pop("max_new_tokens")
        guard = InvalidScoreLogitsProcessor(blank_token_id(self.config))
        processors = LogitsProcessorList([guard, *(logits_processor or ())])
        return super().generate(inputs, generation_config, processors, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `forward` for the next step.

        `input_ids` [B, S] are the whole sequences so far; positions are always read off them, because a new
        token's row 0 stays at the mask token, which no running counter knows.
        """
        position_ids = batch_positions(
            input_ids,
            self.config.bos_token_id,
            self.config.mask_token_id,
            self.config.gmask_token_id,
            attention_mask,
        )
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
            position_ids = position_ids[:, :, -next_sequence_length:]
        inputs = {
            "input_ids": input_ids.to(self.device),
            "position_ids": position_ids.to(self.device),
            "attention_mask": None if attention_mask is None else attention_mask.to(self.device),
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }
        if logits_to_keep is not None:
            inputs["logits_to_keep"] = logits_to_keep
        return inputs
