"""Reads an ONNX file that may be hostile, and describes the classifier in it. Needs onnx only, not torch."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from fp_audit.errors import CorruptModel, UnsafeModel, UnsupportedModel
from fp_audit_adapters._onnx.external import all_tensors, byte_size, read_external

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

CONTRIB_OPERATORS = frozenset(
    [
        "BiasGelu",
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeMatMul",
        "FastGelu",
        "FusedConv",
        "FusedMatMul",
        "Gelu",
        "LayerNormalization",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QuantizeLinear",
        "QuickGelu",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
    ]
)
"""Operators of ``com.microsoft`` that onnxruntime's quantiser and graph fusions write into files."""

_FLOATS = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
_PROTO_LIMIT = 2**31 - 2**20


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What can be said about a classifier's graph without running it."""

    input_name: str
    input_shape: tuple[int | None, ...] | None
    """N x C x H x W with None where the file leaves it open; None as a whole when not even the rank is said."""
    input_dtype: str
    """float32, float16, bfloat16 or float64."""
    output_name: str
    """The output with the class scores: the first one of N x K floats."""
    output_names: tuple[str, ...]
    classes: int | None
    """K, where it is static."""
    probabilities: bool
    """Whether the scores come out of a Softmax or Sigmoid."""
    opset: int
    """Version of the standard operators."""


def read_model(path: Path, root: Path, *, max_bytes: int = 2**31, max_external_bytes: int = 2**34) -> ModelProto:
    """Parses ``path`` and reads its external data in, without trusting either.

    Args:
        path: the ``.onnx`` file.
        root: nothing outside this folder is read, links followed. For a model in a hub cache the root is the
            repository's folder in the cache, because snapshots there are links to blobs.
        max_bytes: largest ``.onnx`` file that is read.
        max_external_bytes: most bytes of external data, summed over the tensors.

    Returns:
        A model whose tensors are all in memory, which passed onnx's checker (unless above protobuf's 2 GB).

    Raises:
        UnsafeModel: it refers to data outside ``root``.
        CorruptModel: it is damaged, or no ONNX file at all.
        UnsupportedModel: too large, custom operators, too new, or no image classifier.
    """
    model = _parse(_read_file(path, root, max_bytes), path)
    _refuse_unknown_operators(model)
    tensors = list(all_tensors(model))
    external = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    total = sum(byte_size(tensor) for tensor in external)
    if total > max_external_bytes:
        raise UnsupportedModel(f"{total} bytes of external data; the limit is {max_external_bytes}")
    for tensor in external:
        read_external(tensor, path.parent, root)
    for tensor in tensors:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != byte_size(tensor):
            raise CorruptModel(
                f"tensor {tensor.name!r} of shape {list(tensor.dims)} needs {byte_size(tensor)} bytes "
                f"and has {len(tensor.raw_data)}"
            )
    _check(model, sum(len(tensor.raw_data) for tensor in tensors))
    describe(model)
    return model


def describe(model: ModelProto) -> GraphSpec:
    """Finds the image input and the class scores of a graph.

    Raises:
        UnsupportedModel: the graph is no image classifier: says what was found.
    """
    image = _image_input(model.graph)
    shape = _shape(image)
    output = _score_output(model)
    scores = _shape(output)
    return GraphSpec(
        input_name=image.name,
        input_shape=shape,
        input_dtype=_FLOATS[image.type.tensor_type.elem_type],
        output_name=output.name,
        output_names=tuple(value.name for value in model.graph.output),
        classes=scores[1] if scores else None,
        probabilities=_last_operator(model.graph, output.name) in {"Softmax", "Sigmoid"},
        opset=opset_of(model),
    )


def opset_of(model: ModelProto) -> int:
    """Version of the standard operators that the model imports."""
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), default=1)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node of the graph, its subgraphs and the model's functions."""
    waiting = [*model.graph.node]
    for function in model.functions:
        waiting.extend(function.node)
    while waiting:
        node = waiting.pop()
        yield node
        for graph in subgraphs(node):
            waiting.extend(graph.node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes (the branches of an If, the body of a Loop)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def graph_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that must be fed: those without an initialiser of the same name (files before IR 4 list all)."""
    stored = {tensor.name for tensor in graph.initializer}
    stored |= {tensor.values.name for tensor in graph.sparse_initializer}
    return [value for value in graph.input if value.name not in stored]


def _read_file(path: Path, root: Path, max_bytes: int) -> bytes:
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:
        raise CorruptModel(f"{path.name!r} cannot be opened: {error}") from error
    if not real.is_relative_to(root.resolve()):
        raise UnsafeModel(f"{path.name!r} is a link that leads out of {root.name!r}")
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeModel(f"{path.name!r} is not a regular file")
    if status.st_size > max_bytes:
        raise UnsupportedModel(f"{path.name!r} has {status.st_size} bytes; the limit is {max_bytes}")
    return real.read_bytes()


def _parse(data: bytes, path: Path) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise CorruptModel(f"{path.name!r} is no ONNX file, or is cut off: {error}") from error
    if not model.graph.node:
        raise CorruptModel(f"{path.name!r} holds no graph: an ONNX model has at least one node")
    known = onnx.defs.onnx_opset_version()
    if opset_of(model) > known:
        raise UnsupportedModel(f"opset {opset_of(model)}; the installed onnx knows opsets up to {known}: upgrade onnx")
    return model


def _refuse_unknown_operators(model: ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    unknown = set()
    for node in all_nodes(model):
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        if (node.domain, node.op_type) in local:
            continue
        if domain == "com.microsoft":
            known = node.op_type in CONTRIB_OPERATORS
        else:
            known = domain in {"", "ai.onnx.ml"} and onnx.defs.has(node.op_type, domain)
        if not known:
            unknown.add(f"{domain}.{node.op_type}" if domain else node.op_type)
    if unknown:
        raise UnsupportedModel(
            f"custom operators ({', '.join(sorted(unknown))}): only standard ones and those that onnxruntime's "
            "quantiser writes are run; export the model without them"
        )


def _check(model: ModelProto, size: int) -> None:
    if size > _PROTO_LIMIT:
        return  # The checker works on a serialised copy, which protobuf limits to 2 GB.
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise CorruptModel(f"onnx's checker refuses it: {reason[:300]}") from error


def _shape(value: ValueInfoProto) -> tuple[int | None, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


def _render(values: list[ValueInfoProto]) -> str:
    """Like ``input float32[N,3,224,224], ids int64[N]``, for messages."""
    texts = []
    for value in values:
        kind = value.type.tensor_type.elem_type
        shape = _shape(value)
        sizes = "?" if shape is None else ",".join("N" if dim is None else str(dim) for dim in shape)
        name = TensorProto.DataType.Name(kind).lower() if kind in TensorProto.DataType.values() else "?"
        texts.append(f"{value.name[:60]} {name}[{sizes}]")
    return ", ".join(texts[:8]) or "nothing"


def _image_input(graph: GraphProto) -> ValueInfoProto:
    inputs = graph_inputs(graph)
    if len(inputs) == 1:
        shape = _shape(inputs[0])
        if inputs[0].type.tensor_type.elem_type in _FLOATS and (shape is None or len(shape) == 4):
            return inputs[0]
    raise UnsupportedModel(f"the graph takes {_render(inputs)}; expected one float input of N x C x H x W")


def _score_output(model: ModelProto) -> ValueInfoProto:
    """The first output of N x K floats; N x K x 1 x 1 counts, and so does a first output of unknown rank."""
    floats = [value for value in model.graph.output if value.type.tensor_type.elem_type in _FLOATS]
    for value in floats:
        if _is_scores(_shape(value)):
            return value
    for value in floats:
        if _shape(value) is None:
            return value
    raise UnsupportedModel(f"the graph returns {_render(list(model.graph.output))}; expected N x K class scores")


def _is_scores(shape: tuple[int | None, ...] | None) -> bool:
    return shape is not None and len(shape) >= 2 and all(dim == 1 for dim in shape[2:])


def _last_operator(graph: GraphProto, name: str) -> str:
    """The operator that computes ``name``, looking through those that only pass values on."""
    producers = {output: node for node in graph.node for output in node.output}
    while name in producers:
        node = producers[name]
        if node.op_type not in {"Identity", "Reshape", "Flatten", "Squeeze", "QuantizeLinear", "DequantizeLinear"}:
            return str(node.op_type)
        name = node.input[0]
    return ""
