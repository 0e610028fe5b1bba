"""The victim's architecture once more, untrained: for thieves and for networks that are trained beside it."""

from __future__ import annotations

import hashlib
import math
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fp_audit import plugins
from fp_audit.augmentation import plain
from fp_audit.model import Adapter, LoadOptions, WhiteBox, as_images
from fp_audit.subject import file_digests
from fp_audit.types import Artifact, Pixels

if TYPE_CHECKING:
    import torch
    from torch import nn


@runtime_checkable
class _Resettable(Protocol):
    """A torch layer that knows how it is initialised."""

    def reset_parameters(self) -> None:
        """Draw the parameters anew, from torch's global generator."""


@dataclass(frozen=True)
class Architecture:
    """How to build a model's architecture again, every weight drawn anew. Can be sent to another process."""

    adapter: str
    """Name of the model's adapter."""
    artifact: Artifact
    """The model's files; fetched."""
    opening: LoadOptions
    """``preprocess`` is set where the files do not state it; ``device`` is ignored."""

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over adapter, preprocessing and the content of the model's files."""
        state = hashlib.sha256(f"{self.adapter} {self.opening.preprocess}".encode())
        for path in self.artifact.local_files():
            state.update(file_digests(path)["sha256"].encode())
        return state.hexdigest()

    def fresh(self, *, seed: int, sample: Pixels, device: str = "cpu") -> WhiteBox:
        """Open the model's files again, every weight drawn anew.

        Layers of torch are drawn as torch does by default (their moving statistics are reset). Other parameters, and
        all those of a graph out of an ONNX file: three axes or more as He, two as Glorot, vectors that
        multiply become 1 and vectors that are added 0; a single value is structure and stays. Statistics of
        BatchNormalization in an ONNX file become mean 0 and variance 1 for good: such a graph does not normalise.
        A random preprocessing that the folder states is left out.

        Args:
            seed: the weights follow from it. They are drawn on the CPU: the same for every device.
            sample: one or a few of the images that the network is for, N x C x H x W.
            device: where the network is to be.
        """
        import torch

        adapter: Adapter = plugins.load("adapters", self.adapter)()
        with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            artifact = plain(self.artifact)
            if artifact.path.suffix == ".onnx":
                artifact = _without_statistics(artifact, Path(scratch))
            model = adapter.load_white(artifact, replace(self.opening, device="cpu"))
            _redraw(model.module, torch.from_numpy(as_images(sample)))
            if device == "cpu":
                return model
            moved = adapter.load_white(artifact, replace(self.opening, device=device))
        moved.module.load_state_dict(model.module.state_dict())
        return moved


def _redraw(module: nn.Module, images: torch.Tensor) -> None:
    from fp_audit.graph import uses

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
