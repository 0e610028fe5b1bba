"""Untrained networks for a thief who trains one: the victim's architecture, timm's or transformers'."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from fp_audit import plugins
from fp_audit.attacks._base import Task, require
from fp_audit.attacks._hf_shapes import configuration
from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.fresh import Architecture
from fp_audit.model import Adapter, LoadOptions, WhiteBox
from fp_audit.types import Access, Artifact, File, Listing, Skipped

SAME = "same"

TRANSFORMERS = "hf:"

MIN_SIZE = 64
"""Pixels a side to which smaller images are enlarged for timm's and transformers' networks, most of which shrink them
32 times."""

_Built: TypeAlias = tuple[Any, Callable[[Path], object]]
"""A network, and what writes it to a folder in its library's layout."""


def chosen_network(architecture: str, size: int) -> dict[str, Any]:
    """Return the options that say which network is trained.

    Args:
        architecture: ``same`` (the victim's), a name of timm's, or ``hf:`` and a model type of transformers.
        size: side in pixels to which images are resized for the latter two; 0 keeps theirs, but enlarges those below
            ``MIN_SIZE``. The saved folder states it.

    Raises:
        UsageError: ``size`` is negative.
    """
    require(size >= 0, "size", size, "pixels, or 0 for the size of the images")
    return {"architecture": architecture, "size": size}


def student(task: Task, options: Mapping[str, Any], classes: int) -> tuple[WhiteBox, Adapter]:
    """Build the network of ``chosen_network``, every weight drawn anew, and name the adapter that saves it.

    Args:
        task: gives seed, device and the images.
        options: of the attack, those of ``chosen_network`` among them.
        classes: number of outputs.

    Raises:
        UsageError: there is no such architecture, or it cannot be built for these images.
    """
    name = options["architecture"]
    if name == SAME:
        own = Architecture(task.adapter.name, task.artifact, task.opening)
        return own.fresh(seed=task.draw, sample=task.data.pixels[:2], device=task.opening.device), task.adapter
    size = options["size"] or max(MIN_SIZE, *task.data.pixels.shape[2:])
    return _other(name, task, (task.data.pixels.shape[1], size, size), classes)


def _other(name: str, task: Task, shape: tuple[int, int, int], classes: int) -> tuple[WhiteBox, Adapter]:
    """Build a network that is not the victim's; write it, so that an adapter opens it like any other."""
    import torch

    library, build = ("huggingface", _transformers) if name.startswith(TRANSFORMERS) else ("timm", _timm)
    adapter: Adapter = plugins.load("adapters", library)()
    for module in adapter.preload[Access.GRADIENTS]:
        import_module(module)  # in the adapter's order: both libraries need torchvision made importable first
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(task.draw)
        try:
            network, write = build(name, shape, classes)
            network.eval()(torch.zeros(1, *shape))
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise UsageError(f"{name} cannot be built for {shape[1]}x{shape[2]} images: {text}") from None
        write(Path(scratch))
        return adapter.load_white(claimed(adapter, Path(scratch)), opening(task, adapter)), adapter


def _timm(name: str, shape: tuple[int, int, int], classes: int) -> _Built:
    timm = import_module("timm")
    if not timm.is_model(name):
        raise UsageError(
            f"architecture is {name!r}: expected 'same', a name of timm.list_models(), such as resnet18, "
            f"or {TRANSFORMERS} and a model type of transformers"
        )
    stated = {"input_size": shape, "num_classes": classes, "mean": (0.5,) * shape[0], "std": (0.5,) * shape[0]}
    stated |= {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    network = timm.create_model(name, pretrained=False, num_classes=classes, pretrained_cfg_overlay=stated)
    return network, partial(timm.models.save_for_hf, network, safe_serialization=True)


def _transformers(name: str, shape: tuple[int, int, int], classes: int) -> _Built:
    transformers = import_module("transformers")
    model_type = name.removeprefix(TRANSFORMERS)
    with _quietly():
        config = transformers.AutoConfig.for_model(model_type, **configuration(model_type, shape, classes))
    kinds = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    network = (kinds[0] if isinstance(kinds, tuple) else kinds)(config)  # of two, the one without a teacher's head

    def write(folder: Path) -> None:
        with _quietly():
            network.save_pretrained(folder)
        half = {"image_mean": [0.5] * shape[0], "image_std": [0.5] * shape[0]}
        size = {"height": shape[1], "width": shape[2]}
        processor = {"image_processor_type": "ViTImageProcessor", "size": size, **half}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))

    return network, write


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence transformers: its bars, and its remarks on networks for text that a classifier does not have."""
    logging = import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def opening(task: Task, adapter: Adapter) -> LoadOptions:
    """Return how the thief's model is opened: like the victim where both are of one kind, as in measuring fidelity."""
    known = task.opening.preprocess if adapter.name == task.adapter.name else None
    return LoadOptions(task.opening.device, preprocess=known)


def claims(adapter: Adapter, folder: Path) -> Iterator[Artifact | Skipped]:
    """Let an adapter look for its models in a folder, not below it."""
    files = tuple(File(path.name, path.stat().st_size) for path in sorted(folder.iterdir()) if path.is_file())
    return adapter.claim(Listing(str(folder), files, folder), lambda name: (folder / name).read_bytes())


def claimed(adapter: Adapter, folder: Path) -> Artifact:
    """Let an adapter claim the model that was written for it.

    Raises:
        UnsupportedModel: it does not open it.
    """
    found = next(claims(adapter, folder))
    if isinstance(found, Skipped):
        raise UnsupportedModel(f"the {adapter.name} adapter does not open it: {found.reason}")
    return found
