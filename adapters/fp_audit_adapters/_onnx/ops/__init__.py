"""Operators of ONNX as pure functions of torch tensors, by family.

Adding one is a function with a decorator in the file of its family (`registry`); `find` gives the function for a
name and an opset.
"""

from fp_audit_adapters._onnx.ops import (
    activation,
    control,
    conv,
    index,
    math,
    norm,
    pool,
    qlinear,
    quant,
    reduce,
    resize,
    sequence,
    shape,
)
from fp_audit_adapters._onnx.ops.registry import IGNORED_ATTRIBUTES, Operator, find, registered

__all__ = [
    "IGNORED_ATTRIBUTES",
    "Operator",
    "activation",
    "control",
    "conv",
    "find",
    "index",
    "math",
    "norm",
    "pool",
    "qlinear",
    "quant",
    "reduce",
    "registered",
    "resize",
    "sequence",
    "shape",
]
