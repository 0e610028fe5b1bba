"""A network in two parts, cut at one of its layers: from images to the layer, and from the layer's output to logits.

``WhiteBox`` gives the first part. The second is found in the sequence of torch functions that the network calls: one of
these calls gives the layer's output, and when its result is exchanged, everything after it runs on what was put in.
Modules of any library and graphs out of ONNX files look the same there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.model import WhiteBox

AUTO = "auto"

_See: TypeAlias = Callable[[int, Tensor], Tensor]
"""Takes the number of a call, from 0, and its result; returns what the network goes on with."""


@dataclass(frozen=True)
class Cut:
    """Where the networks of one architecture are cut. Gradients flow through both parts."""

    layer: str
    shape: tuple[int, ...]
    """Of the layer's output for one image."""
    place: int
    """Which of the calls that give n x ``shape`` floats gives the layer's output, from 0."""
    black: Tensor
    """Black images, on which the first part runs while its output is exchanged: one if that is enough, else two."""

    def read(self, module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's output, n x ``shape``, and the n x K logits, from one forward pass."""
        found: list[Tensor] = []

        def keep(number: int, result: Tensor) -> Tensor:
            if number == self.place:
                found.append(result.clone())  # what follows may work in place
            return result

        with _Watched(self.shape, keep):
            logits = module(images)
        return found[0], logits

    def rest(self, module: nn.Module, features: Tensor) -> Tensor:
        """Return the n x K logits that follow from ``features``, n x ``shape``, as the layer's output."""
        images = self.black if len(self.black) == 1 else self.black[:1].expand(len(features), -1, -1, -1)

        def exchange(number: int, result: Tensor) -> Tensor:
            return features.clone() if number == self.place else result

        with _Watched(self.shape, exchange):
            logits: Tensor = module(images)
        return logits


class _Watched(TorchFunctionMode):
    """While it is active, the result of every torch function that has the shape of a layer's output can be changed."""

    def __init__(self, shape: tuple[int, ...], see: _See) -> None:
        super().__init__()
        self._shape, self._see, self._calls = shape, see, 0

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Call the function and show its result, if it has the shape and is of floats."""
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or result.shape[1:] != self._shape or not result.is_floating_point():
            return result
        self._calls += 1
        return self._see(self._calls - 1, result)


def cut_at(white: WhiteBox, layer: str, images: Tensor) -> Cut:
    """Cut a network at a layer that alone decides the logits, and make sure that both parts together are the network.

    Args:
        white: the network; it is put into evaluation mode. The cut holds for others of the same architecture.
        layer: one of ``white.layers()``, or ``auto``: the last one whose output has positions (more than one pixel
            or token); without such a layer the last one before the logits.
        images: two different N x C x H x W images in [0, 1], on the network's device.

    Raises:
        UsageError: no such layer, or the logits do not follow from its output alone.
        UnsupportedModel: no layer can be chosen.
    """
    with torch.no_grad():
        found = _chosen(white, images) if layer == AUTO else _cut(white, layer, images)
    if found is not None:
        return found
    if layer == AUTO:
        raise UnsupportedModel("no layer alone decides the logits: expected a free batch size, and nothing random")
    raise UsageError(f"the logits do not follow from layer {layer!r} alone: expected the end of a block, or auto")


def _chosen(white: WhiteBox, images: Tensor) -> Cut | None:
    logits = white.module(images).shape[1:]
    flat: list[str] = []
    for layer in reversed(white.layers()):
        shape = white.activate(images, layer).shape[1:]
        if shape[1:].numel() > 1:
            found = _cut(white, layer, images)
            if found is not None:
                return found
        elif shape != logits:
            flat.append(layer)
    return next((found for layer in flat if (found := _cut(white, layer, images)) is not None), None)


def _cut(white: WhiteBox, layer: str, images: Tensor) -> Cut | None:
    """Find the call that gives the layer's output; None if exchanging it does not give the logits that it should."""
    wanted, module, calls = white.activate(images, layer), white.module, list[int]()

    def compare(number: int, result: Tensor) -> Tensor:
        if torch.equal(result, wanted):
            calls.append(number)
        return result

    with _Watched(wanted.shape[1:], compare):
        logits = module(images)
    for black in (torch.zeros_like(images[:1]), torch.zeros_like(images)) if calls else ():
        found = Cut(layer, tuple(wanted.shape[1:]), calls[0], black)
        if _agrees(found, module, wanted, logits):
            return found
    return None


def _agrees(cut: Cut, module: nn.Module, features: Tensor, logits: Tensor) -> bool:
    try:
        answers = cut.rest(module, features)
    except (RuntimeError, ValueError):  # a network that compares its own shapes
        return False
    return answers.shape == logits.shape and torch.allclose(answers, logits, rtol=1e-3, atol=1e-4)
