"""Preprocessing as one separable affine map, the same for numpy and for torch.

What image processors do between a file and a network (resize, centre crop, grey to RGB, rescale,
normalise) is linear in the pixels: ``rows @ x @ cols.T`` resizes and crops, a small matrix mixes the
channels, a gain and a bias per channel normalise. Written so, one definition serves onnxruntime (numpy)
and torch (differentiable), and both give the same numbers.

Deviations from Pillow: Pillow rounds to 8 bits after each of its two passes, here nothing is rounded (about 1/255
per pixel); Pillow shrinks the height before it stretches the width, here the width always comes first (bicubic and
Lanczos differ by more there, on sharp edges). The filters, their support when shrinking (antialiasing) and the
clipping of overshoot after each pass are Pillow's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import UsageError

Filter: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)
MNIST_MEAN = (0.1307,)
MNIST_STD = (0.3081,)
CAFFE_MEAN = (103.939 / 255, 116.779 / 255, 123.68 / 255)

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights, as Pillow's conversion to ``L``."""


@dataclass(frozen=True)
class Preprocess:
    """How images in [0, 1] become a network's input."""

    resize: tuple[int, int] | None = None
    """Height, width in pixels after resizing; None keeps the size."""
    shortest_edge: int | None = None
    """Resize so that the shorter side has this many pixels, keeping the aspect ratio (instead of ``resize``)."""
    crop: tuple[int, int] | None = None
    """Height, width of the centre crop after resizing; padded with zeros where the image is smaller."""
    crop_rounding: Literal["down", "even"] = "down"
    """Where an odd number of pixels is cut: ``down`` as transformers does, to ``even`` as torchvision and timm do."""
    filter: Filter = "bilinear"
    scale: float = 1.0
    """1 for networks that take [0, 1] before normalising, 255 for 0..255."""
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    """Per channel, in the channel order of the network, on images in [0, ``scale``]."""
    bgr: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return JSON values from which ``from_json`` restores the same object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Restore from ``to_json``."""
        restored: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**restored)

    def describe(self) -> str:
        """Return a short text for reports, for example ``ImageNet mean/std``."""
        parts = [
            _NAMES.get((self.scale, self.mean, self.std), f"scale {self.scale:g}, mean {self.mean}, std {self.std}")
        ]
        if self.bgr:
            parts.append("BGR")
        if self.resize or self.shortest_edge:
            size = "x".join(map(str, self.resize)) if self.resize else f"shortest edge {self.shortest_edge}"
            parts.append(f"{self.filter} resize to {size}")
        if self.crop:
            parts.append("centre crop {}x{}".format(*self.crop))
        return ", ".join(parts)


NAMED: dict[str, Preprocess] = {
    "0..1": Preprocess(),
    "imagenet": Preprocess(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "cifar": Preprocess(mean=CIFAR_MEAN, std=CIFAR_STD),
    "-1..1": Preprocess(mean=(0.5,), std=(0.5,)),
    "0..255": Preprocess(scale=255.0),
    "caffe": Preprocess(scale=255.0, mean=tuple(255 * m for m in CAFFE_MEAN), bgr=True),
    "mnist": Preprocess(mean=MNIST_MEAN, std=MNIST_STD),
}
"""The conventions that model files usually follow without saying so; ``+bgr`` may be added to a name."""

_NAMES = {(p.scale, p.mean, p.std): name for name, p in NAMED.items()}


def parse(text: str) -> Preprocess:
    """Read the value of ``--preprocess``: a name of ``NAMED``, optionally with ``+bgr``.

    Raises:
        UsageError: the name is unknown.
    """
    name, _, order = text.partition("+")
    if name not in NAMED or order not in ("", "bgr"):
        raise UsageError(
            f"unknown preprocessing {text!r}: expected one of {', '.join(NAMED)}, optionally followed by +bgr"
        )
    base = NAMED[name]
    return base if not order else Preprocess(**{**asdict(base), "bgr": True})


def candidates(channels: int) -> list[Preprocess]:
    """Return the conventions worth trying for a network with this many input channels, likeliest first."""
    if channels != 3:
        return [NAMED[name] for name in ("0..1", "mnist", "-1..1", "0..255")]
    names = ("imagenet", "0..1", "cifar", "-1..1", "0..255", "caffe", "0..1+bgr", "imagenet+bgr", "0..255+bgr")
    return [parse(name) for name in names]


@dataclass(frozen=True)
class AffineMap:
    """A ``Preprocess`` worked out for one image size and one number of input and output channels."""

    rows: NDArray[np.float32] | None
    """H' x H; None keeps the height and width."""
    cols: NDArray[np.float32] | None
    """W' x W."""
    clip: bool
    mix: NDArray[np.float32] | None
    """C' x C; None keeps the channels."""
    gain: NDArray[np.float32]
    """C' x 1 x 1."""
    bias: NDArray[np.float32]
    """C' x 1 x 1."""

    def __call__(self, images: Any) -> Any:  # noqa: ANN401 (numpy or torch)
        """Map N x C x H x W images in [0, 1] to N x C' x H' x W' network inputs.

        The fields must be of the same kind (numpy arrays, or torch tensors of one device) as ``images``.
        """
        if self.rows is not None and self.cols is not None:
            images = self._clipped(images @ self.cols.T)
            images = self._clipped(self.rows @ images)
        if self.mix is not None:
            n, _, h, w = images.shape
            images = (self.mix @ images.reshape(n, -1, h * w)).reshape(n, -1, h, w)
        return images * self.gain + self.bias

    def _clipped(self, images: Any) -> Any:  # noqa: ANN401 (numpy or torch)
        return images.clip(0.0, 1.0) if self.clip else images


@lru_cache(maxsize=64)
def affine_map(preprocess: Preprocess, size: tuple[int, int], channels_in: int, channels_out: int) -> AffineMap:
    """Work out ``preprocess`` for images of ``size`` (height, width).

    Args:
        preprocess: what the network expects.
        size: height and width of the incoming images, pixels.
        channels_in: channels of the incoming images, 1 or 3.
        channels_out: channels that the network takes, 1 or 3.
    """
    target = _resized(preprocess, size)
    crop = preprocess.crop or target
    rows = cols = None
    if (target, crop) != (size, size):
        rows = _crop(resize_matrix(size[0], target[0], preprocess.filter), crop[0], preprocess.crop_rounding)
        cols = _crop(resize_matrix(size[1], target[1], preprocess.filter), crop[1], preprocess.crop_rounding)
    mean = np.broadcast_to(np.asarray(preprocess.mean, np.float64), channels_out)
    std = np.broadcast_to(np.asarray(preprocess.std, np.float64), channels_out)
    return AffineMap(
        rows=rows,
        cols=cols,
        clip=preprocess.filter in ("bicubic", "lanczos"),
        mix=_mix(channels_in, channels_out, preprocess.bgr),
        gain=(preprocess.scale / std).astype(np.float32).reshape(-1, 1, 1),
        bias=(-mean / std).astype(np.float32).reshape(-1, 1, 1),
    )


def _resized(preprocess: Preprocess, size: tuple[int, int]) -> tuple[int, int]:
    if preprocess.resize is not None:
        return preprocess.resize
    if preprocess.shortest_edge is None:
        return size
    height, width = size
    edge = preprocess.shortest_edge
    return (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)


def _mix(channels_in: int, channels_out: int, bgr: bool) -> NDArray[np.float32] | None:
    if channels_in == channels_out:
        matrix = np.eye(channels_out)
    elif channels_in == 1:
        matrix = np.ones((channels_out, 1))
    elif channels_out == 1:
        matrix = np.asarray([_LUMA])
    else:
        raise UsageError(f"images have {channels_in} channels and the model takes {channels_out}: expected 1 or 3")
    if bgr and channels_out == 3:
        matrix = matrix[::-1]
    if matrix.shape[0] == matrix.shape[1] and (matrix == np.eye(len(matrix))).all():
        return None
    return np.ascontiguousarray(matrix, np.float32)


def _crop(matrix: NDArray[np.float32], size: int, rounding: str) -> NDArray[np.float32]:
    """Keep the ``size`` middle rows, adding rows of zeros where there are fewer (a centre crop)."""
    rows = len(matrix)
    if rows < size:
        before = (size - rows + (rounding == "down")) // 2
        return np.pad(matrix, ((before, size - rows - before), (0, 0)))
    start = (rows - size) // 2 if rounding == "down" else round((rows - size) / 2)
    return np.ascontiguousarray(matrix[start : start + size])


_SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}


def _kernel(name: Filter, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pillow's resampling kernels at distance ``x`` (in units of the output grid when shrinking)."""
    x = np.abs(x)
    if name == "box":
        return np.where(x <= 0.5, 1.0, 0.0)
    if name == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    if name == "hamming":
        return np.where(x < 1.0, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)
    if name == "bicubic":  # Keys with a = -0.5
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return np.where(x < 3.0, np.sinc(x) * np.sinc(x / 3.0), 0.0)  # lanczos


def resize_matrix(size_in: int, size_out: int, filter: Filter) -> NDArray[np.float32]:  # noqa: A002
    """Return the ``size_out`` x ``size_in`` matrix that resizes one axis the way Pillow does.

    Each row sums to one. When shrinking, the kernel is widened by the scale (antialiasing).
    """
    scale = size_in / size_out
    centres = (np.arange(size_out) + 0.5) * scale
    if filter == "nearest":
        matrix = np.zeros((size_out, size_in))
        matrix[np.arange(size_out), np.minimum(centres.astype(int), size_in - 1)] = 1.0
        return np.asarray(matrix, np.float32)
    stretch = max(scale, 1.0)
    distance = (np.arange(size_in) + 0.5)[None, :] - centres[:, None]
    support = _SUPPORT[filter] * stretch
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    last = np.minimum((centres + support + 0.5).astype(int), size_in)
    index = np.arange(size_in)
    inside = (index >= first[:, None]) & (index < last[:, None])
    matrix = np.where(inside, _kernel(filter, distance / stretch), 0.0)
    return np.asarray(matrix / matrix.sum(axis=1, keepdims=True), np.float32)
