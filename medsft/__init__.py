"""medsft: full-parameter fine-tuning of ChatGLM-6B on medical question-answer pairs.

After it is imported, `AutoModel`, `AutoModelForCausalLM` and `AutoTokenizer` of transformers open a released
folder without remote code. Imported alone it takes no time: torch and transformers come with what needs them.
"""

from medsft.registration import register_with_transformers

__version__ = "0.1.0"

__all__ = ["__version__", "chatglm"]

register_with_transformers()


def __getattr__(name: str) -> object:
    """`medsft.chatglm`, imported when it is first asked for (PEP 562)."""
    if name == "chatglm":
        import medsft.chatglm as chatglm

        return chatglm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
