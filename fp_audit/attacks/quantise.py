"""Quantisation to 8 bits through onnxruntime, and rounding to 16 bits."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fp_audit.attacks._base import Attack, Surrogate, Task, require
from fp_audit.attacks._export import as_onnx, quietly
from fp_audit.errors import UnsupportedModel
from fp_audit.model import as_images
from fp_audit.preprocess import Preprocess, affine_map
from fp_audit.types import Access, Images, Pixels

if TYPE_CHECKING:
    import onnx
    from torch import nn

_BATCH = 32
"""Images in one batch of calibration."""


class Quantise(Attack):
    """Stores the weights in 8 bits, as an ONNX file, or rounds them to 16 bits.

    Source: onnxruntime.quantization. ``dynamic``: weights are stored in 8 bits, the scale of activations is found
    anew for every input. ``static``: QDQ form, activation scales from the smallest and largest values that
    ``calibration`` of the thief's images give. A victim that is no ONNX file is exported first, its network alone,
    as such files on hubs are: how images are preprocessed is then no longer stated.

    ``fp16`` and ``bf16``: every weight is rounded to the nearest number that IEEE half precision or bfloat16 holds, and
    saved by the victim's own adapter, which computes in float32 as before: what a half precision copy loses in its
    weights, without what arithmetic in half precision would lose on top. Values too large for fp16 are refused.

    Defaults: signed weights and activations (dynamic activations are unsigned), one scale a tensor
    (``per_channel``: one an output channel). Differences: onnxruntime's graph optimisation beforehand is left out, and
    so are the shapes stored in the file, which its shape inference may contradict.
    """

    name: ClassVar[str] = "quantise"
    summary: ClassVar[str] = "store weights (and compute) in 8 bits, as an ONNX file, or round them to 16"
    paper: ClassVar[str] = "Jacob et al., CVPR 2018, as onnxruntime.quantization implements it"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "seconds"
    keeps: ClassVar[str] = "accuracy within a point, weights up to rounding"

    def __init__(
        self,
        *,
        mode: Literal["dynamic", "static", "fp16", "bf16"] = "dynamic",
        per_channel: bool = False,
        calibration: int = 256,
    ) -> None:
        require(calibration > 0, "calibration", calibration, "a number of images above 0")
        self.options = {"mode": mode, "per_channel": per_channel, "calibration": calibration}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        if self.options["mode"] in ("fp16", "bf16"):
            return self._to_16_bits(task, folder)
        return self._to_8_bits(task, folder)

    def _to_16_bits(self, task: Task, folder: Path) -> Surrogate:
        model = task.copy_of_victim()
        changed = round_weights(model.module, self.options["mode"])
        task.adapter.save(model, folder)
        task.progress("rounding", 1.0)
        return Surrogate(task.artifact.adapter, facts={"rounded_values": changed})

    def _to_8_bits(self, task: Task, folder: Path) -> Surrogate:
        import onnx

        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        with tempfile.TemporaryDirectory() as scratch, quietly():
            source, output = Path(scratch) / "float.onnx", folder / "model.onnx"
            model, preprocess, exporter = as_onnx(task, folder)
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


def round_weights(module: nn.Module, precision: Literal["fp16", "bf16"]) -> int:
    """Round the parameters and floating point buffers of a network to 16 bits and return how many values changed.

    Raises:
        UnsupportedModel: a value is too large.
    """
    import torch

    half, changed = torch.float16 if precision == "fp16" else torch.bfloat16, 0
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            rounded = tensor.to(half).to(tensor.dtype)
            if (rounded.isinf() & tensor.isfinite()).any():
                raise UnsupportedModel(
                    f"{name} holds values beyond the largest of {precision}, {torch.finfo(half).max:g}"
                )
            changed += int((rounded != tensor).sum())
            tensor.copy_(rounded)
    return changed


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
