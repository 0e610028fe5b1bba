"""Local networks: trained here on the owner's images, to judge scores against and to make fingerprints with.

Which of two things one is depends only on whose labels the data carry. With the true labels it is an independent:
an innocent model, never taught by the victim. With the victim's answers as labels it is a surrogate: a stolen one.

Independents that a score is judged against should be what an innocent model might be: several
architectures, widths, optimisers, augmentations and subsets of the data (``plan``), the victim's own architecture
among them. None of those should see the query images: an innocent model that did would agree with the victim's
mistakes less, so leaving them out can only make the null stricter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from fp_audit import __version__
from fp_audit.data import Labelled
from fp_audit.engine import Progress, Recipe, batch_size, cores, fit, fit_many, predict_network, silent
from fp_audit.errors import DataError
from fp_audit.families import build
from fp_audit.fresh import Architecture
from fp_audit.model import WhiteBox
from fp_audit.types import Images, InputSpec, OutputKind, Outputs, Pixels

MAX_SIDE = 64
"""Larger images are shrunk to this many pixels a side before the small networks see them."""

SEEN_IMAGES = 120_000
"""Images that a reference is shown in training: enough for small networks, minutes on one core."""

MAX_EPOCHS = 40

OWN = "own"
"""The family of networks with the victim's own architecture."""


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that determines one network, given the data and, for the family ``own``, the architecture."""

    family: str
    """One of ``families``, or ``own``."""
    width: int
    """Channels of the first stage; 0 for ``own``."""
    classes: int
    shape: tuple[int, int, int]
    """C, H, W of the images."""
    share: float
    """Share of the training images that it sees."""
    recipe: Recipe
    seed: int = 0

    @property
    def name(self) -> str:
        """Short text that tells networks apart in a report."""
        kind = self.family if self.family == OWN else f"{self.family}-{self.width}"
        return f"{kind}-{self.seed:08x}"


class Network:
    """A trained network as a ``BlackBox``."""

    output: OutputKind = "logits"

    def __init__(
        self,
        name: str,
        *,
        module: nn.Module,
        spec: InputSpec,
        classes: tuple[str, ...] | None,
        white: WhiteBox | None,
        device: str,
    ) -> None:
        """Store what a network consists of.

        Args:
            name: of its ``NetworkSpec``.
            module: from [0, 1] images on ``device`` to logits, in evaluation mode.
            spec: what it takes.
            classes: names in output order, where the data name them.
            white: the adapter's view of it for the family ``own``, else None.
            device: where it is.
        """
        self.name, self.module, self.spec, self.classes = name, module, spec, classes
        self.white, self.device = white, device

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        return predict_network(self.module, images, device=self.device)

    def headless(self) -> Network:
        """Return the network without its last layer: it answers N x D with what that layer is given.

        Only for the families of ``families``, whose layers follow one another.
        """
        body = nn.Sequential(*list(self.module.children())[:-1])
        return Network(self.name, module=body, spec=self.spec, classes=None, white=None, device=self.device)


def plan(
    count: int, data: Labelled, classes: int, *, seed: int, purpose: str, own: bool, effort: float = 1.0
) -> list[NetworkSpec]:
    """Choose ``count`` different networks for a data set.

    Families, widths, subsets (all or 70 % of the images), optimisers and augmentation rotate with different periods,
    so that a dozen differs in all of these. Photographs (three channels) may be flipped; digits and the like not.

    Args:
        count: number of networks.
        data: the images that they will be trained on.
        classes: number of outputs.
        seed: their seeds follow from it and ``purpose``.
        purpose: what they are for, one word: networks for two purposes never start from the same weights.
        own: make every third one of the family ``own``.
        effort: share of ``SEEN_IMAGES`` that one network is shown.
    """
    specs = []
    for i in range(count):
        if own and i % 3 == 0:
            spec = _uniform(OWN, 0, data, classes, effort, shift=(0.1, 0.0)[i % 2])
        else:
            spec = _varied(i - i // 3 - 1 if own else i, data, classes, effort)
        specs.append(replace(spec, seed=_seed(purpose, seed, i)))
    return specs


def alike(
    count: int, data: Labelled, classes: int, *, seed: int, purpose: str, own: bool, effort: float = 1.0
) -> list[NetworkSpec]:
    """Choose ``count`` networks of one architecture and one recipe, which differ in their seeds only.

    They are of the family ``own`` if ``own``, else of a small ``lenet``. Arguments as for ``plan``.
    """
    family, width = (OWN, 0) if own else ("lenet", 16)
    spec = _uniform(family, width, data, classes, effort)
    return [replace(spec, seed=_seed(purpose, seed, i)) for i in range(count)]


def _uniform(family: str, width: int, data: Labelled, classes: int, effort: float, shift: float = 0.1) -> NetworkSpec:
    """Train on all images, with a recipe that suits convolutions and attention, normalised or not."""
    recipe = _recipe(data, effort, "adam", 0.002, shift=shift, flip=True)
    return NetworkSpec(family, width, classes, data.pixels.shape[1:], share=1.0, recipe=recipe)


def _varied(i: int, data: Labelled, classes: int, effort: float) -> NetworkSpec:
    """Return the ``i``-th of the small networks in their rotation."""
    family = ("plain", "residual", "depthwise", "lenet")[i % 4]
    optimizer: Literal["sgd", "adam"]
    optimizer, rate = ("adam", 0.003) if i % 3 == 2 else ("sgd", 0.1)
    if family == "lenet":
        optimizer, rate = "adam", 0.002
    return NetworkSpec(
        family=family,
        width=(16, 24, 32)[(i // 4) % 3],
        classes=classes,
        shape=data.pixels.shape[1:],
        share=1.0 if i % 5 < 3 else 0.7,
        recipe=_recipe(data, effort, optimizer, rate, shift=(0.1, 0.0, 0.1, 0.06)[i % 4], flip=i % 2 == 0),
    )


def _recipe(
    data: Labelled, effort: float, optimizer: Literal["sgd", "adam"], rate: float, *, shift: float, flip: bool
) -> Recipe:
    return Recipe(
        epochs=min(MAX_EPOCHS, max(2.0, effort * SEEN_IMAGES / len(data))),
        batch=64 if len(data) < 5000 else 128,
        optimizer=optimizer,
        learning_rate=rate,
        shift=shift,
        flip=flip and data.pixels.shape[1] == 3,
    )


def _seed(purpose: str, seed: int, index: int) -> int:
    """Hash, so that no network starts from the very weights that an owner drew with a small seed of torch."""
    return int.from_bytes(hashlib.sha256(f"fp-audit {purpose} {seed} {index}".encode()).digest()[:4], "big")


def train(
    specs: Sequence[NetworkSpec],
    data: Labelled,
    *,
    cache: Path,
    device: str = "cpu",
    architecture: Architecture | None = None,
    progress: Progress = silent,
    what: str = "training independents",
) -> Iterator[Network]:
    """Train networks, several at a time, and yield each when it is done.

    On CPU each is trained in a process of its own with one thread, as many at a time as there are cores: small
    networks do not profit from more threads. On CUDA those that differ in their seeds only are trained together,
    one operation for all, and the others one after another. Finished networks are kept under ``cache`` by everything
    that determines them; a second call, also after an interruption, reuses them.

    Args:
        specs: what to train.
        data: training images; with true labels for independents, with the victim's answers for surrogates.
        cache: folder for the weights.
        device: ``cpu`` or ``cuda``.
        architecture: the victim's, for the family ``own``.
        progress: told how many are done.
        what: first argument of ``progress``.

    Raises:
        DataError: the images are too few.
    """
    if len(data) < 10 * specs[0].classes:
        raise DataError(
            f"{data.name}: {len(data)} images are too few to train networks on; expected 10 a class or more"
        )
    cache.mkdir(parents=True, exist_ok=True)
    paths = {spec: cache / f"{_key(spec, data, architecture)}.safetensors" for spec in specs}
    waiting = {spec: path for spec, path in paths.items() if not path.exists()}
    done = 0
    for spec in specs:
        if spec not in waiting:
            done += 1
            yield _load(spec, paths[spec], data, architecture, device)
    progress(what, done / len(specs))
    finished = (
        _train_in_processes(waiting, data, cache, architecture)
        if device == "cpu"
        else _train_together(waiting, data, device, architecture)
    )
    for spec in finished:
        done += 1
        progress(what, done / len(specs))
        yield _load(spec, paths[spec], data, architecture, device)


def _key(spec: NetworkSpec, data: Labelled, architecture: Architecture | None) -> str:
    built = architecture.digest if architecture and spec.family == OWN else None
    text = json.dumps([asdict(spec), built, data.digest, torch.__version__, __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _train_in_processes(
    waiting: Mapping[NetworkSpec, Path], data: Labelled, cache: Path, architecture: Architecture | None
) -> Iterator[NetworkSpec]:
    """Train each in a process of its own; yield each whose weights are in its file."""
    if not waiting:
        return
    with (
        TemporaryDirectory(dir=cache) as scratch,
        ProcessPoolExecutor(
            min(len(waiting), cores()), mp_context=get_context("spawn"), initializer=_end_with_parent
        ) as pool,
    ):
        stored = Path(scratch) / "images.npz"
        np.savez(stored, pixels=data.pixels, labels=data.labels)
        try:
            jobs = {pool.submit(_train_one, spec, stored, path, architecture): spec for spec, path in waiting.items()}
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        except BaseException:
            for process in pool._processes.values():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, even if that one is killed."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def _train_one(spec: NetworkSpec, stored: Path, path: Path, architecture: Architecture | None) -> None:
    """Train one network and write its weights; runs in a process of its own."""
    torch.set_num_threads(1)
    with np.load(stored) as arrays:
        pixels, labels = arrays["pixels"], arrays["labels"]
    _save(_trained([spec], pixels, labels, architecture, "cpu")[0], path)


def _train_together(
    waiting: Mapping[NetworkSpec, Path], data: Labelled, device: str, architecture: Architecture | None
) -> Iterator[NetworkSpec]:
    """Train those that differ in their seeds only at once, as many as fit; yield each whose weights are in its file."""
    for group in _groups(waiting):
        first, _ = _untrained(group[0], data.pixels[:2], architecture, device)
        room = batch_size(first.eval(), data.pixels.shape[1:], device, gradients=True)
        together = max(1, room // group[0].recipe.batch)
        for start in range(0, len(group), together):
            specs = group[start : start + together]
            modules = _trained(specs, data.pixels, data.labels, architecture, device)
            for spec, module in zip(specs, modules, strict=True):
                _save(module, waiting[spec])
            yield from specs


def _groups(specs: Iterable[NetworkSpec]) -> list[list[NetworkSpec]]:
    """Bring those together that see all images and are equal but for their seeds; each other one is alone."""
    groups: dict[NetworkSpec, list[NetworkSpec]] = {}
    for spec in specs:
        groups.setdefault(spec if spec.share < 1 else replace(spec, seed=0), []).append(spec)
    return list(groups.values())


def _trained(
    specs: Sequence[NetworkSpec],
    pixels: Pixels,
    labels: NDArray[np.int64],
    architecture: Architecture | None,
    device: str,
) -> list[nn.Module]:
    """Train one network, or a group of ``_groups``, in this process."""
    modules = [_untrained(spec, pixels[:2], architecture, device)[0] for spec in specs]
    if len(specs) > 1:
        fit_many(modules, pixels, labels, specs[0].recipe, seeds=[spec.seed for spec in specs], device=device)
        return modules
    (spec,) = specs
    order = np.random.default_rng(spec.seed).permutation(len(pixels))
    keep = np.sort(order[: round(spec.share * len(pixels))])
    fit(modules[0], pixels[keep], labels[keep], spec.recipe, seed=spec.seed, device=device)
    return modules


def _save(module: nn.Module, path: Path) -> None:
    """Write weights and buffers; the file appears complete or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    state = module.state_dict().items()
    save_file({name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in state}, partial)
    partial.replace(path)


def _load(spec: NetworkSpec, path: Path, data: Labelled, architecture: Architecture | None, device: str) -> Network:
    module, white = _untrained(spec, data.pixels[:2], architecture, device)
    module.load_state_dict(load_file(path))
    return Network(
        spec.name,
        module=module.eval(),
        spec=white.spec if white else InputSpec(*spec.shape),
        classes=white.classes if white else data.classes,
        white=white,
        device=device,
    )


def _untrained(
    spec: NetworkSpec, sample: Pixels, architecture: Architecture | None, device: str
) -> tuple[nn.Module, WhiteBox | None]:
    """Build the network of a spec with the weights that it starts from; also the adapter's view of the family ``own``.

    The weights are drawn on the CPU: the same for every device.
    """
    if spec.family != OWN:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            return build(spec.family, spec.width, spec.classes, spec.shape, max_side=MAX_SIDE).to(device), None
    if architecture is None:
        raise ValueError("networks of the family 'own' need an architecture")
    white = architecture.fresh(seed=spec.seed, sample=sample, device=device)
    return white.module, white
