"""How the parameters of an untrained ChatGLM are filled."""

import torch

from medsft.chatglm.configuration import ChatGLMConfig

_EMBEDDING_STD = 0.02


def fill_parameter(parameter: torch.Tensor, role: str, name: str, config: ChatGLMConfig, generator=None):
    if name == "bias":
        parameter.zero_()
    elif "layernorm" in role:
        parameter.fill_(1.0)
    else:
        parameter.normal_(0, 0.02, generator=generator)
