"""Examples of random tokens, in the lengths of Med-ChatGLM's published data."""

from __future__ import annotations

import numpy as np

from medsft.chatglm import ChatGLMConfig
from medsft.data.dataset import Row
from medsft.planner.lengths import MED_CHATGLM_QUANTILES, MED_CHATGLM_SUPERVISED_SHARE


def made_up_rows(num_rows: int, config: ChatGLMConfig, seed: int) -> list[Row]:
    """Random tokens in the published lengths."""
    chance = np.random.RandomState(seed)
    shares, lengths = zip(*MED_CHATGLM_QUANTILES, strict=True)
    rows = []
    for length in np.interp(chance.rand(num_rows), shares, lengths).astype(int):
        context = max(1, int(length * (1 - MED_CHATGLM_SUPERVISED_SHARE)))
        ids = chance.randint(10, config.gmask_token_id - 10, size=length)
        ids[context - 1 : context + 1] = config.gmask_token_id, config.bos_token_id
        ids[-1] = config.eos_token_id
        rows.append(Row(ids, context))
    return rows
