"""Two-dimensional rotary position embedding (RoFormer, arXiv 2104.09864, applied per position row).

Legend: B batch, T tokens, H heads, D head dim. The first D/2 dims of a head turn with position row 0, the
second D/2 with row 1, each half in GPT-NeoX style: its dim i pairs with its dim i + D/4.

Nothing is stored: a non-persistent buffer would be lost when transformers or DeepSpeed build on the meta
device, and a persistent one would follow `.to(bfloat16)`. The released buffers are ignored on load.
"""

import torch

_BASE = 10000.0


def inverse_frequencies(rotary_dim: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Frequencies [rotary_dim / 2], fp32 holding fp16 values: the release rounds them before use."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
    return (_BASE**-exponents).to(torch.float16).to(torch.float32)


@torch.no_grad()
def rotary_tables(
    position_ids: torch.LongTensor, head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [B, T, 1, D] in `dtype` for `position_ids` [B, 2, T], computed in fp32."""
    frequencies = inverse_frequencies(head_dim // 2, position_ids.device)  # [D/4]
    angles = position_ids.transpose(1, 2).to(torch.float32)[..., None] * frequencies  # [B, T, 2, D/4]
    angles = torch.cat((angles, angles), dim=-1).flatten(2)[:, :, None]  # [B, T, 1, D]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys [B, T, H, D] turned by the tables of `rotary_tables`; same shape and dtype."""
    pairs = states.unflatten(-1, (2, 2, -1))  # [B, T, H, 2 rows, 2 partners, D/4]
    turned = torch.stack((-pairs[..., 1, :], pairs[..., 0, :]), dim=-2).flatten(-3)
    return states * cos + turned * sin
