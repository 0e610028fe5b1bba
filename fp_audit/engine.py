"""Where and how the heavy work runs: device, seeds, training, progress.

Torch is imported inside the functions: whoever only compares answers never pays for it.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import UsageError
from fp_audit.model import BlackBox, as_images
from fp_audit.types import Images, Outputs, Pixels

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done, in [0, 1]."""

Loss = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""Takes n x C x H x W images in [0, 1] and their n targets; returns one value to descend."""


def silent(what: str, done: float) -> None:
    """Show no progress."""


def versions() -> dict[str, str]:
    """Return the versions of what results depend on."""
    packages = ("fp-audit", "numpy", "torch", "onnxruntime", "transformers", "timm")
    return {name: importlib.metadata.version(name) for name in packages}


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


def device_of(module: torch.nn.Module) -> torch.device:
    """Return where a network is, also one without parameters (a quantised graph holds buffers only)."""
    import torch

    held = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if held is None else held.device


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: float = 10.0
    batch: int = 128
    optimizer: Literal["sgd", "adam"] = "sgd"
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
    loss: Loss | None = None,
    after_step: Callable[[], None] | None = None,
    progress: Progress = silent,
    what: str = "training",
) -> int:
    """Train ``network`` in place, with cross-entropy unless told otherwise, and leave it in evaluation mode.

    Args:
        network: from [0, 1] images to logits.
        pixels: N x C x H x W, uint8.
        targets: N labels, or N x K probabilities (soft labels).
        recipe: how.
        seed: order of the images and augmentation follow from it.
        device: where.
        parameters: train only these; all by default. BatchNorm statistics move only if all are trained.
        loss: instead of the cross-entropy of the network's answers; then ``targets`` may be any N rows.
        after_step: called after each step, for example to keep a pruning mask.
        progress: told the share of steps done.
        what: first argument of ``progress``.

    Returns:
        The number of steps taken.
    """
    import torch
    from torch.nn.functional import cross_entropy

    _lay_out(network.to(device), torch.channels_last).train(parameters is None)
    trained = list(network.parameters()) if parameters is None else parameters
    steps = steps_of(recipe, len(pixels))
    images, wanted = torch.from_numpy(pixels).to(device), torch.from_numpy(targets).to(device)

    def entropy(batch: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(network(batch), labels)

    def measured(view: _View) -> torch.Tensor:
        batch = _seen(images, view, recipe).contiguous(memory_format=torch.channels_last)
        with _precision(device):
            return (loss or entropy)(batch, wanted[view.chosen.to(device)])

    losses = map(measured, _views(pixels.shape, recipe, steps, seed))
    _descend(trained, losses, recipe, steps, seed=seed, after_step=after_step, progress=progress, what=what)
    _lay_out(network, torch.contiguous_format).eval()
    return steps


def _lay_out(network: torch.nn.Module, memory_format: torch.memory_format) -> torch.nn.Module:
    """Keep channels last in memory while training, which convolutions do faster on any device, and first otherwise."""
    laid_out: torch.nn.Module = network.to(memory_format=memory_format)  # type: ignore[call-overload]
    return laid_out


def fit_many(
    networks: Sequence[torch.nn.Module],
    pixels: Pixels,
    targets: np.ndarray,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    device: str = "cpu",
    progress: Progress = silent,
    what: str = "training",
) -> int:
    """Train E networks of one architecture in place and at once, each as ``fit`` would with its own seed.

    Their weights are stacked and every operation is done for all of them together (``torch.vmap``): for a GPU, which
    one small network leaves idle. The weights are those of E calls of ``fit`` up to rounding; dropout draws other
    numbers.

    Args:
        networks: E networks that differ in their weights only, each from [0, 1] images to logits.
        pixels: N x C x H x W, uint8; each network sees them in its own order and augmentation.
        targets: N labels, or E x N labels.
        recipe: how.
        seeds: E numbers.
        device: where.
        progress: told the share of steps done.
        what: first argument of ``progress``.

    Returns:
        The number of steps taken by each.
    """
    import torch
    from torch.func import functional_call, stack_module_state
    from torch.nn.functional import cross_entropy

    for network in networks:
        network.to(device).train()
    count, steps = len(networks), steps_of(recipe, len(pixels))
    images = torch.from_numpy(pixels).to(device)
    wanted = torch.from_numpy(np.array(np.broadcast_to(targets, (count, len(pixels))))).to(device)
    weights, buffers = stack_module_state(list(networks))
    statistics = {name: buffers[name] for name in _moving(networks[0], pixels.shape[1:], device)}

    def logits(own: dict[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = functional_call(networks[0], own, (batch,))
        return answers

    def loss(views: tuple[_View, ...]) -> torch.Tensor:
        batches = _seen(images, _View(*map(_joined, zip(*views, strict=True))), recipe)
        labels = wanted.gather(1, torch.stack([view.chosen for view in views]).to(device))
        with _precision(device):
            answers = torch.vmap(logits, randomness="different")(
                {**weights, **statistics}, batches.reshape(count, -1, *pixels.shape[1:])
            )
            return count * cross_entropy(answers.flatten(0, 1), labels.flatten())  # the sum of E means

    losses = map(loss, zip(*(_views(pixels.shape, recipe, steps, seed) for seed in seeds), strict=True))
    trained = [weight for weight in weights.values() if weight.requires_grad]
    _descend(trained, losses, recipe, steps, seed=seeds[0], progress=progress, what=what)
    _hand_back(networks, {**weights, **statistics})
    return steps


def _moving(network: torch.nn.Module, shape: tuple[int, ...], device: str) -> list[str]:
    """Name the buffers that a forward pass in training mode changes: moving statistics.

    Other buffers are constants, which the networks of one architecture share. A graph out of an ONNX file reads
    shapes from some of them, which it cannot do from stacked ones.
    """
    import torch

    tried = deepcopy(network)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        tried(torch.rand(2, *shape).to(device))
    after = dict(tried.named_buffers())
    return [name for name, value in network.named_buffers() if not torch.equal(value, after[name])]


def _hand_back(networks: Sequence[torch.nn.Module], stacked: Mapping[str, torch.Tensor]) -> None:
    """Write stacked parameters and buffers into the networks and leave these in evaluation mode."""
    import torch

    with torch.no_grad():
        for i, network in enumerate(networks):
            held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            for name, values in stacked.items():
                held[name].copy_(values[i])
            network.eval()


def _descend(
    parameters: list[torch.nn.Parameter],
    losses: Iterator[torch.Tensor],
    recipe: Recipe,
    steps: int,
    *,
    seed: int,
    after_step: Callable[[], None] | None = None,
    progress: Progress,
    what: str,
) -> None:
    """Follow the gradients of ``losses``, one for each of ``steps``; each is computed after the step before it."""
    import torch

    optimizer, schedule = _optimizer(parameters, recipe, steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout and the like
        for step, loss in enumerate(losses):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if after_step is not None:
                after_step()
            if step % 10 == 0:
                progress(what, step / steps)
    progress(what, 1.0)


def steps_of(recipe: Recipe, count: int) -> int:
    """Return how many steps a recipe takes on ``count`` images."""
    return max(1, round(recipe.epochs * count / recipe.batch))


def _precision(device: str) -> AbstractContextManager[object]:
    """Compute in bfloat16 while training on a GPU that has it; weights and losses stay float32, and so does a CPU.

    Only training is so imprecise. Answers that decide verdicts are never computed in it.
    """
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_bf16_supported():
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16, cache_enabled=False)  # each weight is used once a step


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


class _View(NamedTuple):
    """What one step shows, on the CPU: n images, each shifted and flipped in its own way."""

    chosen: torch.Tensor
    """n, indices of the images."""
    offset: torch.Tensor
    """2 x n, rows and columns, each in [0, 2 * reach]."""
    flipped: torch.Tensor
    """n, bool."""


def _joined(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Join one field of several views."""
    import torch

    return torch.cat(parts, dim=-1)


def _views(shape: tuple[int, ...], recipe: Recipe, steps: int, seed: int) -> Iterator[_View]:
    """Yield what each of ``steps`` shows of images of ``shape``, N x C x H x W."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    reach = _reach(recipe, shape)
    for index in batches(shape[0], recipe.batch, steps, generator):
        size = len(index)
        offset = torch.randint(0, 2 * reach + 1, (2, size), generator=generator) if reach else index.new_zeros(2, size)
        flipped = torch.rand(size, generator=generator) < 0.5 if recipe.flip else torch.zeros(size, dtype=torch.bool)
        yield _View(index, offset, flipped)


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
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


def _reach(recipe: Recipe, shape: tuple[int, ...]) -> int:
    """Return by how many pixels images may be shifted."""
    return round(recipe.shift * min(shape[2:]))


def _seen(images: torch.Tensor, view: _View, recipe: Recipe) -> torch.Tensor:
    """Take a view's images out of N x C x H x W uint8 ones, to [0, 1]: shifted (edges repeated), then flipped."""
    import torch
    from torch.nn.functional import pad

    batch = images[view.chosen.to(images.device)].float() / 255.0
    reach, (_, _, height, width) = _reach(recipe, images.shape), batch.shape
    if reach:
        padded = pad(batch, (reach, reach, reach, reach), mode="replicate")
        top, left = view.offset.to(images.device)
        batch = padded.unfold(2, height, 1).unfold(3, width, 1)[torch.arange(len(batch)), :, top, left]
    if recipe.flip:
        flipped = view.flipped.to(images.device)
        batch = torch.where(flipped[:, None, None, None], batch.flip(3), batch)
    return batch


def predict_network(network: torch.nn.Module, images: Images, *, device: str = "cpu") -> Outputs:
    """Answer N x C x H x W images in [0, 1] with N x K logits, in batches that fit."""
    import torch

    network.to(device).eval()
    size = batch_size(network, images.shape[1:], device, gradients=False)
    with torch.inference_mode():
        blocks = [
            network(torch.from_numpy(np.ascontiguousarray(images[i : i + size])).to(device)).float().cpu()
            for i in range(0, max(len(images), 1), size)
        ]
    return torch.cat(blocks).numpy()


_BLOCK = 4096
"""Images turned into floats at once."""


def answered(
    model: BlackBox, pixels: Pixels, progress: Progress = silent, what: str = "asking the victim"
) -> Iterator[Outputs]:
    """Ask for N x C x H x W uint8 images, each once; yield n x K answers at a time, so that not all become floats."""
    for start in range(0, len(pixels), _BLOCK):
        progress(what, start / len(pixels))
        yield model.predict(as_images(pixels[start : start + _BLOCK]))
    progress(what, 1.0)


def top1(
    model: BlackBox, pixels: Pixels, progress: Progress = silent, what: str = "asking the victim"
) -> tuple[NDArray[np.int64], int]:
    """Ask for N x C x H x W uint8 images, each of them once.

    Returns:
        The N top-1 labels, and the number of classes.
    """
    labels, classes = [np.empty(0, np.int64)], 0
    for answers in answered(model, pixels, progress, what):
        labels.append(answers.argmax(axis=1))
        classes = answers.shape[1]
    return np.concatenate(labels), classes


_CPU_BYTES = 2**26
"""Held of a batch on the CPU: then a LeNet on 28 x 28 pixels and a ResNet-20 on 32 x 32 are within some percent of
their best speed, forward and backward; with four times as much the ResNet-20 takes up to twice as long."""


def batch_size(module: torch.nn.Module, image_shape: tuple[int, ...], device: str, *, gradients: bool) -> int:
    """Return how many images to give to a network at once.

    It follows from what autograd holds of one image: on CUDA a batch may take half of the memory that is free now
    (without gradients, where most is let go at once, all of it by this count), on the CPU what is quick.

    Args:
        module: from [0, 1] images to logits, on ``device`` and in evaluation mode.
        image_shape: C, H, W.
        device: where.
        gradients: whether derivatives are taken.
    """
    import torch

    most = _CPU_BYTES
    if device.startswith("cuda"):
        most = torch.cuda.mem_get_info(device)[0] // (2 if gradients else 1)
    one, two = (_held(module, image_shape, device, count) for count in (1, 2))
    return min(max(most // max(two - one, 1), 1), 4096 if device.startswith("cuda") else 512)


def _held(module: torch.nn.Module, image_shape: tuple[int, ...], device: str, count: int) -> int:
    """Measure how many bytes autograd holds between a forward pass of ``count`` images and its derivative."""
    import torch

    held: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    images = torch.zeros(count, *image_shape, device=device, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module(images)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())
