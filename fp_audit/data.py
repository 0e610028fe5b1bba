"""Labelled images from a parquet file or folder, an image folder, an ``.npz`` file or a hub data set.

Everything but ``.npz`` is read by the ``datasets`` library. What comes out is one uint8 array: fingerprints are
made of images that could be files.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import DataError
from fp_audit.types import Pixels

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

MAX_BYTES = 2**30
"""Most pixels to hold in memory, bytes; a larger data set is sampled at random."""

_SPLIT_ORDER = ("train", "training", "test", "validation")
_IMAGE_COLUMNS = ("image", "img", "images", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "target", "y")
_NPZ_NAMES = {
    "images": ("images", "image", "x", "x_train", "data"),
    "labels": ("labels", "label", "y", "y_train", "target"),
}


@dataclass(frozen=True)
class Labelled:
    """Images of a task with their true labels."""

    pixels: Pixels
    """N x C x H x W, uint8."""
    labels: NDArray[np.int64]
    """N, in [0, number of classes)."""
    classes: tuple[str, ...] | None
    """Class names in label order, where the data name them."""
    name: str
    """What the user asked for, with the split."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 over shape, pixels and labels."""
        state = hashlib.sha256(repr(self.pixels.shape).encode())
        state.update(np.ascontiguousarray(self.pixels).data)
        state.update(np.ascontiguousarray(self.labels, "<i8").data)
        return state.hexdigest()

    @property
    def class_count(self) -> int:
        """How many classes the data name, or else how many their labels need."""
        return len(self.classes) if self.classes else int(self.labels.max()) + 1

    def take(self, index: NDArray[np.integer]) -> Labelled:
        """Return the images at ``index``, in that order."""
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def of_classes(self, count: int) -> Labelled:
        """Number the classes where the data do not name ``count`` of them."""
        named = self.classes and len(self.classes) == count
        return self if named else replace(self, classes=tuple(map(str, range(count))))

    def without(self, *shown: Pixels) -> Labelled:
        """Leave out the images that are equal to one in ``shown``."""
        known = {image.tobytes() for images in shown for image in images}
        return self.take(np.flatnonzero([image.tobytes() not in known for image in self.pixels]))


def load(text: str, *, size: tuple[int, int] | None = None, max_bytes: int = MAX_BYTES, seed: int = 0) -> Labelled:
    """Read DATA as the command line gives it: a path or a hub data set id, optionally followed by ``:split``.

    Args:
        text: ``train.parquet``, ``folder``, ``images/``, ``digits.npz``, ``org/dataset``, each with an optional
            ``:split``. Without one the training split is taken, or the only one.
        size: height and width to which images are brought when they are not all of one size.
        max_bytes: more pixels than this are not held: a random sample is drawn.
        seed: of that sample.

    Raises:
        DataError: nothing there, no such split, no image or label column, unreadable images.
    """
    where, split = _split_off(text)
    if where.endswith(".npz"):
        found = _from_npz(Path(where), split)
    else:
        found = _from_dataset(*_dataset(where, split), size=size, max_bytes=max_bytes, seed=seed)
    _check(found, text)
    return found


def _check(found: Labelled, text: str) -> None:
    """Refuse data without images, without a label for each, or with labels that name no class."""
    labels = found.labels
    if not len(labels) and not len(found.pixels):
        raise DataError(f"{text}: no images found")
    if len(labels) != len(found.pixels):
        raise DataError(f"{text}: {len(labels)} labels for {len(found.pixels)} images; expected one each")
    most = len(found.classes) - 1 if found.classes else labels.max()
    if labels.min() < 0 or labels.max() > most:
        raise DataError(f"{text}: labels go from {labels.min()} to {labels.max()}; expected class indices 0 to {most}")


def _split_off(text: str) -> tuple[str, str | None]:
    where, colon, split = text.rpartition(":")
    if not colon or Path(text).exists() or "/" in split or "\\" in split:
        return text, None
    return where, split


def _from_npz(path: Path, split: str | None) -> Labelled:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, OSError, TypeError, ValueError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable .npz of plain arrays ({error})") from None
    found = {}
    for role, names in _NPZ_NAMES.items():
        wanted = [f"{name}_{split}" for name in (role, names[-3])] if split else names
        held = [name for name in wanted if name in arrays]
        if not held:
            raise DataError(
                f"{path}: holds {', '.join(arrays) or 'nothing'}; expected an array called {' or '.join(wanted)}"
            )
        found[role] = arrays[held[0]]
    classes = tuple(map(str, arrays["classes"])) if "classes" in arrays else None
    pixels, labels = _as_pixels(found["images"], str(path)), found["labels"].reshape(-1)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: labels are {labels.dtype}; expected integers")
    return Labelled(pixels, labels.astype(np.int64), classes, f"{path.name}:{split}" if split else path.name)


def _as_pixels(images: NDArray[Any], where: str) -> Pixels:
    """Bring N x H x W, N x H x W x C or N x C x H x W, uint8 or float in [0, 1], to uint8 N x C x H x W."""
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not {images.shape[1], images.shape[-1]} & {1, 3}:
        raise DataError(
            f"{where}: images have shape {images.shape}; "
            "expected N x H x W, N x H x W x C or N x C x H x W with 1 or 3 channels"
        )
    if images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating) or not (images.min() >= 0 and images.max() <= 1):
            raise DataError(f"{where}: images are {images.dtype}; expected uint8, or floats in [0, 1]")
        images = np.rint(images * 255)
    return np.ascontiguousarray(images, np.uint8)


def _dataset(where: str, split: str | None) -> tuple[Dataset, str]:
    """Open a data set through the ``datasets`` library and choose a split."""
    import datasets
    from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(**_arguments(where))
    except (DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read as a data set ({_first_line(error)})") from None
    chosen = split or next((name for name in _SPLIT_ORDER if name in splits), next(iter(splits)))
    if chosen not in splits:
        raise DataError(f"{where}: has no split {chosen!r}; expected one of {', '.join(splits)}")
    return splits[chosen], f"{Path(where).name}:{chosen}"


def _arguments(where: str) -> dict[str, Any]:
    path = Path(where)
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"{where}: a .parquet or .npz file, a folder or a hub data set was expected")
        return {"path": "parquet", "data_files": {path.stem.split("-")[0]: str(path)}}
    if path.is_dir():
        return _folder_arguments(path)
    if where.startswith((".", "/", "~")) or where.count("/") > 1 or path.suffix in (".parquet", ".npz"):
        raise DataError(f"{where}: no such file or folder")
    return {"path": where}


def _folder_arguments(folder: Path) -> dict[str, Any]:
    """Parquet files grouped by split (``train.parquet``, ``train-00000-of-00002.parquet``), else images."""
    groups: dict[str, list[str]] = {}
    for path in sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]):
        groups.setdefault(path.stem.split("-")[0], []).append(str(path))
    if groups:
        return {"path": "parquet", "data_files": groups}
    if not any(path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp") for path in folder.rglob("*")):
        raise DataError(f"{folder}: holds neither .parquet files nor images; expected one of them")
    return {"path": "imagefolder", "data_dir": str(folder)}


def _from_dataset(data: Dataset, name: str, *, size: tuple[int, int] | None, max_bytes: int, seed: int) -> Labelled:
    import datasets
    from pyarrow import ArrowException

    image = _column(data, _IMAGE_COLUMNS, name)
    label = _column(data, _LABEL_COLUMNS, name)
    if not len(data):
        raise DataError(f"{name}: no images found")
    feature = data.features[label]
    classes = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None
    try:
        if not isinstance(data.features[image], datasets.Image):
            data = data.cast_column(image, datasets.Image())
        one = _decode(data[0][image], None, name).nbytes
        if len(data) * one > max_bytes:
            keep = np.random.default_rng(seed).permutation(len(data))[: max(1, max_bytes // one)]
            data = data.select(np.sort(keep))
        pixels = _stack([row[image] for row in data.select_columns([image])], size, name)
        labels = np.asarray(data[label][:], np.int64)
    except (ArrowException, OSError, TypeError, ValueError) as error:
        raise DataError(f"{name}: an image or label cannot be read ({_first_line(error)})") from None
    return Labelled(pixels, labels, classes, name)


def _column(data: Dataset, names: tuple[str, ...], where: str) -> str:
    for name in names:
        if name in data.column_names:
            return name
    raise DataError(
        f"{where}: has the columns {', '.join(data.column_names)}; expected one called {' or '.join(names[:3])}"
    )


def _stack(images: list[Image], size: tuple[int, int] | None, name: str) -> Pixels:
    """Stack images to N x C x H x W; grey only if all are grey, resized only if their sizes differ."""
    if None in images:
        raise DataError(f"{name}: a row has no image")
    grey = all(image.mode in ("L", "1", "I", "F") for image in images)
    sizes = {image.size for image in images}
    if len(sizes) == 1:
        size = None
    elif size is None:
        raise DataError(
            f"{name}: images have {len(sizes)} different sizes and the model takes any; bring them to one size first"
        )
    return np.stack([_decode(image, size, name, grey=grey) for image in images])


def _decode(image: Image, size: tuple[int, int] | None, name: str, *, grey: bool | None = None) -> NDArray[np.uint8]:
    """One image as C x H x W; brought to ``size`` by scaling the shorter side and cropping the centre."""
    from PIL import ImageOps

    if image is None:
        raise DataError(f"{name}: a row has no image")
    single = image.mode == "L" if grey is None else grey
    image = image.convert("L" if single else "RGB")
    if size is not None:
        image = ImageOps.fit(image, (size[1], size[0]))
    array = np.asarray(image, np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def summary(data: Labelled) -> Mapping[str, Any]:
    """Describe the data for the register: name, digest, number of images, shape, classes."""
    return {
        "name": data.name,
        "digest": data.digest,
        "images": len(data),
        "shape": list(data.pixels.shape[1:]),
        "classes": list(data.classes) if data.classes else None,
    }
