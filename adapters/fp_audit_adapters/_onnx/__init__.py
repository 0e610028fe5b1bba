"""ONNX files, read as hostile, as tensors, and as differentiable torch modules.

Four steps, each usable alone:

1. ``read_model(path, root)`` parses a file that may be hostile: no external data outside ``root``, no custom
   operators, one clear error a problem. ``describe(model)`` tells its input, output and opset (``graph``).
2. ``tensors(model)`` gives the weights by name as float arrays, int8 ones dequantised (``weights``).
3. ``OnnxModule(model)`` runs the graph in torch (``executor``): logits, activations, gradients, fine-tuning. Its
   parts: ``compiler`` turns the graph into a ``program`` of closures over the pure functions in ``ops``.
4. ``OnnxModule.write_back(model)`` returns the graph with the current values of the parameters.

Steps 1 and 2 need numpy and onnx only; torch is imported when ``OnnxModule`` is first asked for.
"""

from typing import TYPE_CHECKING, Any

from fp_audit_adapters._onnx.graph import GraphSpec, describe, read_model
from fp_audit_adapters._onnx.weights import tensors

if TYPE_CHECKING:
    from fp_audit_adapters._onnx.executor import OnnxModule

__all__ = ["GraphSpec", "OnnxModule", "describe", "read_model", "tensors"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (the module protocol, PEP 562)
    if name == "OnnxModule":
        from fp_audit_adapters._onnx.executor import OnnxModule

        return OnnxModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
