"""Element types of ONNX and torch, and tensors of the one as tensors of the other."""

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from fp_audit.errors import CorruptModel, UnsupportedModel

TORCH_TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}

NARROW = {
    TensorProto.INT2: np.int8,
    TensorProto.INT4: np.int8,
    TensorProto.UINT2: np.uint8,
    TensorProto.UINT4: np.uint8,
}
"""Types that are carried in a wider one; only DequantizeLinear and Cast read them."""


def torch_type(data_type: int) -> torch.dtype:
    """The torch type of a ``TensorProto.DataType``.

    Raises:
        UnsupportedModel: strings, 4-bit and 8-bit floats, and the like.
    """
    if data_type not in TORCH_TYPES:
        known = TensorProto.DataType.values()
        name = TensorProto.DataType.Name(data_type) if data_type in known else data_type
        raise UnsupportedModel(f"element type {name}: the torch executor has no such type")
    return TORCH_TYPES[data_type]


def to_torch(tensor: TensorProto) -> Tensor:
    """A tensor in memory, copied.

    Raises:
        UnsupportedModel: an element type that torch lacks.
        CorruptModel: the values do not fill the shape.
    """
    if tensor.data_type not in NARROW:
        torch_type(tensor.data_type)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise CorruptModel(f"tensor {tensor.name!r} of shape {list(tensor.dims)}: {error}") from error
    if tensor.data_type in NARROW:
        array = array.astype(NARROW[tensor.data_type])
    if tensor.data_type == TensorProto.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_proto(value: Tensor, like: TensorProto) -> TensorProto:
    """``value`` under the name and element type of ``like``."""
    values = value.detach().to("cpu", torch_type(like.data_type)).contiguous()
    result = TensorProto(name=like.name, data_type=like.data_type, dims=values.shape)
    raw = values.view(torch.int16) if values.dtype == torch.bfloat16 else values
    result.raw_data = raw.numpy().tobytes()
    return result
