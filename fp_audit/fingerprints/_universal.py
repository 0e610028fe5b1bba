"""Universal adversarial perturbations (UAPs): one pattern that, added to nearly any image, changes a model's label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fp_audit.engine import Progress, device_of, predict_network, silent
from fp_audit.metrics import Floats
from fp_audit.model import as_images
from fp_audit.types import Pixels

if TYPE_CHECKING:
    import torch

GROWTH = 1.25
"""Factor by which the radius grows while too few images are fooled."""

GROWTHS = 12
"""Times that it may grow: to 14.6 times the first radius."""

START = 0.01
"""Length of the random perturbation that a search starts from, as a share of the first radius."""

STRIDE = 0.1
"""Length of a step of ascent, as a share of the radius."""

BATCH = 128
"""Images that one perturbation sees in a step."""

MEASURED = 1000
"""Images that a fooling rate is measured on during the search."""


_BLOCK = 4096
"""Images turned into floats at once."""


@dataclass(frozen=True)
class Universal:
    """What a search found."""

    perturbations: NDArray[np.float32]
    """L x C x H x W, to be added to images in [0, 1]."""
    radius: float
    """L2 norm that none exceeds."""
    rate: float
    """Share of images whose label changes, the mean over the L, measured as ``fooling_rate`` does."""


def find_universal(
    module: torch.nn.Module,
    pixels: Pixels,
    count: int,
    *,
    radius: float,
    fooling: float,
    steps: int,
    rng: np.random.Generator,
    progress: Progress = silent,
) -> Universal:
    """Find ``count`` perturbations of L2 norm at most ``radius`` that each change the label of nearly any image.

    They are searched for together, and differ in where they start and in the images that they see. While
    they fool fewer than the share ``fooling``, the radius grows by the factor ``GROWTH`` and the search goes on from
    where it is; after ``GROWTHS`` times what was found is returned as it is.

    Args:
        module: from [0, 1] images to logits, in evaluation mode.
        pixels: N x C x H x W.
        count: L.
        radius: L2 norm in units of the [0, 1] box, all pixels and channels together.
        fooling: wanted mean share of changed labels.
        steps: of ascent at one radius.
        rng: everything random follows from it.
        progress: told the share of the largest possible effort.
    """
    import torch

    device = device_of(module)
    shown = torch.from_numpy(pixels).to(device)
    labels = torch.from_numpy(_labels(module, pixels)).to(device)
    sample = pixels[rng.permutation(len(pixels))[:MEASURED]]
    moved = torch.from_numpy(rng.normal(size=(count, *pixels.shape[1:])).astype(np.float32)).to(device)
    moved = project(moved, START * radius)
    for growth in range(GROWTHS + 1):
        progress("searching for universal perturbations", growth / (GROWTHS + 1))
        moved = ascend(module, shown, labels, moved, radius=radius, steps=steps, rng=rng)
        found = moved.cpu().numpy()
        rate = float(np.mean([fooling_rate(module, sample, one) for one in found]))
        if rate >= fooling or growth == GROWTHS:
            break
        radius *= GROWTH
    return Universal(found, radius, rate)


def ascend(
    module: torch.nn.Module,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    *,
    radius: float,
    steps: int,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Ascend ``universal_loss`` from L perturbations, each on mini-batches of its own.

    Every step has the L2 length ``STRIDE * radius`` and ends in the ball.

    Args:
        module: from [0, 1] images to logits.
        pixels: N x C x H x W, uint8, on the module's device.
        labels: N, the module's own.
        start: L x C x H x W.
        radius: of the ball.
        steps: number of steps.
        rng: draws the images.
    """
    import torch

    from fp_audit.descent import from_pixels

    moved, size = start.detach(), min(BATCH, len(pixels))
    for _ in range(steps):
        drawn = torch.from_numpy(rng.integers(len(pixels), size=(len(moved), size))).to(pixels.device)
        moved.requires_grad_(True)
        loss = universal_loss(module, from_pixels(pixels[drawn]), labels[drawn], moved)
        gradient = torch.autograd.grad(loss.sum(), moved)[0]
        moved = project(moved.detach() + STRIDE * radius * gradient / _norms(gradient), radius)
    return moved


def universal_loss(
    module: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, perturbations: torch.Tensor
) -> torch.Tensor:
    """Mean cross-entropy of each perturbation's images with the labels they had, L.

    The cross-entropy of an image counts up to ln K: with less than the K-th part of the probability left, its
    label has certainly changed, and more of it would only outweigh the images that are still to be fooled.

    Args:
        module: from [0, 1] images to logits.
        images: L x B x C x H x W.
        labels: L x B.
        perturbations: L x C x H x W.
    """
    from torch.nn.functional import cross_entropy

    logits = module((images + perturbations[:, None]).clamp(0.0, 1.0).flatten(0, 1))
    losses = cross_entropy(logits, labels.flatten(), reduction="none")
    return losses.clamp_max(float(np.log(logits.shape[1]))).reshape(labels.shape).mean(dim=1)


def project(perturbations: torch.Tensor, radius: float) -> torch.Tensor:
    """Shorten each of L x C x H x W perturbations to L2 norm ``radius`` if it is longer."""
    return perturbations * (radius / _norms(perturbations)).clamp_max(1.0)


def _norms(perturbations: torch.Tensor) -> torch.Tensor:
    """L2 norm of each of L x C x H x W perturbations, L x 1 x 1 x 1; not quite 0 for zeros, which one may divide."""
    import torch

    norms: torch.Tensor = torch.linalg.vector_norm(perturbations, dim=(1, 2, 3), keepdim=True)
    return norms.clamp_min(1e-12)


def perturbed(pixels: Pixels, perturbation: NDArray[np.float32]) -> Pixels:
    """Add a C x H x W perturbation to N x C x H x W images, clip to [0, 1] and round to what a file can hold."""
    return np.asarray(np.rint(np.clip(as_images(pixels) + perturbation, 0.0, 1.0) * 255), np.uint8)


def fooling_rate(module: torch.nn.Module, pixels: Pixels, perturbation: NDArray[np.float32]) -> float:
    """Share of images whose top-1 label changes when a C x H x W perturbation is added as ``perturbed`` does."""
    return float((_labels(module, perturbed(pixels, perturbation)) != _labels(module, pixels)).mean())


def _labels(module: torch.nn.Module, pixels: Pixels) -> NDArray[np.intp]:
    """Top-1 labels of uint8 images of any number."""
    device = str(device_of(module))
    blocks = (as_images(pixels[i : i + _BLOCK]) for i in range(0, len(pixels), _BLOCK))
    return np.concatenate([predict_network(module, block, device=device).argmax(axis=1) for block in blocks])


def mean_norm(pixels: Pixels) -> float:
    """Mean L2 norm of N x C x H x W images in units of the [0, 1] box."""
    return float(np.mean([np.linalg.norm(image.astype(np.float64)) for image in pixels]) / 255.0)


def inconsistency(victim: Floats, suspect: Floats) -> float:
    """Compare where the perturbations of two models point (equation 5); 0 if their energies are the same.

    With u_m the right singular vectors of the victim's L x D matrix (D = C H W) up to its rank,
    ``sum_m (sum_i (s_i . u_m)^2 - sum_j (v_j . u_m)^2)^2`` over the rows s_i and v_j. In units of the fourth power of
    the perturbations' norm; what the suspect's have outside the victim's subspace counts only by being missed inside.

    Args:
        victim: L perturbations, L x ...
        suspect: as many, L x ...
    """
    ours = np.asarray(victim, np.float64).reshape(len(victim), -1)
    theirs = np.asarray(suspect, np.float64).reshape(len(suspect), -1)
    _, values, basis = np.linalg.svd(ours, full_matrices=False)
    rank = int((values > values[0] * max(ours.shape) * np.finfo(np.float64).eps).sum())
    energies = np.square(theirs @ basis[:rank].T).sum(axis=0)
    return float(np.square(energies - np.square(values[:rank])).sum())
