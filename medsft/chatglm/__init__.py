"""ChatGLM-6B as released, native to transformers 5: configuration, model, tokenizer.

Importing this package registers the classes with the Auto classes. The release maps `AutoModel` to the
model with the head, so that is what `AutoModel.from_pretrained(folder)` gives here too.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.modeling import ChatGLMForConditionalGeneration, ChatGLMModel
from medsft.chatglm.tokenization import ChatGLMTokenizer

AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
for _auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
    _auto_class.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(ChatGLMConfig, ChatGLMTokenizer, exist_ok=True)

__all__ = ["ChatGLMConfig", "ChatGLMForConditionalGeneration", "ChatGLMModel", "ChatGLMTokenizer"]
