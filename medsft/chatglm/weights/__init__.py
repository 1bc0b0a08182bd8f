"""The weights of a model folder: opened memory-mapped, checked, loaded, converted, written."""

from medsft.chatglm.weights.check import check_release
from medsft.chatglm.weights.convert import convert
from medsft.chatglm.weights.files import WeightFiles, open_weights
from medsft.chatglm.weights.load import load_model
from medsft.chatglm.weights.writer import ShardWriter, WrittenWeights, parse_size

__all__ = [
    "ShardWriter",
    "WeightFiles",
    "WrittenWeights",
    "check_release",
    "convert",
    "load_model",
    "open_weights",
    "parse_size",
]
