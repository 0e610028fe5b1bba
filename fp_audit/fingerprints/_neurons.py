"""Neurons: which layers to look at, how neurons respond, and images that excite one of them (DeepJudge, Algorithm 2).

A *neuron* of a convolution is one channel, and its response the mean over the positions of that channel; of a dense
layer it is a unit; of a transformer it is one dimension of the tokens, and its response the mean over the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from fp_audit import metrics
from fp_audit.engine import Progress, device_of, silent
from fp_audit.model import WhiteBox, as_images
from fp_audit.types import Pixels

if TYPE_CHECKING:
    from torch import Tensor

    from fp_audit.descent import Found

    Activations = TypeVar("Activations", NDArray[np.float32], Tensor)

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Layer -> shape of its output for one image; input side first."""

HELD = 2**24
"""Most values of a layer's output to hold at once: 64 MiB."""

EARLY = 2
"""Layers near the input that are looked at when nobody chooses."""

BLOCK = 3
"""A convolution (or the like), its normalisation and its activation: as far as a layer is followed at one shape."""

CANDIDATES = 5
"""Layers of equal shape that are tried as the counterpart of one layer."""

PATIENCE, GAIN = 20, 1e-3
"""An image is given up after so many steps in which its neuron has not gained this share of its threshold."""


def neuron_axis(shape: Sequence[int]) -> int:
    """Return which axis of a layer's output, n x ..., counts its neurons.

    n x units: 1. n x tokens x dimensions: 2. n x channels x height x width: 1; but where the first two of these three
    are equal and the last is not, it is n x height x width x channels, as in Swin and ConvNeXt: 3. Else 1.
    """
    if len(shape) == 3 or (len(shape) == 4 and shape[1] == shape[2] != shape[3]):
        return len(shape) - 1
    return 1


def width(shape: Sequence[int]) -> int:
    """Return how many neurons a layer has whose output for one image is ``shape``."""
    return shape[neuron_axis((1, *shape)) - 1]


def responses(activations: Activations) -> Activations:
    """Return the response of each neuron, n x neurons: the mean over all other axes of a layer's output, n x ..."""
    axis = neuron_axis(activations.shape)
    others = tuple(i for i in range(1, activations.ndim) if i != axis)
    return activations.mean(others) if others else activations


def at_once(shape: Sequence[int]) -> int:
    """Return how many images to run at once for a layer whose output for one image is ``shape``."""
    return max(1, HELD // max(1, int(np.prod(shape))))


def responses_of(white: WhiteBox, pixels: Pixels, layer: str) -> NDArray[np.float32]:
    """Return the response of each neuron of ``layer`` to N uint8 images, N x neurons; some images at a time."""
    size = at_once(white.activations(as_images(pixels[:1]), layer).shape)
    blocks: Iterator[Pixels] = (pixels[i : i + size] for i in range(0, len(pixels), size))
    return np.concatenate([responses(white.activations(as_images(images), layer)) for images in blocks])


def layer_shapes(white: WhiteBox, pixels: Pixels) -> dict[str, tuple[int, ...]]:
    """Return the shape of every layer whose output has a row for each image, found by running the first two images."""
    images = as_images(pixels[:1].repeat(2, axis=0))
    found = {layer: white.activations(images, layer).shape for layer in white.layers()}
    return {layer: shape[1:] for layer, shape in found.items() if len(shape) > 1 and shape[0] == 2}


def chosen_layers(shapes: Shapes, channels: int) -> list[str]:
    """Choose up to ``EARLY`` layers of a classifier near its input: those that a thief changes least.

    Layers are seen as runs of equal shape. Of a run one layer is taken: its third or, if it is shorter, its last, which
    is where a convolution, its normalisation and its activation have been applied, however a file splits or fuses
    them. Runs without positions (dense layers) and runs with as many neurons as one before (pooling; the
    normalisation of the image itself) are passed over. A network of dense layers only gives its last hidden one.

    Args:
        shapes: of all its layers.
        channels: of its images.
    """
    runs = [(shape, list(names)) for shape, names in groupby(shapes, key=lambda name: shapes[name])][:-1]
    chosen: list[str] = []
    widths = {channels}
    for shape, names in runs:
        if len(chosen) < EARLY and len(shape) > 1 and width(shape) not in widths:
            chosen.append(names[:BLOCK][-1])
            widths.add(width(shape))
    return chosen or [names[-1] for _, names in runs[-1:]]


def counterparts(shapes: Shapes, shape: Sequence[int], place: float) -> list[str]:
    """Name up to ``CANDIDATES`` layers of a network that may be the same as a layer of another, input side first.

    They have exactly its shape, and are those nearest to where it stands among the layers of that shape in its own
    network. Which of them it is, is for their outputs to show.

    Args:
        shapes: of all layers.
        shape: of that layer.
        place: of that layer, see ``place_of``.
    """
    same = [name for name, other in shapes.items() if other == tuple(shape)]
    wanted = place * (len(same) - 1)
    nearest = sorted(range(len(same)), key=lambda i: abs(i - wanted))[:CANDIDATES]
    return [same[i] for i in sorted(nearest)]


def counterpart(
    suspect: WhiteBox, about: Mapping[str, Any], pixels: Pixels, ours: NDArray[np.float32], shapes: Callable[[], Shapes]
) -> tuple[str, NDArray[np.float32]] | None:
    """Find the layer of a suspect that corresponds to one of the victim's.

    It is the layer of that name, if it has as many neurons; else, of the ``counterparts``, the one whose responses are
    nearest (least LOD).

    Args:
        suspect: whose layer is wanted.
        about: name, shape and place of the victim's layer.
        pixels: the layer's test cases, N.
        ours: the victim's responses to them, N x W.
        shapes: gives the shapes of the suspect's layers; asked only where the name does not help.

    Returns:
        Its name and its responses, N x W; None if there is none.
    """
    if about["name"] in suspect.layers():
        theirs = responses_of(suspect, pixels, about["name"])
        if theirs.shape == ours.shape:
            return about["name"], theirs
    names = counterparts(shapes(), about["shape"], about["place"])
    read = {name: responses_of(suspect, pixels, name) for name in names}
    return min(read.items(), key=lambda item: metrics.layer_output_distance(ours, item[1]), default=None)


def place_of(shapes: Shapes, layer: str) -> float:
    """Return where a layer stands among those of its shape, from 0 (the first) to 1 (the last)."""
    same = [name for name, shape in shapes.items() if shape == shapes[layer]]
    return same.index(layer) / max(1, len(same) - 1)


def pairs(neurons: NDArray[np.int64], seeds: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair neurons with seeds in turn, no pair twice.

    Args:
        neurons: at least one.
        seeds: how many there are.
        count: pairs that are wanted; fewer if there are not as many.

    Returns:
        The neuron of each pair, and the seed of each, from 0.
    """
    turn, place = np.divmod(np.arange(min(count, seeds * len(neurons))), len(neurons))
    return neurons[place], (place + turn) % seeds


def ascend(
    white: WhiteBox,
    layer: str,
    images: Tensor,
    neurons: Tensor,
    thresholds: Tensor,
    *,
    steps: int,
    learning_rate: float,
    in_flight: int = 256,
    progress: Progress = silent,
) -> Found:
    """Change each image within [0, 1] until its own neuron responds more than its own threshold.

    The N pairs of an image and a neuron share forward and backward passes, which end at ``layer``; each stops on its
    own, and its place is taken by the next. An image is given up when ``PATIENCE`` steps have gained nothing: most
    often it has reached a corner of the box.

    Args:
        white: the network.
        layer: one of its layers.
        images: N x C x H x W, one for each pair, on the network's device.
        neurons: N, which neuron to excite.
        thresholds: N.
        steps: most steps of one image.
        learning_rate: Adam's, in units of the [0, 1] box.
        in_flight: pairs in one forward pass.
        progress: told the share that is done.

    Returns:
        Images and, as ``done``, whether each has passed its threshold.
    """
    import torch

    from fp_audit.descent import Adam, search

    best = torch.full_like(thresholds, -torch.inf)
    last = best.clone()
    idle = torch.zeros_like(neurons)

    def objective(moved: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        own = responses(white.activate(moved, layer)).gather(1, neurons[index, None])[:, 0]
        now = own.detach().to(last.dtype)
        last[index] = now
        gained = now > best[index] + GAIN * thresholds[index].abs()
        idle[index] = torch.where(gained, 0, idle[index] + 1)
        best[index] = torch.where(gained, now, best[index])
        return -own, (now > thresholds[index]) | (idle[index] >= PATIENCE)

    found = search(
        images,
        objective,
        Adam(learning_rate),
        steps=steps,
        in_flight=in_flight,
        progress=progress,
        what=f"exciting neurons of {layer}",
    )
    return replace(found, done=last > thresholds)


@dataclass(frozen=True)
class Excited:
    """White-box test cases for neurons of one layer."""

    pixels: Pixels
    """N x C x H x W, uint8."""
    neurons: NDArray[np.int64]
    """N, the neuron that each was made for."""
    responses: NDArray[np.float32]
    """N x W, of all neurons of the layer to each."""
    reached: int
    """How many exceed their threshold."""


def excite(
    white: WhiteBox,
    layer: str,
    pixels: Pixels,
    neurons: NDArray[np.int64],
    highest: NDArray[np.float32],
    m: float,
    *,
    steps: int,
    learning_rate: float,
    in_flight: int,
    progress: Progress = silent,
) -> Excited:
    """Make uint8 images that excite one neuron each beyond its highest response to any image of the data.

    Args:
        white: the network.
        layer: one of its layers.
        pixels: N uint8 images to start from.
        neurons: N, which neuron to excite.
        highest: W, the largest response of each neuron of the layer over the data.
        m: the ascent stops at ``m * highest``, m >= 1. Images that end below that are kept if they exceed
            ``highest`` when they are rounded.
        steps: see ``ascend``.
        learning_rate: see ``ascend``.
        in_flight: most pairs in one forward pass; fewer where the layer's output is large.
        progress: see ``ascend``.
    """
    import torch

    from fp_audit.descent import as_pixels

    device = device_of(white.module)
    shape = white.activations(as_images(pixels[:1]), layer).shape[1:]
    found = ascend(
        white,
        layer,
        torch.from_numpy(as_images(pixels)).to(device),
        torch.from_numpy(neurons).to(device),
        torch.from_numpy(m * highest[neurons]).to(device),
        steps=steps,
        learning_rate=learning_rate,
        in_flight=min(in_flight, at_once(shape)),
        progress=progress,
    )
    rounded = as_pixels(found.images).cpu().numpy()
    every = responses_of(white, rounded, layer)
    own = every[np.arange(len(neurons)), neurons]
    kept = own > highest[neurons]
    return Excited(rounded[kept], neurons[kept], every[kept], int((own > m * highest[neurons]).sum()))
