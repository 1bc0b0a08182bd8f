"""A toy that answers a few questions exactly, for tests of chat and server."""

from pathlib import Path

import torch

from medsft.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.data.encode import encode_example
from medsft.data.pack import pack
from medsft.data.records import Example

ROUND = (("头痛怎么办？", "多休息。\n 少看屏幕，早睡😀。"),)
PAIRS = [
    Example(*ROUND[0], (), "1"),
    Example("发烧呢？", "多喝水，38.5度以上吃退烧药。", (), "2"),
    Example("然后呢？", "去看神经内科。", ROUND, "3"),
]


def make_toy(folder: Path) -> None:
    """Writes tokenizer and weights of a toy that has PAIRS by heart."""
    tokenizer = train_tokenizer([pair.query + pair.response for pair in PAIRS], folder, 600)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    ids |= {name: getattr(tokenizer, name) for name in ("mask_token_id", "gmask_token_id")}
    shape = {"hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "inner_hidden_size": 256}
    rows = -(-tokenizer.vocab_size // 64) * 64
    torch.manual_seed(0)
    model = ChatGLMForConditionalGeneration(
        ChatGLMConfig(vocab_size=rows, max_sequence_length=256, **shape, **ids)
    )
    encoded = [encode_example(pair, tokenizer, 128, 128, "chatglm") for pair in PAIRS]
    batch = pack(encoded, tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        loss = model(**batch.model_inputs()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.05
    model.save_pretrained(folder)
