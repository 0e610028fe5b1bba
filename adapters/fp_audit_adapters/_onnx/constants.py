"""Attributes and stored tensors of a graph as Python values and torch tensors."""

from typing import Any

import torch
from onnx import AttributeProto, NodeProto, TensorProto, helper
from torch import Tensor

from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit_adapters._onnx.ops.dtypes import to_torch, torch_type

_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})


def attribute_value(attribute: AttributeProto) -> Any:  # noqa: ANN401 (whatever the attribute holds)
    value = helper.get_attribute_value(attribute)
    if attribute.name in _TYPE_ATTRIBUTES:
        return None if value == TensorProto.UNDEFINED and attribute.name != "to" else torch_type(value)
    if isinstance(value, TensorProto):
        return to_torch(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type in {AttributeProto.INTS, AttributeProto.FLOATS}:
        return list(value)
    return value


def constant_value(node: NodeProto) -> Tensor:
    """The tensor of a Constant node, from whichever of its attributes is set."""
    attribute = node.attribute[0] if node.attribute else AttributeProto()
    match attribute.name:
        case "value":
            return to_torch(attribute.t)
        case "sparse_value":
            return dense(attribute.sparse_tensor)
        case "value_float" | "value_floats":
            return torch.tensor(attribute_value(attribute), dtype=torch.float32)
        case "value_int" | "value_ints":
            return torch.tensor(attribute_value(attribute), dtype=torch.int64)
    raise UnsupportedModel(f"Constant {node.output[0]!r} with the attribute {attribute.name!r}: not supported")


def is_number(value: Tensor) -> bool:
    return value.numel() == 1 and not value.is_complex()


def dense(sparse: Any) -> Tensor:  # noqa: ANN401 (SparseTensorProto, untyped)
    """A sparse tensor (values [NNZ]; indices [NNZ] flat or [NNZ, rank]) with its zeros."""
    values, indices = to_torch(sparse.values), to_torch(sparse.indices).long()
    shape = list(sparse.dims)
    dense = torch.zeros(shape, dtype=values.dtype)
    try:
        if indices.ndim == 1:
            dense.view(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, RuntimeError) as error:
        raise CorruptModel(f"sparse tensor {sparse.values.name!r} of shape {shape}: {error}") from error
    return dense
