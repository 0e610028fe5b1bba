"""Untrained networks for a thief who trains from scratch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fp_audit import plugins
from fp_audit.attacks._base import Task
from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.model import Adapter, LoadOptions, WhiteBox
from fp_audit.types import Access, Artifact, File, Listing, Skipped

if TYPE_CHECKING:
    import torch
    from torch import nn


@runtime_checkable
class _Resettable(Protocol):
    """A torch layer that knows how it is initialised."""

    def reset_parameters(self) -> None:
        """Draw the parameters anew, from torch's global generator."""


def same_architecture(task: Task) -> tuple[WhiteBox, Adapter]:
    """Open the victim's files again on the CPU, every weight drawn anew.

    Layers of torch are drawn as torch does by default (their moving statistics are reset). Other parameters, and
    all those of a graph out of an ONNX file: three axes or more as He, two as Glorot, vectors that
    multiply become 1 and vectors that are added 0; a single value is structure and stays. Statistics of
    BatchNormalization in an ONNX file become mean 0 and variance 1 for good: such a graph does not normalise.
    """
    import torch

    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.draw)
        artifact = task.artifact
        if artifact.path.suffix == ".onnx":
            artifact = _without_statistics(artifact, Path(scratch))
        model = task.adapter.load_white(artifact, replace(task.opening, device="cpu"))
        _redraw(model.module, task.sample())
    return model, task.adapter


def _redraw(module: nn.Module, images: torch.Tensor) -> None:
    from fp_audit.attacks._graph import uses

    multiplied = {id(use.parameter) for use in uses(module, images) if use.multiplies}
    drawn = set()
    for layer in module.modules():
        if isinstance(layer, _Resettable):
            layer.reset_parameters()
            drawn |= {id(parameter) for parameter in layer.parameters(recurse=False)}
    for parameter in module.parameters():
        if id(parameter) not in drawn and parameter.numel() > 1:
            _draw(parameter, multiplies=id(parameter) in multiplied)


def _draw(parameter: nn.Parameter, *, multiplies: bool) -> None:
    from torch import nn

    if parameter.ndim < 2:
        nn.init.constant_(parameter, 1.0 if multiplies else 0.0)
    elif parameter.ndim == 2:
        nn.init.xavier_normal_(parameter)
    else:
        nn.init.normal_(parameter, std=math.sqrt(2 / math.prod(parameter.shape[1:])))


def _without_statistics(artifact: Artifact, folder: Path) -> Artifact:
    """Write a copy of an ONNX file whose BatchNormalization nodes hold mean 0 and variance 1."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    model = onnx.load(artifact.path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            for name, value in zip(node.input[3:5], (0.0, 1.0), strict=True):
                fixed = np.full_like(numpy_helper.to_array(stored[name]), value)
                stored[name].CopyFrom(numpy_helper.from_array(fixed, name))
    onnx.save(model, folder / "model.onnx")
    return replace(artifact, entry="model.onnx", root=folder, files=())


def timm_architecture(name: str, task: Task, *, classes: int, size: int) -> tuple[WhiteBox, Adapter]:
    """Build an untrained timm network for the thief's images.

    Args:
        name: of the architecture, without a tag of pre-trained weights.
        task: gives seed, device and the images, from which the channels are taken.
        classes: number of outputs.
        size: height and width to which the images are resized.

    Raises:
        UsageError: timm has no such architecture, or it cannot be built for this size.
    """
    import torch

    adapter: Adapter = plugins.load("adapters", "timm")()
    for library in adapter.preload[Access.GRADIENTS]:
        import_module(library)  # in the adapter's order: timm needs torchvision made importable first
    import timm

    if not timm.is_model(name):
        raise UsageError(f"architecture is {name!r}: expected 'same' or a name of timm.list_models(), such as resnet18")
    stated = _pretrained_cfg(task.data.pixels.shape[1], size, classes)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(task.draw)
        try:
            network = timm.create_model(name, pretrained=False, num_classes=classes, pretrained_cfg_overlay=stated)
            network.eval()(torch.zeros(1, task.data.pixels.shape[1], size, size))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"{name} cannot be built for {size}x{size} images: {error}") from None
        timm.models.save_for_hf(network, scratch, safe_serialization=True)
        return adapter.load_white(_claimed(adapter, Path(scratch)), LoadOptions(task.opening.device)), adapter


def _claimed(adapter: Adapter, folder: Path) -> Artifact:
    """Let an adapter claim the model that it is known to find in a folder."""
    files = tuple(File(path.name, path.stat().st_size) for path in folder.iterdir())
    found = next(adapter.claim(Listing(str(folder), files, folder), lambda name: (folder / name).read_bytes()))
    if isinstance(found, Skipped):
        raise UnsupportedModel(f"the {adapter.name} adapter does not open it: {found.reason}")
    return found


def _pretrained_cfg(channels: int, size: int, classes: int) -> Mapping[str, Any]:
    """State how the network wants its images: resized as a whole to ``size``, values in [-1, 1]."""
    return {
        "input_size": (channels, size, size),
        "num_classes": classes,
        "mean": (0.5,) * channels,
        "std": (0.5,) * channels,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
