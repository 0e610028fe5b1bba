"""The victim as an ONNX graph, for attacks that work on such graphs."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fp_audit.attacks._base import Task
from fp_audit.augmentation import plain, stated
from fp_audit.errors import UnsupportedModel
from fp_audit.preprocess import Preprocess
from fp_audit.types import InputSpec

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 20
"""Of exported graphs: what torch's exporter writes without converting versions."""


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


def as_onnx(task: Task, folder: Path) -> tuple[onnx.ModelProto, Preprocess, str]:
    """Return the victim's graph, how it wants its images, and who wrote it: ``none`` where it is an ONNX file already.

    A random preprocessing of the victim is stated in ``folder``, the surrogate's.

    Raises:
        UnsupportedModel: the victim is neither an ONNX file nor a torch network.
    """
    if random := stated(task.artifact):
        random.save(folder)
    if task.artifact.path.suffix == ".onnx":
        import onnx

        return onnx.load(task.artifact.path), task.opening.preprocess or Preprocess(), "none"
    model = task.adapter.load_white(plain(task.artifact), replace(task.opening, device="cpu"))
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


@contextmanager
def quietly() -> Iterator[None]:
    """Silence what the exporter and onnxruntime log and warn about; what matters comes as an exception."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
