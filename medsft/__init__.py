"""medsft: full-parameter fine-tuning of ChatGLM-6B on medical question-answer pairs.

Importing it registers the native ChatGLM classes with transformers' Auto classes, so that
`AutoModel`, `AutoModelForCausalLM` and `AutoTokenizer` open a released folder without remote code.
"""

import medsft.chatglm as chatglm

__version__ = "0.1.0"

__all__ = ["__version__", "chatglm"]
