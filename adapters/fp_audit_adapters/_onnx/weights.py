"""The weights of an ONNX model as float arrays by name; quantised ones as the numbers that they stand for.

Needs numpy and onnx only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from fp_audit.errors import CorruptModel
from fp_audit_adapters._onnx.graph import subgraphs

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
_QUANTISED_SUFFIX = "_quantized"


@dataclass(frozen=True, slots=True)
class _Quantised:
    """Where an operator's node has a quantised operand: places of value, scale, zero point; axis of the scale."""

    value: int
    scale: int
    zero_point: int
    axis: int


_QUANTISED_INPUTS = {
    "QLinearConv": [_Quantised(3, 4, 5, 0)],
    "QLinearMatMul": [_Quantised(0, 1, 2, -2), _Quantised(3, 4, 5, -1)],
    "QGemm": [_Quantised(0, 1, 2, -2), _Quantised(3, 4, 5, -1)],
    "QLinearAdd": [_Quantised(0, 1, 2, 0), _Quantised(3, 4, 5, 0)],
    "QLinearMul": [_Quantised(0, 1, 2, 0), _Quantised(3, 4, 5, 0)],
    "MatMulIntegerToFloat": [_Quantised(1, 3, 5, -1)],
    "DynamicQuantizeMatMul": [_Quantised(1, 2, 3, -1)],
}
_SCALES = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
    "QGemm": (1, 4, 7),
    "QLinearAdd": (1, 4, 6),
    "QLinearMul": (1, 4, 6),
    "MatMulIntegerToFloat": (2, 3),
    "DynamicQuantizeMatMul": (2,),
}
_BIASES = {"QLinearConv": (8, 1, 4), "QGemm": (6, 1, 4)}
"""Places of an int32 bias and of the two scales whose product is its scale."""


def tensors(model: ModelProto) -> dict[str, NDArray[Any]]:
    """Every weight of ``model`` by name, float32 (float64 stays).

    Weights are float initialisers and the tensors of Constant nodes, and int8 ones where the graph says what
    they stand for: DequantizeLinear (one scale, one an axis, or one a block), QLinearConv, QLinearMatMul, QGemm,
    and the products that dynamic quantisation writes. Names are those in the file, without the ``_quantized``
    that onnxruntime's quantiser appends, so that a model and its quantised copy agree on them; shapes are those in
    the file too (dynamic quantisation transposes the weight of a Gemm with ``transB``). Inside functions
    and subgraphs names follow the name of the function or node. Tensors of one element (epsilons) and the scales of
    quantisers are left out.

    Raises:
        CorruptModel: the values of a tensor do not fill its shape.
    """
    found: dict[str, NDArray[Any]] = {}
    for prefix, scope in _scopes(model):
        for name, array in scope.weights().items():
            plain = prefix + name.removesuffix(_QUANTISED_SUFFIX)
            found[prefix + name if plain in found else plain] = array
    return found


def _scopes(model: ModelProto) -> Iterator[tuple[str, "_Scope"]]:
    """The main graph, then functions and subgraphs, with what goes before their names."""
    waiting: list[tuple[str, Iterable[NodeProto], Iterable[TensorProto]]] = [
        ("", model.graph.node, model.graph.initializer)
    ]
    waiting += [(f"{function.name}/", function.node, ()) for function in model.functions]
    while waiting:
        prefix, nodes, initializers = waiting.pop(0)
        yield prefix, _Scope(nodes, initializers)
        for node in nodes:
            inner: list[GraphProto] = list(subgraphs(node))
            name = node.name or (node.output[0] if node.output else node.op_type)
            for index, graph in enumerate(inner):
                waiting.append((f"{prefix}{name}/{index}/", graph.node, graph.initializer))


class _Scope:
    """The nodes and stored tensors of one graph or function."""

    def __init__(self, nodes: Iterable[NodeProto], initializers: Iterable[TensorProto]) -> None:
        self.nodes = list(nodes)
        self.stored = {tensor.name: tensor for tensor in initializers}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.stored[node.output[0]] = node.attribute[0].t
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def weights(self) -> dict[str, NDArray[Any]]:
        """All weights by their own names."""
        scales = {
            node.input[place]
            for node in self.nodes
            for place in _SCALES.get(node.op_type, ())
            if place < len(node.input)
        }
        found = {}
        for name, tensor in self.stored.items():
            if tensor.data_type in _FLOATS and name not in scales:
                found[name] = _as_float(_array(tensor))
        for node in self.nodes:
            found.update(self._dequantised(node))
        return {name: array for name, array in found.items() if array.size > 1}

    def _dequantised(self, node: NodeProto) -> Iterator[tuple[str, NDArray[Any]]]:
        """Quantised weights that ``node`` reads, with their values as real numbers."""
        operands = list(_QUANTISED_INPUTS.get(node.op_type, ()))
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "DequantizeLinear":
            operands = [_Quantised(0, 1, 2, attributes.get("axis", 1))]
        elif node.op_type == "QGemm" and attributes.get("transB"):
            operands[1] = _Quantised(3, 4, 5, 0)
        for operand in operands:
            value, scale = self._integer(node, operand.value), self._constant(node, operand.scale)
            if value is not None and scale is not None:
                zero_point = self._constant(node, operand.zero_point)
                block_size = attributes.get("block_size", 0)
                yield (
                    node.input[operand.value],
                    dequantise(value, scale, zero_point, operand.axis, block_size),
                )
        yield from self._bias(node)
        yield from self._dynamic(node)

    def _bias(self, node: NodeProto) -> Iterator[tuple[str, NDArray[Any]]]:
        if node.op_type not in _BIASES:
            return
        place, first, second = _BIASES[node.op_type]
        value, one, other = self._integer(node, place), self._constant(node, first), self._constant(node, second)
        if value is not None and one is not None and other is not None:
            yield node.input[place], dequantise(value, one * other, None, 0)

    def _dynamic(self, node: NodeProto) -> Iterator[tuple[str, NDArray[Any]]]:
        """The weight of an integer product, whose scale is found where the product is multiplied by it."""
        if node.op_type not in {"MatMulInteger", "ConvInteger"}:
            return
        value, scale = self._integer(node, 1), self._product_scale(node.output[0])
        if value is not None and scale is not None:
            axis = -1 if node.op_type == "MatMulInteger" else 0
            yield node.input[1], dequantise(value, scale, self._constant(node, 3), axis)

    def _product_scale(self, name: str) -> NDArray[Any] | None:
        """``w`` in ``Mul(Cast(name), Mul(input_scale, w))``, or in ``Mul(Cast(name), w)``."""
        for reader in self.readers.get(name, []):
            if reader.op_type == "Cast":
                return self._product_scale(reader.output[0])
            if reader.op_type == "Mul":
                other = reader.input[1] if reader.input[0] == name else reader.input[0]
                product = self.producers.get(other)
                factors = list(product.input) if product is not None and product.op_type == "Mul" else [other]
                constants = [self.stored[factor] for factor in factors if factor in self.stored]
                if constants:
                    return _array(constants[-1])
        return None

    def _constant(self, node: NodeProto, place: int) -> NDArray[Any] | None:
        name = node.input[place] if place < len(node.input) else ""
        return _array(self.stored[name]) if name in self.stored else None

    def _integer(self, node: NodeProto, place: int) -> NDArray[Any] | None:
        name = node.input[place] if place < len(node.input) else ""
        if name not in self.stored or self.stored[name].data_type in _FLOATS:
            return None
        return _array(self.stored[name])


def dequantise(
    value: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any] | None, axis: int, block_size: int = 0
) -> NDArray[Any]:
    """``(value - zero_point) * scale`` in float32 (ONNX's DequantizeLinear).

    Args:
        value: integers of any shape.
        scale: one number, one for each index of ``axis``, or ([..., blocks, ...], rank of ``value``) one a block.
        zero_point: like ``scale``; None is 0.
        axis: the axis of ``value`` that ``scale`` follows.
        block_size: how many indices of ``axis`` share a scale; only for scales of the rank of ``value``.

    Raises:
        CorruptModel: the shapes do not fit.
    """
    try:
        level = value.astype(np.float32)
        if zero_point is not None:
            level = level - _spread(zero_point.astype(np.float32), value.shape, axis, block_size)
        return np.asarray(level * _spread(scale.astype(np.float32), value.shape, axis, block_size))
    except (ValueError, IndexError) as error:
        raise CorruptModel(f"a scale of shape {scale.shape} does not fit a weight of {value.shape}") from error


def _spread(part: NDArray[Any], shape: tuple[int, ...], axis: int, block_size: int) -> NDArray[Any]:
    if part.size == 1:
        return part.reshape(())
    if part.ndim == 1:
        return part.reshape(-1, *[1] * (len(shape) - axis % len(shape) - 1))
    size = block_size or shape[axis] // part.shape[axis]
    return np.take(part, np.arange(shape[axis]) // size, axis=axis)


def _array(tensor: TensorProto) -> NDArray[Any]:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise CorruptModel(f"tensor {tensor.name!r} of shape {list(tensor.dims)}: {error}") from error


def _as_float(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype == np.float64 else np.asarray(array, dtype=np.float32)
