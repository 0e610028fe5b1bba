"""Untrained networks of other architectures for a thief who trains from scratch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fp_audit import plugins
from fp_audit.attacks._base import Task
from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.model import Adapter, LoadOptions, WhiteBox
from fp_audit.types import Access, Artifact, File, Listing, Skipped


def timm_architecture(name: str, task: Task, *, classes: int, size: int) -> tuple[WhiteBox, Adapter]:
    """Build an untrained timm network for the thief's images.

    Args:
        name: of the architecture, without a tag of pre-trained weights.
        task: gives seed, device and the images, from which the channels are taken.
        classes: number of outputs.
        size: height and width to which the images are resized.

    Raises:
        UsageError: timm has no such architecture, or it cannot be built for this size.
    """
    import torch

    adapter: Adapter = plugins.load("adapters", "timm")()
    for library in adapter.preload[Access.GRADIENTS]:
        import_module(library)  # in the adapter's order: timm needs torchvision made importable first
    import timm

    if not timm.is_model(name):
        raise UsageError(f"architecture is {name!r}: expected 'same' or a name of timm.list_models(), such as resnet18")
    stated = _pretrained_cfg(task.data.pixels.shape[1], size, classes)
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(task.draw)
        try:
            network = timm.create_model(name, pretrained=False, num_classes=classes, pretrained_cfg_overlay=stated)
            network.eval()(torch.zeros(1, task.data.pixels.shape[1], size, size))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(f"{name} cannot be built for {size}x{size} images: {error}") from None
        timm.models.save_for_hf(network, scratch, safe_serialization=True)
        return adapter.load_white(_claimed(adapter, Path(scratch)), LoadOptions(task.opening.device)), adapter


def _claimed(adapter: Adapter, folder: Path) -> Artifact:
    """Let an adapter claim the model that it is known to find in a folder."""
    files = tuple(File(path.name, path.stat().st_size) for path in folder.iterdir())
    found = next(adapter.claim(Listing(str(folder), files, folder), lambda name: (folder / name).read_bytes()))
    if isinstance(found, Skipped):
        raise UnsupportedModel(f"the {adapter.name} adapter does not open it: {found.reason}")
    return found


def _pretrained_cfg(channels: int, size: int, classes: int) -> Mapping[str, Any]:
    """State how the network wants its images: resized as a whole to ``size``, values in [-1, 1]."""
    return {
        "input_size": (channels, size, size),
        "num_classes": classes,
        "mean": (0.5,) * channels,
        "std": (0.5,) * channels,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
