"""Random preprocessing of images, and its description in a model folder.

A thief may put a random transform in front of a stolen model, so that no image is ever seen twice alike. It belongs to
the surrogate: a model folder states it in ``augmentation.json`` and whoever opens the folder gets the random model.

Both transforms move whole pixels and treat rows and columns alike: for each image and each axis, an index a pixel says
where it comes from. So one definition serves numpy, torch on any device and gradients.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit.types import Artifact, Images

if TYPE_CHECKING:
    import torch

FILE = "augmentation.json"
MAX_BYTES = 4096
"""Largest ``augmentation.json`` that is read."""
MAX_SIGMA = 4.0
MAX_PADDING = 1024
"""Pixels."""
MAX_GRIDS = 1024

BLACK = -1
"""In place of an index: the pixel comes from nowhere."""


class Augmentation(ABC):
    """A random transform of images that keeps their size. Subclasses are final and frozen dataclasses."""

    kind: ClassVar[str]

    @abstractmethod
    def numbers(self, side: int) -> int:
        """Return how many uniform numbers one axis of ``side`` pixels needs."""

    @abstractmethod
    def sources(self, uniform: NDArray[np.float64], side: int) -> NDArray[np.int64]:
        """Return where the pixels along one axis come from.

        Args:
            uniform: n x ``numbers(side)`` in [0, 1), a row an image.
            side: height or width of the images.

        Returns:
            n x ``side`` indices into the same axis, or ``BLACK``.

        Raises:
            UnsupportedModel: images of this size cannot be transformed.
        """

    @final
    def draw(
        self, count: int, height: int, width: int, draws: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw ``sources`` of rows and of columns for ``count`` images, the same however they are cut into batches."""
        first = self.numbers(height)
        uniform = draws.random((count, first + self.numbers(width)))
        return self.sources(uniform[:, :first], height), self.sources(uniform[:, first:], width)

    @final
    def apply(self, images: Images, draws: np.random.Generator) -> Images:
        """Transform N x C x H x W images, each in its own way."""
        place, lit = _flat(*self.draw(len(images), images.shape[2], images.shape[3], draws))
        moved = np.take_along_axis(images.reshape(*images.shape[:2], place.shape[2]), place, axis=2)
        return np.where(lit, moved, np.float32(0.0)).reshape(images.shape)

    @final
    def apply_torch(self, images: torch.Tensor, draws: np.random.Generator) -> torch.Tensor:
        """Do the same to a tensor; gradients flow."""
        import torch

        drawn = _flat(*self.draw(len(images), images.shape[2], images.shape[3], draws))
        place, lit = (torch.from_numpy(part).to(images.device) for part in drawn)
        pixels = images.flatten(2)
        return pixels.gather(2, place.expand(pixels.shape)).where(lit, 0.0).view(images.shape)

    @final
    def to_json(self) -> dict[str, Any]:
        """Return JSON values from which ``from_json`` restores the same object."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    @final
    def save(self, folder: Path) -> None:
        """State it in a model folder."""
        (folder / FILE).write_text(json.dumps(self.to_json(), indent=2) + "\n", encoding="utf-8")


def _flat(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each pixel of n images comes from and whether it does, both n x 1 x (H W)."""
    (count, height), width = rows.shape, columns.shape[1]
    place = rows.clip(0)[:, :, None] * width + columns.clip(0)[:, None, :]
    lit = (rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]
    return place.reshape(count, 1, height * width), lit.reshape(count, 1, height * width)


@final
@dataclass(frozen=True)
class Csrp(Augmentation):
    """Certain scale with random padding: Alg. 1 of Wang et al., "Mitigating Query-based Neural Network Fingerprinting".

    An axis of H pixels is resized to floor(H sigma) - p, padded with zeros at random to floor(H sigma), and resized
    back; resizing takes the pixel at the rounded position. Halves are rounded to the even neighbour, and a position
    beyond the last pixel is the last one: the algorithm leaves both open.
    """

    kind: ClassVar[str] = "csrp"
    sigma: float
    """Enlargement, in [1, ``MAX_SIGMA``]."""
    padding: int
    """p, in [0, ``MAX_PADDING``] pixels."""

    def __post_init__(self) -> None:
        _check("sigma", self.sigma, 1.0, MAX_SIGMA)
        _check("padding", self.padding, 0, MAX_PADDING)

    def numbers(self, side: int) -> int:
        """See ``Augmentation.numbers``: where the padding goes."""
        del side
        return 1

    def sources(self, uniform: NDArray[np.float64], side: int) -> NDArray[np.int64]:
        """See ``Augmentation.sources``."""
        padded = enlarged(side, self.sigma)
        resized = padded - self.padding
        if resized < 1:
            raise UnsupportedModel(
                f"pads images by {self.padding} pixels at random, which must be less than the {padded} "
                f"to which {side} are enlarged"
            )
        before = np.floor(uniform * (self.padding + 1)).astype(np.int64)
        place = np.rint(np.arange(side) * padded / side).astype(np.int64).clip(max=padded - 1) - before
        found = np.rint(place * side / resized).astype(np.int64).clip(max=side - 1)
        return np.where((place >= 0) & (place < resized), found, BLACK)


def enlarged(side: int, sigma: float) -> int:
    """Return floor(side x sigma) of the decimal ``sigma``: 1.16 x 25 is 29 although the float is a little less."""
    return math.floor(side * sigma + 1e-9)


@final
@dataclass(frozen=True)
class Rdg(Augmentation):
    """Random distortion over grids: Qiu et al., "An Efficient Preprocessing-based Approach ..." (IEEE TC 2021).

    An axis of H pixels is cut into cells of s = floor(H / grids) pixels (at least 1). Cell i shows, linearly, the
    stretch of length s (1 + u_i) that begins where that of cell i - 1 ends, u_i uniform in [-limit, limit]; a last
    cell of fewer pixels shows what is left. Positions are rounded (halves to the even neighbour) and clipped. As
    in the authors' code, cell ends included: both ends of a stretch are shown.
    """

    kind: ClassVar[str] = "rdg"
    grids: int
    """Cells an axis, in [1, ``MAX_GRIDS``]."""
    limit: float
    """Largest relative change of a cell's length, in [0, 1]."""

    def __post_init__(self) -> None:
        _check("grids", self.grids, 1, MAX_GRIDS)
        _check("limit", self.limit, 0.0, 1.0)

    def numbers(self, side: int) -> int:
        """See ``Augmentation.numbers``: one a cell."""
        return math.ceil(side / self._cell(side))

    def sources(self, uniform: NDArray[np.float64], side: int) -> NDArray[np.int64]:
        """See ``Augmentation.sources``."""
        size = self._cell(side)
        ends = np.cumsum(size * (1 + self.limit * (2 * uniform - 1)), axis=1)
        if side % size:
            ends[:, -1] = side
        begins = np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
        cell, inside = np.divmod(np.arange(side), size)
        last = np.minimum(size, side - cell * size) - 1  # of the pixels in the same cell
        share = inside / np.maximum(last, 1)
        position = begins[:, cell] + (ends - begins)[:, cell] * share
        return np.asarray(np.rint(position), np.int64).clip(0, side - 1)

    def _cell(self, side: int) -> int:
        return max(1, side // self.grids)


_KINDS: Mapping[str, type[Csrp | Rdg]] = {kind.kind: kind for kind in (Csrp, Rdg)}


def _check(name: str, value: object, low: float, high: float) -> None:
    """Refuse what is not a number (a whole one where the bounds are) within bounds."""
    kinds = (int,) if isinstance(low, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        number = "a whole number" if isinstance(low, int) else "a number"
        raise CorruptModel(f"{FILE} says {name} = {value!r:.40}: expected {number} in [{low:g}, {high:g}]")


def from_json(data: object) -> Augmentation:
    """Restore from ``to_json``; the file may be hostile.

    Raises:
        CorruptModel: it is not such a description.
    """
    if not isinstance(data, dict) or str(data.get("kind")) not in _KINDS:
        raise CorruptModel(f"{FILE} has no kind of random preprocessing: expected one of {', '.join(_KINDS)}")
    kind = _KINDS[str(data["kind"])]
    wanted = {field.name for field in fields(kind)}
    if data.keys() != {"kind", *wanted}:
        found = ", ".join(sorted(data.keys() - {"kind"}))
        raise CorruptModel(f"{FILE} has {found[:80] or 'nothing'}: expected {', '.join(sorted(wanted))}")
    return kind(**{name: data[name] for name in wanted})


def stated(artifact: Artifact) -> Augmentation | None:
    """Read the random preprocessing of a fetched model; None where its files state none.

    Raises:
        CorruptModel: ``augmentation.json`` is not one.
    """
    held = [file for file, path in zip(artifact.files, _names(artifact), strict=True) if path == FILE]
    if not held or artifact.root is None:
        return None
    with (artifact.root / held[0].path).open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise CorruptModel(f"{FILE} has more than {MAX_BYTES:,} bytes")
    try:
        return from_json(json.loads(content))
    except (ValueError, RecursionError):
        raise CorruptModel(f"{FILE} is not JSON") from None


def plain(artifact: Artifact) -> Artifact:
    """Return the model without its random preprocessing."""
    kept = tuple(file for file, name in zip(artifact.files, _names(artifact), strict=True) if name != FILE)
    return replace(artifact, files=kept)


def _names(artifact: Artifact) -> list[str]:
    return [Path(file.path).name for file in artifact.files]
