"""The README.md inside a model folder: what it is, from what, how to use it, what not to use it for."""

from __future__ import annotations

import json

from medsft.provenance import Provenance


def model_card(provenance: Provenance) -> str:
    """Markdown with the front matter that model hubs read."""
    flags = "\n".join(
        f"| `--{name}` | `{json.dumps(value, ensure_ascii=False)}` |"
        for name, value in provenance.flags.items()
    )
    loss = "not reported yet" if provenance.train_loss is None else f"{provenance.train_loss:.4f}"
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return f"""---
language: zh
library_name: transformers
pipeline_tag: text-generation
tags: [chatglm, medical, full-parameter fine-tuning]
---
# ChatGLM fine-tuned with medsft

Answers come from a language model and may be wrong. **Not medical advice.** The ChatGLM-6B model licence
goes on applying to weights derived from it.

| | |
| --- | --- |
| base model | `{provenance.base_model}` |
| training data (fingerprint of its content) | `{provenance.data_fingerprint}` |
| question form | `{provenance.prompt_template}` |
| optimiser steps | {provenance.step:,} |
| examples seen | {provenance.examples_seen:,} |
| tokens seen | {provenance.tokens_seen:,} |
| last reported training loss | {loss} |
| software | {versions} |

```bash
medsft chat --model .
```

```python
import medsft.chatglm  # registers ChatGLM with transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".")
```

The files have the names of the ChatGLM-6B release, so its own code loads them as well, with its
`configuration_chatglm.py`, `modeling_chatglm.py`, `quantization.py` and `tokenization_chatglm.py` in this
folder. It computes in fp16, whatever the weights are stored in.

## Flags of the run

| flag | value |
| --- | --- |
{flags}
"""
