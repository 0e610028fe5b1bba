"""Turns an ONNX graph into a `Program`: constants folded, attributes parsed, placement decided, all once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto
from torch import Tensor

from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit_adapters._onnx.constants import attribute_value, constant_value, dense, is_number
from fp_audit_adapters._onnx.expand import expanded
from fp_audit_adapters._onnx.graph import graph_inputs, opset_of
from fp_audit_adapters._onnx.ops import IGNORED_ATTRIBUTES, Operator, find
from fp_audit_adapters._onnx.ops.dtypes import NARROW, to_torch
from fp_audit_adapters._onnx.program import ABSENT, Program, Step, on_one_device, with_numbers

_HOST_RESULTS = frozenset({"Shape", "Size", "SequenceLength"})
_NOT_FOLDED = frozenset({"If", "Loop", "Scan", "SequenceMap"})

Form = Literal["device", "host", "number", "float"]
"""How a constant is handed over: on the module's device, on the CPU, as a Python number, or as float32."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A graph ready to run."""

    program: Program
    slots: dict[str, int]
    """Slot of every value that is computed or fed, by ONNX name."""
    constants: dict[int, Tensor]
    """Constants that live on the module's device, by slot; the program's template leaves them out."""
    trainable: dict[int, str]
    """Which of these are weights: slot to ONNX name."""
    nodes: list[NodeProto]
    """The nodes that became steps, in order."""
    scalars: dict[str, float]
    """Constants of one element, by ONNX name."""
    from_images: frozenset[str]
    """Values that depend on what is fed, not only on its shape."""
    outputs: dict[str, int]
    """Slot of every output of the graph; a constant may be one."""

    def slot(self, name: str) -> int:
        """Where the value called ``name`` is."""
        return self.outputs[name] if name in self.outputs else self.slots[name]


def compile_model(model: ModelProto) -> Compiled:
    """Compiles the graph of a model whose tensors are all in memory.

    Raises:
        UnsupportedModel: lists all operators of the graph that are not known, or the first unknown attribute.
        CorruptModel: the graph contradicts itself.
    """
    model = expanded(model)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    versions[""] = versions["ai.onnx"] = opset_of(model)
    return _GraphCompiler(model.graph, versions, None).compiled()


@dataclass
class _GraphCompiler:
    """Compiles one graph; subgraphs have a ``parent``, and reach its values by capturing them."""

    graph: GraphProto
    versions: dict[str, int]
    parent: "_GraphCompiler | None"
    template: list[Any] = field(default_factory=lambda: [None])
    slots: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    device_constants: dict[int, Tensor] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    trainable: dict[int, str] = field(default_factory=dict)
    forms: dict[tuple[str, Form], int] = field(default_factory=dict)
    on_device: set[str] = field(default_factory=set)
    captured: dict[str, int] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)

    def compiled(self) -> Compiled:
        """The program, with everything that a module needs to feed it."""
        self.compile()
        scalars = {name: float(value) for name, value in self.constants.items() if is_number(value)}
        outputs = dict(zip((value.name for value in self.graph.output), self.outputs, strict=True))
        return Compiled(
            program=self.program(()),
            slots=self.slots,
            constants=self.device_constants,
            trainable=self.trainable,
            nodes=self.nodes,
            scalars=scalars,
            from_images=frozenset(self.on_device),
            outputs=outputs,
        )

    def compile(self) -> None:
        """Turns all nodes into steps."""
        self._load_constants()
        if self.parent is None:
            self.weights = self._find_weights()
        for value in graph_inputs(self.graph):
            self.inputs.append(self._new_slot(value.name))
            self.on_device.add(value.name)
        for node in self.graph.node:
            if node.op_type != "Constant":
                self._add(node)
        self.outputs = [self._value_slot(value.name) for value in self.graph.output]

    def program(self, captured: Iterable[str]) -> Program:
        """The compiled graph, which takes its inputs and then the values ``captured`` from around it."""
        outer = [self.captured[name] if name in self.captured else self._new_slot(None) for name in captured]
        return Program(self.steps, self.template, (*self.inputs, *outer), self.outputs)

    def _value_slot(self, name: str) -> int:
        return self._constant(name, "device") if self._is_constant(name) else self._slot(name)

    # Constants

    def _load_constants(self) -> None:
        readers: dict[str, set[str]] = {}
        for node in self.graph.node:
            for name in node.input:
                readers.setdefault(name, set()).add(node.op_type)
        kinds = {value.name: value.type.tensor_type.elem_type for value in self.graph.input}
        kinds |= {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        for name, kind in kinds.items():
            if kind in NARROW and readers.get(name, set()) - {"Cast", "DequantizeLinear"}:
                raise UnsupportedModel(
                    f"tensor {name!r} of 2 or 4 bits is computed with; only DequantizeLinear and Cast are known"
                )
        for tensor in self.graph.initializer:
            self.constants[tensor.name] = to_torch(tensor)
        for sparse in self.graph.sparse_initializer:
            self.constants[sparse.values.name] = dense(sparse)
        for node in self.graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = constant_value(node)

    def _find_weights(self) -> set[str]:
        """Float constants of more than one element that an operator computes with (not scales, statistics)."""
        weights = set()
        for node in self.graph.node:
            if node.op_type == "Constant":
                continue
            operator = self._operator(node)
            weights |= {
                name
                for place, name in enumerate(node.input)
                if place not in operator.host and place not in operator.fixed and self._may_train(name)
            }
        return weights

    def _may_train(self, name: str) -> bool:
        value = self.constants.get(name)
        return (
            value is not None and value.is_floating_point() and value.numel() > 1 and bool(torch.isfinite(value).all())
        )

    def _is_constant(self, name: str) -> bool:
        return name in self.constants

    def _constant(self, name: str, form: Form) -> int:
        """The slot that holds a constant in a form; made at first use."""
        slot = self.forms.get((name, form))
        if slot is not None:
            return slot
        value = self.constants[name]
        if form in {"device", "float"} and self.parent is not None:
            slot = self._capture(self.parent.adopt(name, value))
        else:
            slot = self._new_slot(None)
            if form in {"device", "float"}:
                self.device_constants[slot] = value.float() if form == "float" else value
                if name in self.weights:
                    self.trainable[slot] = name
            else:
                self.template[slot] = value.tolist() if form == "number" else value
        self.forms[name, form] = slot
        return slot

    def adopt(self, name: str, value: Tensor) -> str:
        """Takes a constant of a subgraph, so that it ends up among the module's; returns its name here."""
        unique = f"{len(self.constants)}:{name}"
        self.constants[unique] = value
        return unique

    # Values

    def _new_slot(self, name: str | None) -> int:
        self.template.append(None)
        slot = len(self.template) - 1
        if name:
            if name in self.slots or name in self.constants:
                raise CorruptModel(f"the value {name!r} is written twice")
            self.slots[name] = slot
        return slot

    def _slot(self, name: str) -> int:
        """The slot of a computed value, here or in a graph around this one."""
        if name in self.slots:
            return self.slots[name]
        return self._capture(name)

    def _capture(self, name: str) -> int:
        if self.parent is None:
            raise CorruptModel(f"the value {name!r} is read before any node writes it")
        if name not in self.captured:
            self.captured[name] = self._new_slot(None)
        return self.captured[name]

    # Nodes

    def _operator(self, node: NodeProto) -> Operator:
        operator = find(node.domain, node.op_type, self.versions.get(node.domain, 1))
        if operator is None:
            raise UnsupportedModel(f"the torch executor has no operator {node.op_type}")
        return operator

    def _add(self, node: NodeProto) -> None:
        operator = self._operator(node)
        if self._foldable(node) and self._fold(node, operator):
            return
        names = list(node.input)
        label = f"{node.name or node.output[0]} ({node.op_type})"
        run, captured = self._bound(node, operator)
        variable = [place for place, name in enumerate(names) if name and not self._is_constant(name)]
        hosted = [place for place in variable if place in operator.host]
        tensors = [place for place in variable if place not in operator.host]
        device = self._runs_on_device(names, operator, tensors)
        slots = [self._argument(place, name, operator, device) for place, name in enumerate(names)]
        slots += [self._value_slot(name) for name in captured]
        if hosted:
            run = with_numbers(run, hosted)
        apart = device and any(names[place] not in self.on_device for place in tensors)
        if apart or captured or self.parent is not None:
            run = on_one_device(run)
        outputs = tuple(self._new_slot(name or None) for name in node.output)
        if device and node.op_type not in _HOST_RESULTS:
            self.on_device.update(node.output)
        # Trailing absent inputs are left to the defaults of the function.
        while slots and slots[-1] == ABSENT:
            slots.pop()
        self.steps.append(Step(run, tuple(slots), outputs, label))
        self.nodes.append(node)

    def _runs_on_device(self, names: list[str], operator: Operator, tensors: list[int]) -> bool:
        """Whether the result belongs on the module's device: shapes are computed on the CPU, images are not."""
        if self.parent is not None or operator.name in _NOT_FOLDED:
            return True
        if tensors:
            return any(names[place] in self.on_device for place in tensors)
        fixed = [name for place, name in enumerate(names) if name and place not in operator.host]
        return any(self._is_constant(name) and self.constants[name].is_floating_point() for name in fixed)

    def _argument(self, place: int, name: str, operator: Operator, device: bool) -> int:
        if not name:
            return ABSENT
        if not self._is_constant(name):
            return self._slot(name)
        value = self.constants[name]
        if place in operator.host or (place in operator.scalars and value.ndim == 0):
            return self._constant(name, "number")
        if place in operator.zeros and not value.any():
            return ABSENT
        if place in operator.weights and not value.is_floating_point():
            return self._constant(name, "float")
        return self._constant(name, "device" if device else "host")

    def _foldable(self, node: NodeProto) -> bool:
        return (
            node.op_type not in _NOT_FOLDED
            and self.parent is None
            and all(not name or (self._is_constant(name) and name not in self.weights) for name in node.input)
        )

    def _fold(self, node: NodeProto, operator: Operator) -> bool:
        """Computes a node of constants now; False if its results are no tensors."""
        run, _ = self._bound(node, operator)
        count = len(node.input)
        step = Step(
            with_numbers(run, [place for place in operator.host if place < count]),
            tuple(range(1, count + 1)),
            tuple(range(count + 1, count + 1 + len(node.output))),
            f"{node.name or node.output[0]} ({node.op_type})",
        )
        values = [self.constants[name] if name else None for name in node.input]
        with torch.no_grad():
            results = Program([step], [None] * (1 + count + len(node.output)), step.inputs, step.outputs)(*values)
        if not all(isinstance(result, Tensor) for result in results):
            return False
        for name, result in zip(node.output, results, strict=True):
            if name in self.constants:
                raise CorruptModel(f"the value {name!r} is written twice")
            self.constants[name] = result.contiguous()
        return True

    def _bound(self, node: NodeProto, operator: Operator) -> tuple[Callable[..., Any], list[str]]:
        """The operator's function with the node's attributes, and the outer values that subgraphs capture."""
        keywords: dict[str, Any] = {}
        bodies: dict[str, _GraphCompiler] = {}
        for attribute in node.attribute:
            if attribute.name in IGNORED_ATTRIBUTES and attribute.name not in operator.attributes:
                continue
            if attribute.ref_attr_name:
                raise UnsupportedModel(f"{node.op_type} with an attribute of a function around it: not supported")
            keyword = operator.attributes.get(attribute.name)
            if keyword is None:
                raise UnsupportedModel(f"{node.op_type} with the attribute {attribute.name!r}: not supported")
            if attribute.type == AttributeProto.GRAPH:
                bodies[keyword] = _GraphCompiler(attribute.g, self.versions, self)
            else:
                keywords[keyword] = attribute_value(attribute)
        if "inputs" in operator.counts:
            keywords["inputs"] = len(node.input)
        if "outputs" in operator.counts:
            keywords["outputs"] = len(node.output)
        captured = _compile_bodies(bodies, keywords)
        return (partial(operator.function, **keywords) if keywords else operator.function), captured


def _compile_bodies(bodies: dict[str, _GraphCompiler], keywords: dict[str, Any]) -> list[str]:
    """Compiles the subgraphs of one node into ``keywords``; all of them take the same captured values."""
    for compiler in bodies.values():
        compiler.compile()
    captured = sorted({name for compiler in bodies.values() for name in compiler.captured})
    keywords.update({keyword: compiler.program(captured) for keyword, compiler in bodies.items()})
    return captured
