"""Independents: small networks trained on the owner's data and labels, never on the victim's answers.

They are what a score is judged against, so they should be what an innocent model might be: several
architectures, widths, optimisers, augmentations and subsets of the data. None of them sees the query images: an
innocent model that did would agree with the victim's mistakes less, so leaving them out can only make
the null stricter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fp_audit import __version__
from fp_audit.data import Labelled
from fp_audit.engine import Progress, Recipe, cores, fit, predict_network, silent
from fp_audit.errors import DataError
from fp_audit.types import Images, InputSpec, OutputKind, Outputs

MAX_SIDE = 64
"""Larger images are shrunk to this many pixels a side before these small networks see them."""

SEEN_IMAGES = 120_000
"""Images that one reference is shown in training: enough for small networks, minutes on one core."""

MAX_EPOCHS = 40


@dataclass(frozen=True)
class ReferenceSpec:
    """Everything that determines one reference, given the data."""

    family: str
    """``plain`` (convolution, BatchNorm, ReLU), ``residual``, ``depthwise`` or ``lenet`` (no normalisation)."""
    width: int
    classes: int
    shape: tuple[int, int, int]
    """C, H, W of the images."""
    share: float
    """Share of the training images that it sees."""
    recipe: Recipe
    seed: int

    @property
    def name(self) -> str:
        """Short text that tells references apart in a report."""
        return f"{self.family}-{self.width}-{self.seed:08x}"


class Reference:
    """A trained reference as a ``BlackBox``."""

    output: OutputKind = "logits"

    def __init__(self, spec: ReferenceSpec, network: nn.Module, classes: tuple[str, ...] | None) -> None:
        self.name = spec.name
        self.spec = InputSpec(*spec.shape)
        self.classes = classes
        self.network = network

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``."""
        return predict_network(self.network, np.rint(images * 255).astype(np.uint8))


def plan(count: int, data: Labelled, classes: int, *, seed: int) -> list[ReferenceSpec]:
    """Choose ``count`` different references for a data set.

    Families, widths, subsets (all or 70 % of the images), optimisers and augmentation rotate with different periods,
    so that a dozen differs in all of these. Photographs (three channels) may be flipped; digits and the like not.
    """
    epochs = min(MAX_EPOCHS, max(2.0, SEEN_IMAGES / len(data)))
    specs = []
    for i in range(count):
        adam = i % 3 == 2
        recipe = Recipe(
            epochs=epochs,
            batch=64 if len(data) < 5000 else 128,
            optimizer="adam" if adam else "sgd",
            learning_rate=0.003 if adam else 0.1,
            shift=(0.1, 0.0, 0.1, 0.06)[i % 4],
            flip=data.pixels.shape[1] == 3 and i % 2 == 0,
        )
        family = ("plain", "residual", "depthwise", "lenet")[i % 4]
        if family == "lenet":
            recipe = Recipe(**{**asdict(recipe), "optimizer": "adam", "learning_rate": 0.002})
        specs.append(
            ReferenceSpec(
                family=family,
                width=(16, 24, 32)[(i // 4) % 3],
                classes=classes,
                shape=data.pixels.shape[1:],
                share=1.0 if i % 5 < 3 else 0.7,
                recipe=recipe,
                seed=_seed(seed, i),
            )
        )
    return specs


def _seed(seed: int, index: int) -> int:
    """Hash, so that no reference starts from the very weights that an owner drew with a small seed of torch."""
    return int.from_bytes(hashlib.sha256(f"fp-audit reference {seed} {index}".encode()).digest()[:4], "big")


def train(
    specs: list[ReferenceSpec],
    data: Labelled,
    *,
    cache: Path,
    device: str = "cpu",
    progress: Progress = silent,
) -> Iterator[Reference]:
    """Train references, several at a time, and yield each when it is done.

    On CPU each is trained in a process of its own with one thread, as many at a time as there are cores: small
    networks do not profit from more threads. On CUDA four processes share the device. Finished references are kept
    under ``cache`` by everything that determines them; a second call, also after an interruption, reuses them.

    Args:
        specs: what to train.
        data: training images with true labels; without the query images.
        cache: folder for the weights.
        device: ``cpu`` or ``cuda``.
        progress: told how many are done.
    """
    if len(data) < 10 * specs[0].classes:
        raise DataError(
            f"{data.name}: {len(data)} images are too few to train references on; expected 10 a class or more"
        )
    cache.mkdir(parents=True, exist_ok=True)
    paths = {spec: cache / f"{_key(spec, data)}.safetensors" for spec in specs}
    missing = [spec for spec in specs if not paths[spec].exists()]
    done = 0
    for spec in specs:
        if spec not in missing:
            done += 1
            yield _load(spec, paths[spec], data.classes)
    progress("training references", done / len(specs))
    if not missing:
        return
    stored = _store(data, cache)
    workers = min(len(missing), cores() if device == "cpu" else 4)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            jobs = {pool.submit(_train_one, spec, stored, paths[spec], device): spec for spec in missing}
            for job in as_completed(jobs):
                job.result()
                done += 1
                progress("training references", done / len(specs))
                yield _load(jobs[job], paths[jobs[job]], data.classes)
        except BaseException:
            for process in pool._processes.values():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            stored.unlink(missing_ok=True)


def _store(data: Labelled, cache: Path) -> Path:
    """Write the images where the workers can map them."""
    path = cache / f"{data.digest}.{hashlib.sha256(str(id(data)).encode()).hexdigest()[:8]}.npz"
    np.savez(path, pixels=data.pixels, labels=data.labels)
    return path


def _key(spec: ReferenceSpec, data: Labelled) -> str:
    text = json.dumps([asdict(spec), data.digest, torch.__version__, __version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _train_one(spec: ReferenceSpec, stored: Path, path: Path, device: str) -> None:
    """Train one reference and write its weights; runs in a process of its own."""
    torch.set_num_threads(1)
    with np.load(stored) as arrays:
        pixels, labels = arrays["pixels"], arrays["labels"]
    keep = np.random.default_rng(spec.seed).permutation(len(pixels))[: round(spec.share * len(pixels))]
    torch.manual_seed(spec.seed)
    network = build(spec)
    fit(network, pixels[keep], labels[keep], spec.recipe, seed=spec.seed, device=device)
    partial = path.with_suffix(f".{spec.seed}.partial")
    save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, partial)
    partial.replace(path)


def _load(spec: ReferenceSpec, path: Path, classes: tuple[str, ...] | None) -> Reference:
    network = build(spec)
    network.load_state_dict(load_file(path))
    return Reference(spec, network.eval(), classes)


class _Centre(nn.Module):
    """Bring [0, 1] images to about zero mean and unit deviation."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.25


class _Residual(nn.Module):
    """Two normalised convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(channels, out), nn.ReLU(), *_conv(out, out))
        self.shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.shortcut(x)
        return out.relu()


def _conv(channels: int, out: int, groups: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(out)]


def _block(family: str, channels: int, out: int) -> nn.Module:
    """Return one stage of a family, ``channels`` to ``out`` at the same height and width."""
    if family == "plain":
        return nn.Sequential(*_conv(channels, out), nn.ReLU())
    if family == "residual":
        return _Residual(channels, out)
    if family == "depthwise":
        point = [nn.Conv2d(channels, 2 * out, 1, bias=False), nn.BatchNorm2d(2 * out), nn.ReLU()]
        return nn.Sequential(*point, *_conv(2 * out, 2 * out, groups=2 * out), nn.ReLU(), nn.Conv2d(2 * out, out, 1))
    return nn.Sequential(nn.Conv2d(channels, out, 5, padding=2), nn.ReLU())


def build(spec: ReferenceSpec) -> nn.Module:
    """Build the untrained network of a reference: from [0, 1] images of ``spec.shape`` to logits."""
    channels, height, width = spec.shape
    shrink = max(height, width) / MAX_SIDE
    blocks: list[nn.Module] = [_Centre()]
    if shrink > 1:
        blocks.append(nn.AdaptiveAvgPool2d((round(height / shrink), round(width / shrink))))
    side = min(height, width, MAX_SIDE)
    stages = max(1, min(3, side.bit_length() - 2))
    last = channels
    for stage in range(stages):
        out = spec.width * 2**stage
        blocks += [_block(spec.family, last, out), nn.MaxPool2d(2)]
        last = out
    if spec.family == "lenet":
        blocks += [
            nn.AdaptiveAvgPool2d(3),
            nn.Flatten(),
            nn.Linear(9 * last, 96),
            nn.ReLU(),
            nn.Linear(96, spec.classes),
        ]
    else:
        blocks += [
            _block(spec.family, last, last),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, spec.classes),
        ]
    return nn.Sequential(*blocks)
