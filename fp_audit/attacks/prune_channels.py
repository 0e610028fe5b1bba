"""Structured pruning: whole output channels are silenced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.engine import Recipe
from fp_audit.errors import UnsupportedModel
from fp_audit.types import Access

if TYPE_CHECKING:
    import torch
    from torch import nn

_FOLLOWING = ("Add", "Mul", "Sub", "Div")
"""Operations between a convolution's output and a constant that may hold its bias or its normalisation."""


class PruneChannels(Attack):
    """Sets whole output channels of convolutions to zero, those whose weights have the smallest L1 norm.

    Source: Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), section 3.1: in each layer the
    floor(``rate`` x channels) channels of smallest sum of absolute weights go, with their bias and the scale and
    shift of the normalisation that follows. With ``epochs`` the rest is trained further and the zeros stay zero.
    ``scope=global`` ranks the channels of all layers together, by the mean instead of the sum of absolute
    weights since layers differ in size; one channel of each layer always stays.

    Differences: channels are silenced, not cut out: shapes and files stay as they are, so that it works for every
    architecture; the answers are those of the smaller network. Every convolution is pruned, also those
    before a residual sum, which the paper prunes together. Linear layers are left alone: a network without
    convolutions is refused, and of a vision transformer only the patch embedding is pruned. Transposed convolutions
    and one that makes the logits are left alone too.
    """

    name: ClassVar[str] = "prune-channels"
    summary: ClassVar[str] = "silence the convolutions' smallest channels, then train the rest further if asked"
    paper: ClassVar[str] = "Li et al., ICLR 2017"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "minutes; more with fine-tuning"
    keeps: ClassVar[str] = "accuracy at small rates only, unless it is fine-tuned"
    recipe: ClassVar[Recipe] = Recipe(epochs=0.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        rate: float = 0.2,
        scope: Literal["layer", "global"] = "layer",
        **training: Unpack[Training],
    ) -> None:
        require(0 <= rate < 1, "rate", rate, "a share in [0, 1)")
        self.options = {"rate": rate, "scope": scope, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        model = task.copy_of_victim()
        found = convolutions(model.module, task.sample().to(task.opening.device))
        if not found:
            raise UnsupportedModel(f"{task.artifact.target}: no convolution to prune; use the attack prune instead")
        norms = [layer.weight.detach().abs().flatten(1) for layer in found]
        rate = self.options["rate"]
        if self.options["scope"] == "layer":
            silent = [smallest(norm.sum(1), int(rate * len(norm))) for norm in norms]
        else:
            silent = smallest_of_all([norm.mean(1) for norm in norms], int(rate * sum(map(len, norms))))
        keep, steps = silencer(found, silent), 0
        keep()
        if self.options["epochs"]:
            steps = train(task, model, task.data, self.options, after_step=keep, what="fine-tuning what is left")
        task.adapter.save(model, folder)
        counts = {"channels": sum(map(len, norms)), "silenced": sum(int(mask.sum()) for mask in silent)}
        return Surrogate(task.artifact.adapter, steps, facts=counts)


@dataclass(frozen=True)
class Convolution:
    """A convolution and what is added to its output channels or scales them."""

    weight: nn.Parameter
    """C' x C x H x W."""
    vectors: list[nn.Parameter]
    """Its bias, and scale and shift of the normalisation that follows: C' values each."""


def convolutions(module: nn.Module, images: torch.Tensor) -> list[Convolution]:
    """Find the convolutions of a network in its autograd graph, the nearest to the logits first.

    Args:
        module: from images to logits.
        images: one or a few, N x C x H x W in [0, 1], on the module's device.
    """
    from fp_audit.graph import last_layer

    readers, last = defaultdict(list), {id(parameter) for parameter in last_layer(module, images).parameters}
    nodes = list(_nodes(module(images).grad_fn))
    for node in nodes:
        for below, _ in node.next_functions:
            readers[below].append(node)
    found: dict[int, Convolution] = {}
    for node in nodes:
        if type(node).__name__ != "ConvolutionBackward0" or node._saved_transposed:
            continue
        weight = _leaf(node.next_functions[1][0])
        if weight is not None and id(weight) not in last:
            found.setdefault(id(weight), Convolution(weight, list(_vectors(node, len(weight), readers))))
    return list(found.values())


def _nodes(start: Any) -> Iterator[Any]:  # noqa: ANN401 (torch does not type autograd nodes)
    waiting, seen = [start], {start}
    for node in waiting:
        yield node
        new = [below for below, _ in node.next_functions if below is not None and below not in seen]
        waiting.extend(dict.fromkeys(new))
        seen.update(new)


def _vectors(node: Any, channels: int, readers: dict[Any, list[Any]]) -> Iterator[nn.Parameter]:  # noqa: ANN401
    """Yield the parameters of ``channels`` values that meet a convolution's output before anything else does."""
    while True:
        for below, _ in node.next_functions:
            parameter = _leaf(below)
            if parameter is not None and parameter.numel() == channels:
                yield parameter
        after = readers[node]
        if len(after) != 1 or not _is_affine(after[0], node):
            return
        node = after[0]


def _is_affine(node: Any, data: Any) -> bool:  # noqa: ANN401
    """Tell whether an operation scales and shifts ``data`` by constants and parameters only."""
    operation = type(node).__name__
    others = [below for below, _ in node.next_functions if below is not None and below is not data]
    known = "BatchNorm" in operation or operation.startswith(_FOLLOWING)
    return known and all(_leaf(below) is not None for below in others)


def _leaf(node: Any) -> nn.Parameter | None:  # noqa: ANN401
    """Return the parameter that a node of the graph holds, through views of it."""
    from torch import nn

    while type(node).__name__ in ("ViewBackward0", "ReshapeAliasBackward0", "UnsqueezeBackward0"):
        node = node.next_functions[0][0]
    held = getattr(node, "variable", None)
    return held if isinstance(held, nn.Parameter) else None


def smallest(norms: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the ``count`` smallest of some norms, among equals the first ones."""
    import torch

    mask = torch.zeros(len(norms), dtype=torch.bool, device=norms.device)
    mask[norms.argsort(stable=True)[:count]] = True
    return mask


def smallest_of_all(norms: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Mark the ``count`` smallest norms of several layers, but never the largest one of a layer."""
    import torch

    candidates = [norm.clone() for norm in norms]
    for norm in candidates:
        norm[norm.argmax()] = torch.inf
    joined = torch.cat(candidates)
    chosen = smallest(joined, min(count, int(joined.isfinite().sum())))
    return list(torch.tensor_split(chosen, list(accumulate(map(len, norms)))[:-1]))


def silencer(found: list[Convolution], silent: list[torch.Tensor]) -> Callable[[], None]:
    """Return a function that sets the marked channels of each convolution to zero."""
    import torch

    def keep() -> None:
        with torch.no_grad():
            for layer, mask in zip(found, silent, strict=True):
                layer.weight[mask] = 0.0
                for vector in layer.vectors:
                    vector.view(-1)[mask] = 0.0

    return keep
