"""Small victims of every kind, trained for a few seconds on scikit-learn's digits, and their data as a file."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from fp_audit.attacking import open_victim
from fp_audit.attacks._base import Task
from fp_audit.data import Labelled
from fp_audit.engine import Recipe, fit
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import adapter, locate_one
from fp_audit_adapters._torchvision import ensure_torchvision

KINDS = ("huggingface", "timm", "onnx")
SIZE = 16
RECIPE = Recipe(epochs=5, batch=64, optimizer="adam", learning_rate=0.01)


class Scaled(nn.Module):
    """A network behind the preprocessing that its folder will state: [0, 1] to [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images):
        answer = self.network(2 * images - 1)
        return answer if isinstance(answer, torch.Tensor) else answer.logits


@cache
def folder() -> Path:
    """Return a folder that lives as long as the tests."""
    path = Path(tempfile.mkdtemp(prefix="fp-audit-victims-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def digits() -> Labelled:
    """Return the digits, 16 x 16, as labelled images."""
    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[:, None].repeat(2, axis=2).repeat(2, axis=3)
    return Labelled(np.ascontiguousarray(pixels), found.target.astype(np.int64), None, "digits.npz")


@cache
def data() -> str:
    """Return DATA as the command line takes it."""
    path = folder() / "digits.npz"
    np.savez(path, images=digits().pixels, labels=digits().labels)
    return str(path)


@cache
def victim(kind: str) -> Path:
    """Return the model folder of a trained victim."""
    path = folder() / kind
    torch.manual_seed(0)
    {"huggingface": _huggingface, "timm": _timm, "onnx": _onnx}[kind](path)
    return path


def _train(network: nn.Module) -> None:
    fit(network, digits().pixels, digits().labels, RECIPE, seed=0)


def _huggingface(path: Path) -> None:
    ensure_torchvision()
    from transformers import ResNetConfig, ResNetForImageClassification

    shape = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"}
    network = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=10, **shape))
    _train(Scaled(network))
    network.save_pretrained(path)
    processor = {"image_processor_type": "ConvNextImageProcessor", "do_resize": False, "do_rescale": True}
    processor |= {"rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5], "image_std": [0.5]}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))


def _timm(path: Path) -> None:
    ensure_torchvision()
    import timm

    stated = {"input_size": (1, 2 * SIZE, 2 * SIZE), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0}
    stated |= {"interpolation": "bilinear", "num_classes": 10}
    network = timm.create_model("test_resnet", num_classes=10, pretrained_cfg_overlay=stated)
    _train(nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), Scaled(network)))
    timm.models.save_for_hf(network, str(path), safe_serialization=True)


def _onnx(path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.MaxPool2d(2)
    )
    network = nn.Sequential(network, nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10))
    _train(Scaled(network))
    path.mkdir()
    torch.onnx.export(
        network.eval(),
        (torch.zeros(2, 1, SIZE, SIZE),),
        path / "model.onnx",
        dynamo=True,
        external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )


def task_for(kind: str, seed: int = 0) -> Task:
    """Return what an attack on a victim works on, all images and their true labels included."""
    target = open_victim(str(victim(kind)), data())
    subject = Subject.of_artifact(target.artifact, target.adapter, target.opening).seen_as(target.model)
    return Task(subject, target.artifact, target.adapter, target.opening, target.data, seed)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a model folder as its adapter reads them."""
    located = locate_one(str(path), SourceOptions())
    return adapter(located.artifact.adapter).tensors(located.artifact)
