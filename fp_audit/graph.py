"""Which parameter does what in a network, read off the autograd graph of one forward pass.

Modules of any library and graphs out of ONNX files look the same there, whatever their layers are called.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fp_audit.errors import UnsupportedModel


@dataclass(frozen=True)
class Use:
    """One use of a parameter by one operation."""

    parameter: nn.Parameter
    operation: str
    """Torch's name of the operation's derivative, for example ``AddmmBackward0``."""
    slot: int
    """Which input of the operation it is, from 0."""
    distance: int
    """Number of operations between it and the logits."""
    order: int
    """When the operation ran: later ones have larger numbers."""

    @property
    def multiplies(self) -> bool:
        """Whether the operation scales values by it, as normalisations do with their second input."""
        return self.operation.startswith(("Mul", "Div")) or ("Norm" in self.operation and self.slot == 1)


def uses(module: nn.Module, images: torch.Tensor) -> list[Use]:
    """List the uses of parameters in ``module``, the nearest to the logits first.

    Args:
        module: from images to logits; taken in the mode it is in.
        images: one or a few N x C x H x W images in [0, 1], on the module's device.
    """
    return list(_walk(_logits(module, images).grad_fn))


@dataclass(frozen=True)
class LastLayer:
    """The layer that makes the logits."""

    parameters: list[nn.Parameter]
    """Weights, and the biases added after them."""
    inputs: int
    """Values that go into one logit."""


def last_layer(module: nn.Module, images: torch.Tensor) -> LastLayer:
    """Find the layer that makes the logits.

    It is the operation with a weight that is nearest to the logits; a weight has two axes or more and more values
    than there are classes. Two layers at the same distance (a head and a distillation head) are both last.

    Raises:
        UnsupportedModel: no operation has a weight that can be trained.
    """
    logits = _logits(module, images)
    classes, found = logits.shape[1], list(_walk(logits.grad_fn))
    weights = [use for use in found if use.parameter.ndim >= 2 and use.parameter.numel() > classes]
    if not weights:
        raise UnsupportedModel("the model has no last layer with weights that can be trained")
    chosen = {id(use.parameter): use.parameter for use in found if use.distance <= weights[0].distance}
    return LastLayer(list(chosen.values()), weights[0].parameter.numel() // classes)


def _logits(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = module(images.clone().requires_grad_())  # then the images are an input like any other
    return logits


def _walk(start: Any) -> Iterator[Use]:  # noqa: ANN401 (torch does not type autograd nodes)
    """Go through the graph breadth first, from the logits back to the images."""
    waiting, seen = deque([(start, 0)]), {start}
    while waiting:
        node, distance = waiting.popleft()
        for slot, (below, _) in enumerate(node.next_functions):
            parameter = _parameter_behind(below)
            if parameter is not None:
                yield Use(parameter, type(node).__name__, slot, distance, node._sequence_nr())
            elif below is not None and below not in seen:
                seen.add(below)
                waiting.append((below, distance + 1))


def _parameter_behind(node: Any) -> nn.Parameter | None:  # noqa: ANN401
    """Return the parameter that ``node`` is a function of and of nothing else, for example its transpose."""
    while node is not None:
        if type(node).__name__ == "AccumulateGrad":
            return node.variable if isinstance(node.variable, nn.Parameter) else None
        inputs = [below for below, _ in node.next_functions if below is not None]
        node = inputs[0] if len(inputs) == 1 else None
    return None
