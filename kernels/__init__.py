"""Products of low-precision weights. `product` is the dispatch point; the XLA path is the reference."""

from bombus.kernels.cast import cast_weight
from bombus.kernels.lookup import lookup
from bombus.kernels.product import product
from bombus.kernels.quantize import quantize
from bombus.kernels.requantize import requantize
from bombus.kernels.weight import Weight, decode_e4m3fn, dequantize

__all__ = ["Weight", "cast_weight", "decode_e4m3fn", "dequantize", "lookup", "product", "quantize", "requantize"]
