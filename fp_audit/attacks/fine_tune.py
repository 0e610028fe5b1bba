"""Fine-tuning: FTLL, FTAL, RTLL, RTAL and FT(p)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Unpack

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.engine import Recipe
from fp_audit.types import Access

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fp_audit.graph import LastLayer


class FineTune(Attack):
    """Trains the victim further on the thief's labelled images.

    Source: the four variants of Uchida et al., "Embedding Watermarks into Deep Neural Networks" (ICMR 2017), as used
    by Lukas et al. (ICLR 2021), section 5: ``ftll`` trains the last layer only, ``ftal`` all layers; ``rtll`` and
    ``rtal`` do the same after the last layer was drawn anew. ``ft`` trains the last ``share`` p of the layers (the
    other modes ignore it): FT(p) of Yao et al., "RemovalNet" (2023), table 1, with p = .5 and .8. Batches and
    optimiser are those of RemovalNet's baseline (SGD, momentum .9, batches of 128).

    Differences: Nesterov momentum; a learning rate of .001 instead of .01, at which networks whose BatchNorm was
    folded into their convolutions (most ONNX files) diverge. The last layer is found in the autograd graph
    (``graph.last_layer``), so that this works for any architecture; it is drawn anew as ``torch.nn.Linear`` draws
    it, weight and bias uniform in +-1 / sqrt(inputs). RemovalNet does not say how it counts layers: here each weight
    (two axes longer than 1) is one, in the order in which they run, and round(p x layers), at least one, are
    trained with the biases and normalisations that run after the first of them. ``ftll``, ``rtll`` and ``ft`` with
    p < 1 leave BatchNorm statistics and dropout alone; graphs out of ONNX files have no moving statistics in any mode.
    """

    name: ClassVar[str] = "fine-tune"
    summary: ClassVar[str] = "train the last, some or all layers further, also after drawing the last one anew"
    paper: ClassVar[str] = "Uchida et al., ICMR 2017; Lukas et al., ICLR 2021; RemovalNet, 2023"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "some epochs of training"
    keeps: ClassVar[str] = "nearly all of its accuracy and most of its weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=5.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        mode: Literal["ftll", "ftal", "rtll", "rtal", "ft"] = "ftal",
        share: float = 0.5,
        **training: Unpack[Training],
    ) -> None:
        require(0 < share <= 1, "share", share, "a share of the layers in (0, 1]")
        self.options = {"mode": mode, "share": share, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        from fp_audit.graph import last_layer

        mode, model = self.options["mode"], task.copy_of_victim()
        images = task.sample().to(task.opening.device)
        last = last_layer(model.module, images)
        if mode.startswith("rt"):
            redraw(last, task.draw)
        chosen = last.parameters if mode.endswith("ll") else None
        if mode == "ft" and self.options["share"] < 1:
            chosen = last_share(model.module, images, self.options["share"])
        steps = train(task, model, task.data, self.options, parameters=chosen, what=mode.upper())
        task.adapter.save(model, folder)
        return Surrogate(task.artifact.adapter, steps, facts={"last_layer": [list(p.shape) for p in last.parameters]})


def last_share(module: nn.Module, images: torch.Tensor, share: float) -> list[nn.Parameter]:
    """Return the parameters that are used in the last ``share`` of a network's layers, at least in one.

    Args:
        module: from images to logits.
        images: one or a few, N x C x H x W in [0, 1], on the module's device.
        share: in (0, 1].
    """
    from fp_audit.graph import uses

    first: dict[nn.Parameter, int] = {}
    for use in uses(module, images):
        first[use.parameter] = min(use.order, first.get(use.parameter, use.order))
    layers = sorted(order for parameter, order in first.items() if sum(size > 1 for size in parameter.shape) >= 2)
    start = layers[-max(1, round(share * len(layers)))]
    return [parameter for parameter, order in first.items() if order >= start]


def redraw(layer: LastLayer, seed: int) -> None:
    """Draw a layer's weights and biases anew, uniform in +-1 / sqrt(inputs), as ``torch.nn.Linear`` does."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    bound = layer.inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters:
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
