"""Products of low-precision weights. `product` is the dispatch point; the XLA path is the reference."""

from bombus.kernels.fp8 import decode_e4m3fn, dequantize, quantize, scale_grid
from bombus.kernels.lookup import lookup
from bombus.kernels.product import product

__all__ = ["decode_e4m3fn", "dequantize", "lookup", "product", "quantize", "scale_grid"]
