"""Changes to an ONNX graph that leave its answers as they are."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto, NodeProto

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_HOMOGENEOUS = ("Identity", "Dropout", "Relu", "LeakyRelu")
"""f(s x) = s f(x) for s > 0, value by value."""
_UNARY = (
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "Elu",
    "Selu",
    "Celu",
    "Gelu",
    "Softplus",
    "Mish",
    "Clip",
    "Erf",
)
"""Value by value and not homogeneous."""
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


@dataclass
class Link:
    """Hidden channels between the layer that makes them and the only one that reads them.

    A place is a stored tensor and the axis of it that runs over the channels.
    """

    channels: int
    rows: list[tuple[str, int]]
    """Places in the making layer and in what lies between."""
    scaled: list[tuple[str, int]]
    """The rows that, multiplied, multiply what the reading layer gets; none where an operation between is not
    homogeneous."""
    columns: tuple[str, int]
    """Place in the reading layer; after flattening, each channel has several neighbouring values there."""


class Graph:
    """An ONNX graph whose stored tensors can be read and written by name, each of them used once."""

    def __init__(self, model: ModelProto) -> None:
        """Take over a copy of ``model`` whose constants are initialisers and shared initialisers are copied.

        Raises:
            UnsupportedModel: it has control flow.
        """
        from onnx import AttributeProto, ModelProto, numpy_helper

        if any(held.type == AttributeProto.GRAPH for node in model.graph.node for held in node.attribute):
            raise UnsupportedModel("the graph has control flow (If, Loop, Scan), which cannot be rewritten")
        self.model = ModelProto()
        self.model.CopyFrom(model)
        _own_constants(self.model)
        self.stored: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer
        }
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.model.graph.node:
            for name in set(node.input):
                self._readers[name].append(node)
        self._outputs = {value.name for value in self.model.graph.output}

    def written(self) -> ModelProto:
        """Return the graph with the stored tensors as they are now."""
        from onnx import numpy_helper

        del self.model.graph.value_info[:]
        for tensor in self.model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(self.stored[tensor.name], order="C"), tensor.name))
        return self.model

    def reader(self, name: str) -> NodeProto | None:
        """Return the only node that reads a value, if there is one; SiLU, x sigmoid(x), counts as its last node."""
        readers = [] if name in self._outputs else self._readers[name]
        if len(readers) == 2:
            gates = [node for node in readers if node.op_type == "Sigmoid"]
            products = [node for node in readers if node.op_type == "Mul"]
            if gates and products and self.reader(gates[0].output[0]) is products[0]:
                return products[0]
        return readers[0] if len(readers) == 1 else None

    def links(self) -> Iterator[Link]:
        """Find the hidden channels that one layer makes and one layer reads."""
        for node in self.model.graph.node:
            rows = self.rows(node) if _attribute(node, "group", 1) == 1 else []
            if rows:
                found = self._follow(node, rows)
                if found is not None:
                    yield found

    def rows(self, node: NodeProto) -> list[tuple[str, int]]:
        """Return the places of a layer's output channels: in its weight, and in its bias if it has one."""
        weight = self.stored.get(node.input[1]) if node.op_type in _WEIGHTED else None
        if weight is None or weight.dtype.kind != "f" or (node.op_type != "Conv" and weight.ndim != 2):
            return []
        axis = 0 if node.op_type == "Conv" or _attribute(node, "transB") else 1
        rows = [(node.input[1], axis)]
        if len(node.input) > 2 and node.input[2]:
            bias = self._vector(node.input[2], weight.shape[axis])
            if bias is None:
                return []
            rows.append(bias)
        return rows

    def _vector(self, name: str, channels: int) -> tuple[str, int] | None:
        """Return the place of the channels in a stored tensor that holds one value for each."""
        value = self.stored.get(name)
        if value is None or value.size != channels or value.dtype.kind != "f":
            return None
        return name, int(np.argmax(value.shape))

    def _follow(self, node: NodeProto, rows: list[tuple[str, int]]) -> Link | None:
        """Go from the layer that makes channels to the layer that reads them."""
        channels = self.stored[rows[0][0]].shape[rows[0][1]]
        scaled, spatial = list(rows), node.op_type == "Conv"
        while True:
            name, after = node.output[0], self.reader(node.output[0])
            if after is None:
                return None
            if after.op_type in _WEIGHTED and after.input[0] == name:
                if not self._is_depthwise(after, channels):
                    return self._closed(after, Link(channels, rows, scaled, ("", 0)), spatial=spatial)
                scaled = self.rows(after)
                rows = rows + scaled
            elif after.op_type == "BatchNormalization":
                vectors = [self._vector(vector, channels) for vector in after.input[1:5]]
                if None in vectors:
                    return None
                found = [vector for vector in vectors if vector is not None]
                rows, scaled = rows + found, found[:2]
            elif after.op_type == "Add" and (bias := self._added(after, name, channels, spatial=spatial)):
                rows, scaled = [*rows, bias], [*scaled, bias] if scaled else []
            elif after.op_type in _UNARY or self._is_silu(after, name):
                scaled = []
            elif spatial and self._flattens(after):
                spatial = False
            elif after.op_type not in _HOMOGENEOUS and not (spatial and self._pools(after)):
                return None
            node = after

    def _closed(self, node: NodeProto, link: Link, *, spatial: bool) -> Link | None:
        """Complete a link with the layer that reads the channels, if its weights are stored and fit."""
        weight = self.stored.get(node.input[1])
        if weight is None or weight.dtype.kind != "f" or _attribute(node, "transA"):
            return None
        if node.op_type == "Conv":
            fits = spatial and _attribute(node, "group", 1) == 1 and weight.shape[1] == link.channels
            axis = 1
        else:
            axis = 1 if _attribute(node, "transB") else 0
            fits = not spatial and weight.ndim == 2 and weight.shape[axis] % link.channels == 0
        link.columns = (node.input[1], axis)
        return link if fits else None

    def _is_depthwise(self, node: NodeProto, channels: int) -> bool:
        rows = self.rows(node) if node.op_type == "Conv" else []
        return bool(rows) and _attribute(node, "group", 1) == channels == len(self.stored[rows[0][0]]) > 1

    def _added(self, node: NodeProto, name: str, channels: int, *, spatial: bool) -> tuple[str, int] | None:
        """Return the place of a bias that is added as a node of its own: C x 1 x 1 after a Conv, else C at the end."""
        other = next((value for value in node.input if value != name), "")
        place = self._vector(other, channels)
        if place is None or self.stored[other].ndim - 1 - place[1] != (2 if spatial else 0):
            return None
        return place

    def _is_silu(self, node: NodeProto, name: str) -> bool:
        if node.op_type != "Mul":
            return False
        gate = next((value for value in node.input if value != name), "")
        return any(made.op_type == "Sigmoid" and gate in made.output for made in self._readers[name])

    def _flattens(self, node: NodeProto) -> bool:
        """Tell whether a node makes N x values of N x C x H x W."""
        if node.op_type == "Flatten":
            return bool(_attribute(node, "axis", 1) == 1)
        shape = self.stored.get(node.input[1]) if node.op_type == "Reshape" else None
        return shape is not None and shape.shape == (2,)

    def _pools(self, node: NodeProto) -> bool:
        """Tell whether a node pools N x C x H x W, each channel by itself and so that f(s x) = s f(x) for s > 0."""
        if node.op_type in _POOLS:
            return True
        if node.op_type != "ReduceMean" or not _attribute(node, "keepdims", 1):
            return False
        axes = self.stored.get(node.input[1]) if len(node.input) > 1 else np.asarray(_attribute(node, "axes", ()))
        return axes is not None and sorted(int(axis) % 4 for axis in axes.ravel()) == [2, 3]


def permute(graph: Graph, rng: np.random.Generator) -> int:
    """Put the channels of every link into a random order and return how many links there are."""
    links = list(graph.links())
    for link in links:
        order = rng.permutation(link.channels)
        for name, axis in link.rows:
            graph.stored[name] = graph.stored[name].take(order, axis)
        name, axis = link.columns
        value = graph.stored[name]
        places = np.arange(value.shape[axis]).reshape(link.channels, -1)[order].ravel()
        graph.stored[name] = value.take(places, axis)
    return len(links)


def rescale(graph: Graph, rng: np.random.Generator, most: float) -> int:
    """Multiply the channels of every homogeneous link by factors, log-uniform in [1/most, most], and divide after it.

    Returns:
        How many such links there are.
    """
    links = [link for link in graph.links() if link.scaled]
    for link in links:
        factors = most ** rng.uniform(-1, 1, link.channels)
        for name, axis in link.scaled:
            graph.stored[name] = _times(graph.stored[name], factors, axis)
        name, axis = link.columns
        repeated = np.repeat(1 / factors, graph.stored[name].shape[axis] // link.channels)
        graph.stored[name] = _times(graph.stored[name], repeated, axis)
    return len(links)


def fold(graph: Graph) -> int:
    """Make every BatchNormalization part of the Conv or Gemm before it and return how many there were."""
    folded = 0
    for node in list(graph.model.graph.node):
        after = graph.reader(node.output[0]) if node.op_type in ("Conv", "Gemm") else None
        if after is None or after.op_type != "BatchNormalization":
            continue
        rows, vectors = graph.rows(node), [graph.stored.get(name) for name in after.input[1:5]]
        if rows and all(vector is not None for vector in vectors):
            _fold(graph, node, after, rows)
            folded += 1
    return folded


def _fold(graph: Graph, layer: NodeProto, norm: NodeProto, rows: list[tuple[str, int]]) -> None:
    """W' = f W and b' = f (b - mean) + shift with f = scale / sqrt(variance + epsilon); the norm's node goes."""
    from onnx import numpy_helper

    scale, shift, mean, variance = (graph.stored[name].astype(np.float64) for name in norm.input[1:5])
    factors = scale / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
    (weight, axis), *biases = rows
    before = graph.stored[biases[0][0]].astype(np.float64).ravel() if biases else np.zeros(len(factors))
    bias = f"{weight}_folded"
    graph.stored[bias] = ((before - mean) * factors + shift).astype(graph.stored[weight].dtype)
    graph.stored[weight] = _times(graph.stored[weight], factors, axis)
    graph.model.graph.initializer.append(numpy_helper.from_array(graph.stored[bias], bias))
    layer.input[:] = [*layer.input[:2], bias]
    layer.output[0] = norm.output[0]
    graph.model.graph.node.remove(norm)


def with_outputs(graph: Graph, classes: int, rng: np.random.Generator) -> None:
    """Give a graph ``classes`` logits: its last layer is drawn anew, uniform in +-1 / sqrt(inputs).

    Raises:
        UnsupportedModel: see ``last_places``.
    """
    places = last_places(graph)
    weight, axis = places[0]
    bound = graph.stored[weight].shape[1 - axis] ** -0.5
    for name, along in places:
        shape = list(graph.stored[name].shape)
        shape[along] = classes
        graph.stored[name] = rng.uniform(-bound, bound, shape).astype(graph.stored[name].dtype)
    output = graph.model.graph.output[0]
    del output.type.tensor_type.shape.dim[1:]
    output.type.tensor_type.shape.dim.add().dim_value = classes


def reorder(graph: Graph, rng: np.random.Generator) -> tuple[int, ...]:
    """Put the classes into a random order and return it: output i is what output ``order[i]`` was.

    Raises:
        UnsupportedModel: see ``last_places``.
    """
    places = last_places(graph)
    order = rng.permutation(graph.stored[places[0][0]].shape[places[0][1]])
    for name, axis in places:
        graph.stored[name] = graph.stored[name].take(order, axis)
    return tuple(order.tolist())


def last_places(graph: Graph) -> list[tuple[str, int]]:
    """Return where the classes are in the layer that makes the logits: its weight first, then its biases.

    Raises:
        UnsupportedModel: the logits do not come straight from a Gemm or MatMul.
    """
    makers = {name: node for node in graph.model.graph.node for name in node.output}
    node, biases = makers.get(graph.model.graph.output[0].name), list[tuple[str, int]]()
    while node is not None and node.op_type in ("Add", "Identity", "Softmax", "LogSoftmax"):
        held = [name for name in node.input if name in graph.stored]
        biases += [(name, graph.stored[name].ndim - 1) for name in held]
        node = makers.get(next(name for name in node.input if name not in held))
    rows = graph.rows(node) if node is not None and node.op_type in ("Gemm", "MatMul") else []
    if not rows:
        raise UnsupportedModel("the graph has no linear layer straight before its logits: its classes are fixed")
    return rows + biases


def _times(value: NDArray[Any], factors: NDArray[np.float64], axis: int) -> NDArray[Any]:
    """Multiply along an axis."""
    shape = [-1 if i == axis else 1 for i in range(value.ndim)]
    return np.asarray(value * factors.reshape(shape), value.dtype)


def _attribute(node: NodeProto, name: str, default: Any = 0) -> Any:  # noqa: ANN401
    from onnx.helper import get_attribute_value

    return next((get_attribute_value(held) for held in node.attribute if held.name == name), default)


def _own_constants(model: ModelProto) -> None:
    """Turn Constant nodes into initialisers, and give each node its own copy of an initialiser that several read."""
    from onnx import TensorProto

    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        tensor = TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        graph.node.remove(node)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input if name in stored)
    for position, node in enumerate(graph.node):
        for slot, name in enumerate(node.input):
            if uses[name] > 1:
                tensor = TensorProto()
                tensor.CopyFrom(stored[name])
                tensor.name = f"{name}_of_{position}_{slot}"
                node.input[slot] = tensor.name
                graph.initializer.append(tensor)
                uses[name] -= 1
