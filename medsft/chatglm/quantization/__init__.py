"""int8 and int4 weights as ChatGLM-6B was released with: the numbers, and layers that compute with them."""

from medsft.chatglm.quantization.kernels import use_fastest
from medsft.chatglm.quantization.linear import QuantizedLinear, quantize_layers
from medsft.chatglm.quantization.rows import (
    BITS,
    QUANTIZED_NAMES,
    SCALE_SUFFIX,
    check_bits,
    dequantize_rows,
    pack_int4,
    quantize_rows,
    unpack_int4,
)

__all__ = [
    "BITS",
    "QUANTIZED_NAMES",
    "SCALE_SUFFIX",
    "QuantizedLinear",
    "check_bits",
    "dequantize_rows",
    "pack_int4",
    "quantize_layers",
    "quantize_rows",
    "unpack_int4",
    "use_fastest",
]
