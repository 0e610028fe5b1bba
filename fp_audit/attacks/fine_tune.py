"""Fine-tuning: FTLL, FTAL, RTLL and RTAL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Unpack

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, train
from fp_audit.engine import Recipe
from fp_audit.types import Access

if TYPE_CHECKING:
    from fp_audit.graph import LastLayer


class FineTune(Attack):
    """Trains the victim further on the thief's labelled images.

    Source: the four variants of Uchida et al., "Embedding Watermarks into Deep Neural Networks" (ICMR 2017), as used
    by Lukas et al. (ICLR 2021), section 5: ``ftll`` trains the last layer only, ``ftal`` all layers; ``rtll`` and
    ``rtal`` do the same after the last layer was drawn anew. Batches and optimiser are those of RemovalNet's
    baseline (SGD, momentum .9, batches of 128).

    Differences: Nesterov momentum; a learning rate of .001 instead of .01, at which networks whose BatchNorm was
    folded into their convolutions (most ONNX files) diverge. The last layer is found in the autograd graph
    (``graph.last_layer``), so that this works for any architecture; it is drawn anew as ``torch.nn.Linear`` draws
    it, weight and bias uniform in +-1 / sqrt(inputs). ``ftll`` and ``rtll`` leave BatchNorm statistics and dropout
    alone; graphs out of ONNX files have no moving statistics in any mode.
    """

    name: ClassVar[str] = "fine-tune"
    summary: ClassVar[str] = "train the last or all layers further, also after drawing the last one anew"
    paper: ClassVar[str] = "Uchida et al., ICMR 2017; Lukas et al., ICLR 2021"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "some epochs of training"
    keeps: ClassVar[str] = "nearly all of its accuracy and most of its weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=5.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        mode: Literal["ftll", "ftal", "rtll", "rtal"] = "ftal",
        **training: Unpack[Training],
    ) -> None:
        self.options = {"mode": mode, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        from fp_audit.graph import last_layer

        model = task.copy_of_victim()
        last = last_layer(model.module, task.sample().to(task.opening.device))
        if self.options["mode"].startswith("rt"):
            redraw(last, task.draw)
        chosen = last.parameters if self.options["mode"].endswith("ll") else None
        steps = train(task, model, task.data, self.options, parameters=chosen, what=self.options["mode"].upper())
        task.adapter.save(model, folder)
        return Surrogate(task.artifact.adapter, steps, facts={"last_layer": [list(p.shape) for p in last.parameters]})


def redraw(layer: LastLayer, seed: int) -> None:
    """Draw a layer's weights and biases anew, uniform in +-1 / sqrt(inputs), as ``torch.nn.Linear`` does."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    bound = layer.inputs**-0.5
    with torch.no_grad():
        for parameter in layer.parameters:
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
