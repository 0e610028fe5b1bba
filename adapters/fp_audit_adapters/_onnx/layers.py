"""Which values of a graph are worth looking at: what people call the activations of its layers."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from onnx import GraphProto, NodeProto
from torch import Tensor

from fp_audit_adapters._onnx.compiler import Compiled
from fp_audit_adapters._onnx.graph import subgraphs
from fp_audit_adapters._onnx.ops import find

_INTEGER_PRODUCTS = frozenset({"MatMulInteger", "ConvInteger"})
_PRODUCTS = frozenset({"MatMul", "FusedMatMul"})

_PASSING = frozenset(
    {"Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that may stand between quantised values and leave scale and zero point alone."""

_LAYERS = (
    _INTEGER_PRODUCTS
    | _PRODUCTS
    | frozenset(
        [
            "Attention",
            "AveragePool",
            "BatchNormalization",
            "BiasGelu",
            "Celu",
            "Clip",
            "Conv",
            "ConvTranspose",
            "DynamicQuantizeMatMul",
            "Elu",
            "FastGelu",
            "FusedConv",
            "Gelu",
            "Gemm",
            "GlobalAveragePool",
            "GlobalLpPool",
            "GlobalMaxPool",
            "GroupNormalization",
            "HardSigmoid",
            "HardSwish",
            "InstanceNormalization",
            "LRN",
            "LayerNormalization",
            "LeakyRelu",
            "LogSoftmax",
            "LpPool",
            "MatMulIntegerToFloat",
            "MaxPool",
            "Mish",
            "PRelu",
            "QGemm",
            "QLinearAdd",
            "QLinearAveragePool",
            "QLinearConv",
            "QLinearGlobalAveragePool",
            "QLinearLeakyRelu",
            "QLinearMatMul",
            "QLinearMul",
            "QLinearSigmoid",
            "QLinearSoftmax",
            "QuickGelu",
            "RMSNormalization",
            "Relu",
            "Selu",
            "Sigmoid",
            "SkipLayerNormalization",
            "Softmax",
            "Softplus",
            "Softsign",
            "SwiGLU",
            "Swish",
            "Tanh",
            "ThresholdedRelu",
        ]
    )
)


class Layer(NamedTuple):
    """One value, and what its integers stand for if it is quantised: ``(value - zero_point) * scale``."""

    slot: int
    scale: float = 1.0
    zero_point: float = 0.0

    def real(self, value: Tensor) -> Tensor:
        """The real numbers behind ``value``."""
        if self.scale == 1 and self.zero_point == 0:
            return value
        return (value - self.zero_point) * self.scale


def find_layers(compiled: Compiled) -> dict[str, Layer]:
    """Layers in topological order by name.

    A layer is a convolution, a matrix product (with the bias that is added to it, and, of integers, the scales
    that it is multiplied by), a normalisation, an activation, a pooling, or a sum of two computed values (the
    end of a residual block). It is named after its node, or, where that name is missing or used twice, after
    the node's first output.
    """
    names = [node.name for node in compiled.nodes]
    readers = _consumers(compiled.nodes)
    quantised = _quantised_values(compiled)
    layers: dict[str, Layer] = {}
    for node in compiled.nodes:
        if node.output[0] not in compiled.from_images:
            continue
        if node.op_type not in _LAYERS and not _is_residual(node, compiled.from_images):
            continue
        unique = node.name and names.count(node.name) == 1 and node.name not in compiled.slots
        value = _end(node, compiled.from_images, readers)
        scale, zero_point = quantised.get(value, (1.0, 0.0))
        layers[node.name if unique else node.output[0]] = Layer(compiled.slots[value], scale, zero_point)
    return layers


def _quantised_values(compiled: Compiled) -> dict[str, tuple[float, float]]:
    """Scale and zero point of every value that is quantised as a whole."""
    found: dict[str, tuple[float, float]] = {}
    for node in compiled.nodes:
        operator = find(node.domain, node.op_type, 10_000)
        if operator is not None and operator.result is not None and len(node.input) > operator.result[0]:
            scale, zero_point = (
                compiled.scalars.get(node.input[place]) if place < len(node.input) and node.input[place] else 0.0
                for place in operator.result
            )
            if scale and zero_point is not None:
                found[node.output[0]] = (scale, zero_point)
        elif node.op_type in _PASSING and node.input[0] in found:
            found.update(dict.fromkeys(node.output, found[node.input[0]]))
    return found


def _is_residual(node: NodeProto, from_images: frozenset[str]) -> bool:
    return node.op_type == "Add" and from_images.issuperset(node.input)


def _end(node: NodeProto, from_images: frozenset[str], readers: Mapping[str, list[NodeProto]]) -> str:
    """The output of ``node`` after the scales and the bias that follow it."""
    name = str(node.output[0])
    following = {"Add"} if node.op_type in _PRODUCTS else set()
    if node.op_type in _INTEGER_PRODUCTS:
        following = {"Cast", "Mul", "Add"}
    while following and len(readers.get(name, [])) == 1:
        after = readers[name][0]
        if after.op_type not in following or (after.op_type == "Add" and _is_residual(after, from_images)):
            break
        name = str(after.output[0])
        following.discard(after.op_type)
    return name


def _consumers(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Which nodes read each value, those in whose subgraphs it is read included."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        inner = [name for graph in subgraphs(node) for name in _names_read(graph)]
        for name in {*node.input, *inner}:
            readers.setdefault(name, []).append(node)
    return readers


def _names_read(graph: GraphProto) -> Iterable[str]:
    for node in graph.node:
        yield from node.input
        for inner in subgraphs(node):
            yield from _names_read(inner)
    yield from (value.name for value in graph.output)
