"""A victim, five surrogates and five independents whose history is known, as files, for the benchmarks.

The training images are halved: the owner's half trained the victim, the thief works with the other. Each
independent is trained on a random half of all of them, with true labels. Everything is made once and kept.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fp_audit import attack
from fp_audit.attacking import staged
from fp_audit.data import Labelled, load
from fp_audit.engine import Recipe, fit, predict_network
from fp_audit.families import build
from fp_audit.model import as_images

SURROGATES = ("fine-tuned", "pruned", "int8", "extracted", "extracted-timm")
RESNET = "cifar10-resnet"
DATASETS = ("mnist", "cifar10", RESNET)
"""Images, and for CIFAR-10 one of two victims: a plain network as an ONNX file, or a HuggingFace ResNet."""

INDEPENDENTS = ("same-architecture", "plain", "residual", "depthwise", "lenet")


@dataclass(frozen=True)
class Zoo:
    """Where everything lies."""

    root: Path
    victim: Path
    """An ONNX file, or a HuggingFace folder."""

    @property
    def owner(self) -> Path:
        """The owner's images."""
        return self.root / "owner.npz"

    @property
    def thief(self) -> Path:
        """The thief's images."""
        return self.root / "thief.npz"

    @property
    def suspects(self) -> Path:
        """Folder of ``thief/*`` and ``other/*``."""
        return self.root / "suspects"


def lenet5(classes: int = 10) -> nn.Module:
    """LeNet-5 for 1 x 28 x 28 images (LeCun et al., 1998) with ReLU and max pooling: 61,706 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def resnet(classes: int = 10) -> nn.Module:
    """HuggingFace's ResNet with BatchNorm and three basic blocks, for 3 x 32 x 32 images: 312,490 parameters."""
    from fp_audit_adapters._torchvision import ensure_torchvision

    ensure_torchvision()
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_labels=classes, **shape))


def make(root: Path, dataset: str, data: Path, *, seen: int, stolen: bool = True) -> Zoo:
    """Make what is missing of a zoo under ``root``.

    Args:
        root: folder to fill.
        dataset: one of ``DATASETS``.
        data: folder with ``train.parquet`` and ``test.parquet``.
        seen: images that the victim is shown in training; the others half as many.
        stolen: whether surrogates are made too.
    """
    zoo = make_victim(root, dataset, data, seen=seen)
    images, test = load(str(data / "train.parquet")), load(str(data / "test.parquet"))
    if stolen:
        _steal(zoo, len(images) // 2, seen // 2)
    for i, name in enumerate(INDEPENDENTS):
        half = images.take(np.random.default_rng(100 + i).permutation(len(images))[: len(images) // 2])
        network = _victim(dataset, images) if i == 0 else _network(name, 20, images)
        _trained(zoo.suspects / "other" / name / "model.onnx", network, half, test, seen=seen // 2, seed=200 + i)
    return zoo


def make_victim(root: Path, dataset: str, data: Path, *, seen: int) -> Zoo:
    """Make what is missing of a zoo's images and victim. Arguments as for ``make``."""
    root.mkdir(parents=True, exist_ok=True)
    zoo = Zoo(root, root / ("victim" if dataset == RESNET else "victim.onnx"))
    images = load(str(data / "train.parquet"))
    order = np.random.default_rng(1).permutation(len(images))
    owner, thief = images.take(order[: len(order) // 2]), images.take(order[len(order) // 2 :])
    for path, part in ((zoo.owner, owner), (zoo.thief, thief)):
        if not path.exists():
            np.savez(path, images=part.pixels, labels=part.labels, classes=np.array(part.classes or ()))
    test = load(str(data / "test.parquet"))
    _trained(zoo.victim, _victim(dataset, images), owner, test, seen=seen, seed=11)
    return zoo


def make_siblings(root: Path, dataset: str, data: Path, count: int, *, seen: int) -> list[Path]:
    """Make what is missing of ``count`` networks that were trained just as the victim was, from other seeds.

    Other arguments as for ``make``.
    """
    zoo = make_victim(root, dataset, data, seen=seen)
    owner, test = load(str(zoo.owner)), load(str(data / "test.parquet"))
    paths = [root / "siblings" / f"{i}{zoo.victim.suffix}" for i in range(count)]
    for i, path in enumerate(paths):
        _trained(path, _victim(dataset, owner), owner, test, seen=seen, seed=5000 + i)
    return paths


def _victim(dataset: str, images: Labelled) -> nn.Module:
    makers = {"mnist": lenet5, "cifar10": lambda: _network("plain", 16, images), RESNET: lambda: _Logits(resnet())}
    return makers[dataset]()


class _Logits(nn.Module):
    """A HuggingFace model that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Answer images in [0, 1]."""
        return self.model(images).logits


def _network(family: str, width: int, images: Labelled) -> nn.Module:
    shape = images.pixels.shape[1:]
    return build(family, width, 10, shape)


def _trained(path: Path, network: nn.Module, images: Labelled, test: Labelled, *, seen: int, seed: int) -> None:
    if path.exists():
        return
    torch.manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            layer.reset_parameters()
    photographs = images.pixels.shape[1] == 3
    recipe = Recipe(
        epochs=seen / len(images),
        optimizer="adam",
        learning_rate=0.003,
        shift=0.1 if photographs else 0.05,
        flip=photographs,
    )
    fit(network, images.pixels, images.labels, recipe, seed=seed)
    accuracy = (predict_network(network, as_images(test.pixels)).argmax(axis=1) == test.labels).mean()
    print(f"{path.parent.name}/{path.name}: {accuracy:.2%} on the test images", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".onnx":
        _export(network, path, images.pixels.shape[1:])
    else:
        _save(network.model, path, images.pixels.shape[2])


def _export(network: nn.Module, path: Path, shape: tuple[int, ...]) -> None:
    torch.onnx.export(
        network,
        (torch.zeros(2, *shape),),
        str(path),
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )


def _save(model: nn.Module, folder: Path, side: int) -> None:
    """Save a HuggingFace model that takes images in [0, 1] as they are."""
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": side, "width": side},
        "do_resize": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }
    with staged(folder) as out:
        model.save_pretrained(out)
        (out / "preprocessor_config.json").write_text(json.dumps(processor))


def _steal(zoo: Zoo, images: int, seen: int) -> None:
    again = {"epochs": seen / images}
    jobs = {
        "fine-tuned": ("fine-tune", {"mode": "ftal", "epochs": again["epochs"] / 2, "learning_rate": 0.001}),
        "pruned": ("prune", {"rate": 0.5, **again}),
        "int8": ("quantise", {"mode": "static"}),
        "extracted": ("extract", {"epochs": 2 * again["epochs"]}),
        "extracted-timm": ("extract", {"architecture": "test_resnet", "queries": 12_000, "epochs": 4.0}),
    }
    for name, (method, options) in jobs.items():
        out = zoo.suspects / "thief" / name
        if not out.exists():
            partial = out.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            done = attack(method, str(zoo.victim), str(zoo.thief), partial, options=options)
            partial.rename(out)
            print(f"thief/{name}: {done.fidelity}", flush=True)
