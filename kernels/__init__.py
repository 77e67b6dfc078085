"""Products of stored weights. `product` is the dispatch point: C++ on CPU, and XLA's operations everywhere else."""

from bombus.kernels.cast import cast_weight
from bombus.kernels.fused import Activation, Normed, combined, fused_products
from bombus.kernels.grouped import Groups, group_rows, grouped_product
from bombus.kernels.lookup import lookup
from bombus.kernels.product import product, products, with_values
from bombus.kernels.program import program
from bombus.kernels.quantize import quantize
from bombus.kernels.requantize import requantize
from bombus.kernels.weight import Weight, decode_e4m3fn, dequantize, map_experts

__all__ = [
    "Activation",
    "Groups",
    "Normed",
    "Weight",
    "cast_weight",
    "combined",
    "decode_e4m3fn",
    "dequantize",
    "fused_products",
    "group_rows",
    "grouped_product",
    "lookup",
    "map_experts",
    "product",
    "products",
    "program",
    "quantize",
    "requantize",
    "with_values",
]
