"""Noise that was driven into the victim's classes (characteristic examples)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.engine import Progress, batch_size, device_of, silent
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._perturbed import mean_loss
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.model import WhiteBox, as_images, as_probabilities
from fp_audit.subject import Subject
from fp_audit.types import Access, InputSpec, Pixels, Scatter

if TYPE_CHECKING:
    import torch

    from fp_audit.descent import Found
    from fp_audit.workshop import Workshop

VARIANTS = ("vce", "rce", "rce-gm", "rce-lt")

ROUNDS = 4
"""How often noise is drawn for the queries that are still missing."""

LEAST: Mapping[str, float] = {
    "queries": 1,
    "delta": 0,
    "draws": 1,
    "mask": 0,
    "steps": 1,
    "batch": 1,
    "side": 1,
}
"""Least value of an option."""


class Characteristic(Queried):
    """Matching rate of top-1 labels on noise that was driven into random classes of the victim; in [0, 1].

    An image begins as noise, uniform in [0, 1], and is given a class t at random, all classes equally often. Targeted
    PGD, ``x <- clip(x - step * sign(gradient of the cross-entropy with t))``, moves it until the victim is sure of t.
    What the victim then puts into t as uint8 is kept, the rest is replaced by further noise. The suspect's labels are
    compared with the victim's. No data are looked at, also where there are some.

    - ``vce``: the gradient is the victim's.
    - ``rce``: it is taken at the parameters theta + delta', delta' uniform in [-delta, delta] and drawn anew each step.
    - ``rce-gm``: the mean of ``draws`` such gradients.
    - ``rce-lt``: as ``rce``, and the victim is shown x without the mask x mask lowest frequencies of its DCT.

    Source: Wang et al., "Characteristic Examples", IJCAI 2021, as the authors of CSRP describe and use it.
    Differences: an image moves on until the victim gives t the probability ``confidence`` or its steps are used up, not
    only until it says t (``confidence=0``: on 8 x 8 digits an epoch of fine-tuning moved a third of such images out
    again); the images of a step share its draws of delta'; parameters are perturbed, statistics of BatchNorm and
    quantised weights are not; filtered images have no mean, so mid-grey is added before they are clipped to [0, 1],
    which lets a little of the low frequencies in again. CSRP's authors leave open how large and how many the steps are,
    and the mask; the defaults here are this project's.

    Args:
        queries: images to keep.
        variant: see above.
        delta: bound of the perturbation, in units of the weights; not used by ``vce``.
        draws: gradients to average; used by ``rce-gm``.
        mask: frequencies to remove in each direction; 0: a quarter of the image's shorter side. Used by ``rce-lt``.
        confidence: probability of t, after rounding to uint8, at which an image is left alone; with 0 it is enough
            that t is the most likely class. Images that never get there are kept if t is the most likely class.
        epsilon: most change of a pixel of the noise; 1 leaves it the whole of [0, 1].
        step: change of a pixel in one step.
        steps: most steps per image.
        batch: most images at once; fewer where memory is short. As they share draws, the queries depend on it.
        side: height and width of the images where the victim takes any.
    """

    name: ClassVar[str] = "characteristic"
    summary: ClassVar[str] = "agreement of labels on noise driven into the victim's classes; needs no data"
    paper: ClassVar[str] = "Wang et al., IJCAI 2021"
    withstands: ClassVar[str] = "quantisation, fine-tuning, pruning that keeps the accuracy"
    misses: ClassVar[str] = "extraction, and random resizing before the network; on some tasks independents match too"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_data: ClassVar[bool] = False
    aligned: ClassVar[bool] = True
    query_set: ClassVar[str | None] = "characteristic"
    scatter: ClassVar[Scatter] = Scatter(0.15)
    """Small references may all say one class of any noise, and then do not differ at all. Published scores of 100
    independents of one recipe (CSRP's table 2: CIFAR-10, three architectures) deviate by .07 to .16, judged by their
    range."""

    def __init__(
        self,
        *,
        queries: int = 100,
        variant: str = "rce",
        delta: float = 0.001,
        draws: int = 10,
        mask: int = 0,
        confidence: float = 0.99,
        epsilon: float = 1.0,
        step: float = 0.01,
        steps: int = 500,
        batch: int = 128,
        side: int = 32,
    ) -> None:
        self.options = {
            "queries": queries,
            "variant": variant,
            "delta": delta,
            "draws": draws,
            "mask": mask,
            "confidence": confidence,
            "epsilon": epsilon,
            "step": step,
            "steps": steps,
            "batch": batch,
            "side": side,
        }
        _check(self.options)

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"gives the victim's label to {score:.0%} of the noise made for the victim" + versus(null, ".0%")

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        del data
        import torch

        model, budget = victim.white_box(), self.options["queries"]
        shape = image_shape(model.spec, self.options["side"])
        mask = self._mask(min(shape[1:]))
        generator = torch.Generator(device_of(model.module)).manual_seed(int(rng.integers(2**63)))
        made: list[_Made] = []
        for _ in range(ROUNDS):
            missing = budget - sum(len(part.pixels) for part in made)
            if missing == 0:
                break
            noise = rng.random((missing, *shape), np.float32)
            made.append(self._make(model, noise, mask, rng, generator, workshop.progress))
        facts = {"variant": self.options["variant"], "mask": mask, **_summary(made, budget)}
        return Queries(np.concatenate([part.pixels for part in made]), facts)

    def _mask(self, side: int) -> int:
        """Return how many frequencies are removed in each direction of an image of this shorter side."""
        if self.options["variant"] != "rce-lt":
            return 0
        mask = int(self.options["mask"] or math.ceil(side / 4))
        if mask >= side:
            raise UsageError(f"characteristic: mask is {mask}; expected less than the image's shorter side, {side}")
        return mask

    def _make(
        self,
        model: WhiteBox,
        noise: NDArray[np.float32],
        mask: int,
        rng: np.random.Generator,
        generator: torch.Generator,
        progress: Progress,
    ) -> _Made:
        """Drive N images of noise into random classes; keep those that the victim takes for it as uint8."""
        import torch

        from fp_audit.descent import as_pixels

        module, options = model.module, self.options
        start = torch.from_numpy(noise).to(generator.device)
        with torch.no_grad():
            goal = balanced_targets(len(noise), module(start[:1]).shape[1], rng)
        fitting = batch_size(module, noise.shape[1:], str(start.device), gradients=True)
        found = driven(
            module,
            start,
            torch.from_numpy(goal).to(start.device),
            generator,
            delta=0.0 if options["variant"] == "vce" else options["delta"],
            draws=options["draws"] if options["variant"] == "rce-gm" else 1,
            mask=mask,
            confidence=options["confidence"],
            epsilon=options["epsilon"],
            step=options["step"],
            steps=options["steps"],
            batch=min(options["batch"], fitting),
            progress=progress,
        )
        pixels = as_pixels(filtered(found.images, mask)).cpu().numpy()
        answers = as_probabilities(model.predict(as_images(pixels)), model.output)
        kept = answers.argmax(axis=1) == goal
        unmoved = found.done & (found.steps == 0)
        return _Made(pixels[kept], goal[kept], answers[kept, goal[kept]], len(noise), int(unmoved.sum()))


@dataclass(frozen=True)
class _Made:
    """What became of some noise."""

    pixels: Pixels
    """The n images kept, n x C x H x W, uint8."""
    labels: NDArray[np.int64]
    """n, the classes that they were driven into."""
    probability: NDArray[np.float32]
    """n, the victim's for these classes."""
    tried: int
    unmoved: int
    """How many of those tried were surely in their class from the start."""


def _summary(made: list[_Made], budget: int) -> dict[str, Any]:
    """Sum up what became of the noise.

    Raises:
        NotApplicable: too little of it reached its class, or only that which was to reach one single class.
    """
    labels = np.concatenate([part.labels for part in made])
    tried, classes = sum(part.tried for part in made), len(np.unique(labels))
    if len(labels) < budget / 10 or classes < min(2, budget):
        raise NotApplicable(
            f"only {len(labels)} of {tried} noise images ({classes} classes) could be driven into their class; "
            "allow more steps"
        )
    return {
        "tried": tried,
        "unmoved": sum(part.unmoved for part in made),
        "classes": classes,
        "probability": float(np.concatenate([part.probability for part in made]).mean()),
    }


def _check(options: Mapping[str, Any]) -> None:
    """Refuse options that make no sense."""
    if options["variant"] not in VARIANTS:
        raise UsageError(f"characteristic: variant is {options['variant']!r}; expected {', '.join(VARIANTS)}")
    for name, least in LEAST.items():
        if not least <= options[name] < math.inf:
            raise UsageError(f"characteristic: {name} is {options[name]}; expected {least} or more")
    for name in ("epsilon", "step"):
        if not 0 < options[name] <= 1:
            raise UsageError(f"characteristic: {name} is {options[name]}; expected more than 0 and at most 1")
    if not 0 <= options["confidence"] < 1:
        raise UsageError(f"characteristic: confidence is {options['confidence']}; expected 0 or more and less than 1")


def image_shape(spec: InputSpec, side: int) -> tuple[int, int, int]:
    """Return C, H, W of the images to make; ``side`` stands in for what the network leaves open."""
    return spec.channels, spec.height or side, spec.width or side


def balanced_targets(count: int, classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose ``count`` classes in random order, each as often as any other or once more."""
    order: NDArray[np.int64] = rng.permutation(classes)
    return rng.permutation(order[np.arange(count) % classes])


def driven(
    module: torch.nn.Module,
    start: torch.Tensor,
    goal: torch.Tensor,
    generator: torch.Generator,
    *,
    delta: float,
    draws: int,
    mask: int,
    confidence: float,
    epsilon: float,
    step: float,
    steps: int,
    batch: int,
    progress: Progress = silent,
) -> Found:
    """Move N x C x H x W images in [0, 1] until the network puts each into the class of ``goal`` (N).

    What the network sees, and what is to be stored, is ``filtered(found.images, mask)``. ``delta`` 0 is ``vce``; the
    other arguments are the options of ``Characteristic``.
    """
    from torch.nn.functional import cross_entropy

    from fp_audit.descent import Sign, ball, search

    def objective(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen, wanted = filtered(x, mask), goal[index]

        def loss(logits: torch.Tensor) -> torch.Tensor:
            return cross_entropy(logits.float(), wanted, reduction="none")

        losses = mean_loss(module, seen, loss, delta=delta, draws=draws, generator=generator)
        return losses, reached(module, seen, wanted, confidence)

    return search(
        start,
        objective,
        Sign(step),
        steps=steps,
        project=ball(start, epsilon),
        in_flight=batch,
        progress=progress,
        what="driving noise into the victim's classes",
    )


def reached(module: torch.nn.Module, images: torch.Tensor, wanted: torch.Tensor, confidence: float) -> torch.Tensor:
    """Whether the network puts each of N images, rounded to uint8, into the wanted class with confidence; N."""
    import torch

    from fp_audit.descent import as_pixels, from_pixels

    with torch.no_grad():
        probabilities = module(from_pixels(as_pixels(images))).float().softmax(dim=1)
    enough = probabilities.gather(1, wanted[:, None])[:, 0] >= confidence
    there: torch.Tensor = enough & (probabilities.argmax(dim=1) == wanted)
    return there


def filtered(images: torch.Tensor, mask: int) -> torch.Tensor:
    """Show images as ``rce-lt`` does: high frequencies around mid-grey, clipped to [0, 1]. Unchanged if mask is 0."""
    return (high_pass(images, mask) + 0.5).clamp(0.0, 1.0) if mask else images


def high_pass(images: torch.Tensor, mask: int) -> torch.Tensor:
    """Remove the mask x mask lowest frequencies of the orthonormal DCT-II of each channel of N x C x H x W images.

    With D the DCT's matrix and M the mask that is 0 there and 1 elsewhere, ``D^T (M * (D x D^T)) D``. As M is 1
    outside of one block, this is ``x - P x P'`` with P and P' projections onto the lowest frequencies.
    """
    rows, columns = (dct_matrix(size, images)[:mask] for size in images.shape[2:])
    return images - rows.T @ (rows @ images @ columns.T) @ columns


def dct_matrix(size: int, like: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal DCT-II as a matrix, size x size: row f holds frequency f. Type and device as ``like``."""
    import torch

    time, frequency = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(torch.pi / size * frequency[:, None] * (time + 0.5)) * math.sqrt(2.0 / size)
    matrix[0] /= math.sqrt(2.0)
    return matrix.to(like)
