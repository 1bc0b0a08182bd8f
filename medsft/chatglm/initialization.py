"""How the parameters of an untrained ChatGLM are filled, by a model's `_init_weights` and by `medsft init`.

Weights of linear layers are normal with variance 2 / (fan in + fan out) (Glorot and Bengio 2010), the three
parts of `query_key_value` counted as separate layers. Every block divides what it adds by alpha = sqrt(2 *
layers) against the residual, so 2 * layers such additions weigh about as much as the embedding at any depth;
the extra factor 1 / alpha that GLM-130B (arXiv 2210.02414) puts on top made toy models of 2 to 28 layers
learn more slowly. Embeddings have std 0.5 / sqrt(hidden size): they are the head as well, and with unit
variance after the final LayerNorm the first loss is then near ln(vocabulary). Biases are 0, LayerNorms 1.
"""

import torch

from medsft.chatglm.configuration import ChatGLMConfig

_EMBEDDING_GAIN = 0.5
# Elements drawn at a time; bounds the fp32 copy of a half precision weight to 64 MiB.
_CHUNK_ELEMENTS = 1 << 24


def weight_std(role: str, shape: tuple[int, ...], config: ChatGLMConfig) -> float:
    """Standard deviation for the 2-D weight of a layer; `role` is the last part of the layer's name."""
    num_out, num_in = shape
    if role in ("word_embeddings", "lm_head"):
        return _EMBEDDING_GAIN * config.hidden_size**-0.5
    if role == "query_key_value":
        num_out //= 3
    return (2 / (num_in + num_out)) ** 0.5


@torch.no_grad()
def fill_parameter(
    parameter: torch.Tensor,
    role: str,
    name: str,
    config: ChatGLMConfig,
    generator: torch.Generator | None = None,
) -> None:
    """Fill `parameter` in place; `name` is "weight" or "bias", `role` the last part of the layer's name.

    Under ZeRO-3's zero.Init a parameter is empty by then, and this does nothing: such a model is filled from
    files.
    """
    if name == "bias":
        parameter.zero_()
    elif role.endswith("layernorm"):
        parameter.fill_(1.0)
    elif parameter.dim() == 2:
        _fill_normal(parameter, weight_std(role, tuple(parameter.shape), config), generator)


def _fill_normal(weight: torch.Tensor, std: float, generator: torch.Generator | None) -> None:
    """Normal values drawn in fp32, rounded once, so that a seed gives the same model in every dtype."""
    if weight.device.type == "meta":
        return
    rows_at_once = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for rows in weight.split(rows_at_once):
        draw = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        rows.copy_(draw.normal_(0.0, std, generator=generator))
