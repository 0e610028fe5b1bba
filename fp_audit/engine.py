"""Where and how the heavy work runs: device, seeds, training, progress.

Torch is imported inside the functions: whoever only compares answers never pays for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fp_audit.errors import UsageError
from fp_audit.model import as_images
from fp_audit.types import Pixels

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, in [0, 1]."""


def silent(what: str, done: float) -> None:
    """Show no progress."""


def pick_device(name: str) -> str:
    """Turn ``auto``, ``cpu`` or ``cuda`` into a torch device.

    Raises:
        UsageError: CUDA was asked for and is not there, or the name is unknown.
    """
    if name == "cpu":
        return "cpu"
    if name not in ("auto", "cuda") and not name.startswith("cuda:"):
        raise UsageError(f"unknown device {name!r}: expected auto, cpu or cuda")
    import torch

    if torch.cuda.is_available():
        return "cuda" if name == "auto" else name
    if name != "auto":
        raise UsageError(f"--device {name}: torch sees no CUDA device; use --device cpu")
    return "cpu"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: float = 10.0
    batch: int = 128
    optimizer: str = "sgd"
    """``sgd`` (Nesterov momentum .9) or ``adam``."""
    learning_rate: float = 0.1
    """Peak of a one-cycle schedule for ``one_cycle``, else constant."""
    weight_decay: float = 5e-4
    one_cycle: bool = True
    shift: float = 0.0
    """Random translation by up to this share of the image's size."""
    flip: bool = False
    """Random horizontal flip."""

    def to_json(self) -> dict[str, Any]:
        """Return every option by name."""
        return asdict(self)


def fit(
    network: torch.nn.Module,
    pixels: Pixels,
    targets: np.ndarray,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    parameters: list[torch.nn.Parameter] | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Progress = silent,
    what: str = "training",
) -> int:
    """Train ``network`` in place with cross-entropy and leave it in evaluation mode.

    Args:
        network: from [0, 1] images to logits.
        pixels: N x C x H x W, uint8.
        targets: N labels, or N x K probabilities (soft labels).
        recipe: how.
        seed: order of the images and augmentation follow from it.
        device: where.
        parameters: train only these; all by default. BatchNorm statistics move only if all are trained.
        after_step: called after each step, for example to keep a pruning mask.
        progress: told the share of steps done.
        what: first argument of ``progress``.

    Returns:
        The number of steps taken.
    """
    import torch
    from torch.nn.functional import cross_entropy

    generator = torch.Generator().manual_seed(seed)
    network.to(device).train(parameters is None)
    trained = list(network.parameters()) if parameters is None else parameters
    steps = max(1, round(recipe.epochs * len(pixels) / recipe.batch))
    optimizer, schedule = _optimizer(trained, recipe, steps)
    images, wanted = torch.from_numpy(pixels), torch.from_numpy(targets).to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout and the like
        for step, index in enumerate(_batches(len(images), recipe.batch, steps, generator)):
            batch = _augment(images[index].to(device).float() / 255.0, recipe, generator)
            loss = cross_entropy(network(batch), wanted[index.to(device)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if after_step is not None:
                after_step()
            if step % 10 == 0:
                progress(what, step / steps)
    network.eval()
    progress(what, 1.0)
    return steps


def _optimizer(
    parameters: list[torch.nn.Parameter], recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    import torch

    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adam":
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            parameters, lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
        )
    if recipe.one_cycle:
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps + 1)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield ``steps`` index batches, each image once an epoch; a last batch of one image is not made (BatchNorm)."""
    import torch

    size = min(size, count)
    done = 0
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            if done == steps:
                return
            yield order[start : start + size]
            done += 1


def _augment(images: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by its own offset (edges repeated) and flip half of them."""
    import torch
    from torch.nn.functional import pad

    n, _, height, width = images.shape
    reach = round(recipe.shift * min(height, width))
    if reach:
        padded = pad(images, (reach, reach, reach, reach), mode="replicate")
        top, left = torch.randint(0, 2 * reach + 1, (2, n), generator=generator).to(images.device)
        rows = top[:, None] + torch.arange(height, device=images.device)
        cols = left[:, None] + torch.arange(width, device=images.device)
        index = torch.arange(n, device=images.device)[:, None, None]
        images = padded[index, :, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)
    if recipe.flip:
        flipped = (torch.rand(n, generator=generator) < 0.5).to(images.device)
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images


def predict_network(network: torch.nn.Module, pixels: Pixels, *, device: str = "cpu", batch: int = 512) -> np.ndarray:
    """Answer uint8 N x C x H x W images with N x K logits."""
    import torch

    network.to(device).eval()
    with torch.inference_mode():
        blocks = [
            network(torch.from_numpy(as_images(pixels[i : i + batch])).to(device)).float().cpu()
            for i in range(0, len(pixels), batch)
        ]
    return torch.cat(blocks).numpy()
