"""Quantisation to 8 bits through onnxruntime."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, require
from fp_audit.errors import UnsupportedModel
from fp_audit.model import as_images
from fp_audit.preprocess import Preprocess, affine_map
from fp_audit.types import Access, Images, InputSpec, Pixels

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 20
"""Of exported graphs: what torch's exporter writes without converting versions."""

_BATCH = 32
"""Images in one batch of calibration."""


class Quantise(Attack):
    """Turns the victim into an ONNX file with 8 bit weights.

    Source: onnxruntime.quantization. ``dynamic``: weights are stored in 8 bits, the scale of activations is found
    anew for every input. ``static``: QDQ form, activation scales from the smallest and largest values that
    ``calibration`` of the thief's images give. A victim that is no ONNX file is exported first, its network alone,
    as such files on hubs are: how images are preprocessed is then no longer stated.

    Defaults: signed weights and activations (dynamic activations are unsigned), one scale a tensor
    (``per_channel``: one an output channel). Differences: onnxruntime's graph optimisation beforehand is left out, and
    so are the shapes stored in the file, which its shape inference may contradict.
    """

    name: ClassVar[str] = "quantise"
    summary: ClassVar[str] = "store weights (and compute) in 8 bits, as an ONNX file"
    paper: ClassVar[str] = "Jacob et al., CVPR 2018, as onnxruntime.quantization implements it"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "seconds"
    keeps: ClassVar[str] = "accuracy within a point, weights up to rounding"

    def __init__(
        self, *, mode: Literal["dynamic", "static"] = "dynamic", per_channel: bool = False, calibration: int = 256
    ) -> None:
        require(calibration > 0, "calibration", calibration, "a number of images above 0")
        self.options = {"mode": mode, "per_channel": per_channel, "calibration": calibration}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        import onnx

        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        with tempfile.TemporaryDirectory() as scratch, _quietly():
            source, output = Path(scratch) / "float.onnx", folder / "model.onnx"
            model, preprocess, exporter = _as_onnx(task)
            task.progress("quantising", 0.3)
            del model.graph.value_info[:]
            onnx.save(model, source)
            if self.options["mode"] == "dynamic":
                _dynamic(source, output, per_channel=self.options["per_channel"])
            else:
                chosen = np.random.default_rng(task.seed).permutation(len(task.data))[: self.options["calibration"]]
                batches = _batches(model, task.data.pixels[np.sort(chosen)], preprocess)
                _static(source, output, batches, per_channel=self.options["per_channel"])
            task.progress("quantising", 1.0)
        return Surrogate("onnx", preprocess=preprocess, facts={"exporter": exporter, **_sizes(output)})


def _dynamic(source: Path, output: Path, *, per_channel: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, output, per_channel=per_channel, weight_type=QuantType.QInt8)


def _static(source: Path, output: Path, batches: Iterator[dict[str, Images]], *, per_channel: bool) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Images] | None:
            return next(batches, None)

    int8 = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    quantize_static(source, output, Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel, **int8)


def _batches(model: onnx.ModelProto, pixels: Pixels, preprocess: Preprocess) -> Iterator[dict[str, Images]]:
    """Yield what a graph is fed with, in batches of the size that it prescribes, if it does."""
    stored = {tensor.name for tensor in model.graph.initializer}
    fed = next(value for value in model.graph.input if value.name not in stored)
    count, channels, height, width = (size.dim_value for size in fed.type.tensor_type.shape.dim)
    if height and width and not (preprocess.resize or preprocess.shortest_edge):
        preprocess = replace(preprocess, resize=(height, width))
    prepare = affine_map(preprocess, (pixels.shape[2], pixels.shape[3]), pixels.shape[1], channels)
    step = count or _BATCH
    for start in range(0, len(pixels), step):
        block = pixels[start : start + step]
        if count in (0, len(block)):
            yield {fed.name: prepare(as_images(block)).astype(np.float32, copy=False)}


@runtime_checkable
class _Exportable(Protocol):
    """What the models of torch adapters offer beyond ``WhiteBox``."""

    @property
    def network(self) -> torch.nn.Module:
        """The bare network, without its preprocessing."""

    @property
    def preprocess(self) -> Preprocess:
        """How images in [0, 1] become its input."""

    @property
    def spec(self) -> InputSpec:
        """See ``BlackBox.spec``."""


def _as_onnx(task: Task) -> tuple[onnx.ModelProto, Preprocess, str]:
    """Return the victim's graph, how it wants its images, and who wrote it: ``none`` where it is an ONNX file already.

    Raises:
        UnsupportedModel: the victim is neither an ONNX file nor a torch network.
    """
    if task.artifact.path.suffix == ".onnx":
        import onnx

        return onnx.load(task.artifact.path), task.opening.preprocess or Preprocess(), "none"
    model = task.adapter.load_white(task.artifact, replace(task.opening, device="cpu"))
    if not isinstance(model, _Exportable):
        raise UnsupportedModel(f"{task.artifact.target}: the {task.adapter.name} adapter gives no network to export")
    height, width = model.spec.height, model.spec.width
    size = (height or task.data.pixels.shape[2], width or task.data.pixels.shape[3])
    graph, exporter = export(model.network, (model.spec.channels, *size))
    return graph, model.preprocess, exporter


def export(network: torch.nn.Module, shape: tuple[int, int, int]) -> tuple[onnx.ModelProto, str]:
    """Export a network to ONNX, opset ``OPSET``, with any number of images.

    Args:
        network: from N x C x H x W to logits.
        shape: C, H, W.

    Returns:
        The graph, and ``dynamo``; or ``legacy (reason)`` where torch's current exporter fails.
    """
    import onnx
    import torch

    sample = torch.zeros(2, *shape)
    names: dict[str, Any] = {
        "input_names": ["pixel_values"],
        "output_names": ["logits"],
        "opset_version": OPSET,
        "verbose": False,
    }
    bare = _logits_only(network)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        try:
            axes: Any = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(bare, (sample,), path, dynamo=True, external_data=False, dynamic_shapes=axes, **names)
            exporter = "dynamo"
        except torch.onnx.OnnxExporterError as error:
            axes = {"pixel_values": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(bare, (sample,), path, dynamo=False, dynamic_axes=axes, **names)
            exporter = f"legacy ({str(error).partition(chr(10))[0]})"
        return onnx.load(path), exporter


def _logits_only(network: torch.nn.Module) -> torch.nn.Module:
    """Wrap a network whose answer has other parts than the logits, as those of transformers do."""
    import torch

    class LogitsOnly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            answer = self.network(pixel_values)
            logits: torch.Tensor = answer if isinstance(answer, torch.Tensor) else answer.logits
            return logits

    return LogitsOnly().eval()


def _sizes(path: Path) -> dict[str, int]:
    """Count the stored values of a graph, and those of them that have 8 bits.

    Raises:
        UnsupportedModel: none has.
    """
    import onnx

    tensors = onnx.load(path).graph.initializer
    small = [tensor for tensor in tensors if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)]
    values, int8 = (sum(math.prod(tensor.dims) for tensor in group) for group in (tensors, small))
    if not any(tensor.dims for tensor in small):
        raise UnsupportedModel("onnxruntime found nothing in the graph that it quantises")
    return {"values": values, "int8_values": int8}


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what the exporter and the quantiser log and warn about; what matters comes as an exception."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
