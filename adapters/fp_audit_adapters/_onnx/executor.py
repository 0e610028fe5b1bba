"""ONNX graphs as torch modules: logits, activations, gradients, fine-tuning.

onnxruntime gives no gradients. This executor runs the same graph operator by operator in torch, so that autograd,
devices, optimisers and ``torch.func`` work as on any module.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from fp_audit_adapters._onnx.compiler import compile_model
from fp_audit_adapters._onnx.graph import describe
from fp_audit_adapters._onnx.layers import find_layers
from fp_audit_adapters._onnx.ops.dtypes import to_proto
from fp_audit_adapters._onnx.program import Program

_TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}


class GraphModule(nn.Module):
    """Any ONNX graph. Weights are parameters, other constants buffers, under their ONNX names ("." as "/").

    A weight is a float initialiser (or Constant node) of the main graph with more than one element that an
    operator computes with. Means and variances of BatchNormalization are no weights: the graph says what they
    are, not how they would move, so they stay fixed while the module is trained. Neither are quantised weights
    and scales. Numbers of one element are structure (an epsilon, the square root of two).
    """

    def __init__(self, model: ModelProto) -> None:
        """Compiles the graph of ``model``, whose tensors must be in memory (`read_model`).

        Raises:
            UnsupportedModel: names all operators that the executor lacks.
            CorruptModel: the graph contradicts itself.
        """
        super().__init__()
        self._compiled = compile_model(model)
        self._keys: dict[int, str] = {}
        for slot, name in self._compiled.trainable.items():
            self._keys[slot] = self._free_key(name)
            self.register_parameter(self._keys[slot], nn.Parameter(self._compiled.constants[slot]))
        for slot, value in self._compiled.constants.items():
            if slot not in self._keys:
                self._keys[slot] = f"constant{slot}"
                self.register_buffer(self._keys[slot], value, persistent=False)
        self._compiled.constants.clear()
        self._cuts: dict[tuple[int, ...], Program] = {}

    @property
    def weight_names(self) -> dict[str, str]:
        """Key of each parameter in ``named_parameters()`` to the ONNX name of its tensor."""
        return {self._keys[slot]: name for slot, name in self._compiled.trainable.items()}

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str]) -> list[Any]:
        """The values called ``outputs`` (any that is computed); only the nodes that they need are run.

        Args:
            feeds: a tensor (or a list of tensors) for each input that is needed.
            outputs: names of values.
        """
        return self._run(feeds, tuple(self._compiled.slot(name) for name in outputs))

    def _run(self, feeds: Mapping[str, Any], slots: tuple[int, ...]) -> list[Any]:
        program = self._cuts.get(slots)
        if program is None:
            program = self._cuts[slots] = self._compiled.program.cut(slots)
        values = list(program.template)
        for slot, key in self._keys.items():
            parameter = self._parameters.get(key)
            values[slot] = self._buffers[key] if parameter is None else parameter
        for name, value in feeds.items():
            values[self._compiled.slots[name]] = value
        program.execute(values)
        return [values[slot] for slot in slots]

    def _free_key(self, name: str) -> str:
        key = name.replace(".", "/")
        while key in self._parameters or hasattr(self, key):
            key += "_"
        return key


class OnnxModule(GraphModule):
    """An image classifier from an ONNX graph: a torch module from images to class scores.

    Everything in `GraphModule` holds, and:

    - Images are cast to the graph's input type. A graph whose batch size is fixed is run batch by batch.
    - QuantizeLinear and its relatives pass gradients straight through, see `ops.quant`.
    - ``train()`` and ``eval()`` make no difference: Dropout passes on, BatchNormalization keeps its statistics.

    Attributes:
        spec: what `describe` says about the graph.
    """

    def __init__(self, model: ModelProto) -> None:
        """See `GraphModule`; raises ``UnsupportedModel`` too if the graph is no image classifier."""
        spec = describe(model)
        super().__init__(model)
        self.spec = spec
        self._layers = find_layers(self._compiled)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores [N, K] of ``images`` [N, C, H, W]: logits, or probabilities if the graph ends so."""
        slot = self._compiled.slot(self.spec.output_name)
        return self._in_batches(lambda batch: self._value(batch, slot).flatten(1), images)

    def layers(self) -> tuple[str, ...]:
        """Names of the layers in topological order, see `find_layers`."""
        return tuple(self._layers)

    def activations(self, images: Tensor, layer: str) -> Tensor:
        """The output [N, ...] of one of `layers` for ``images``; nothing after that layer is run."""
        found = self._layers[layer]
        return self._in_batches(lambda batch: found.real(self._value(batch, found.slot)), images)

    def _value(self, images: Tensor, slot: int) -> Tensor:
        result: Tensor = self._run({self.spec.input_name: images.to(_TYPES[self.spec.input_dtype])}, (slot,))[0]
        return result

    def _in_batches(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """``compute`` of all images, in batches of the size that the graph prescribes, if it does."""
        size = self.spec.input_shape[0] if self.spec.input_shape else None
        if size is None or size == len(images):
            return compute(images)
        results = []
        for batch in torch.split(images, size):
            filler = batch[-1:].expand(size - len(batch), *batch.shape[1:])
            results.append(compute(torch.cat([batch, filler]))[: len(batch)])
        return torch.cat(results)

    def write_back(self, model: ModelProto) -> ModelProto:
        """A copy of ``model`` (the one this module was built from) with the parameters' current values.

        Constants that are no parameters, quantised weights among them, stay as they are.
        """
        result = ModelProto()
        result.CopyFrom(model)
        stored = {tensor.name: tensor for tensor in result.graph.initializer}
        for node in result.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                stored[node.output[0]] = node.attribute[0].t
        parameters = dict(self.named_parameters())
        for key, name in self.weight_names.items():
            fresh = to_proto(parameters[key], stored[name])
            fresh.name = stored[name].name
            stored[name].CopyFrom(fresh)
        return result
