"""What is written beside a surrogate: everything needed to repeat the attack, and what came of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA_VERSION = 1

_PACKAGES = ("fp-audit", "torch", "timm", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class Fidelity:
    """How much of the victim a surrogate has kept, on images that the attack did not see."""

    accuracy: float
    """Share of images whose true label it gives."""
    victim_accuracy: float
    agreement: float
    """Share of images to which it gives the victim's label."""
    images: int


@dataclass(frozen=True)
class Cost:
    """What an attack took."""

    queries: int
    """Images shown to the victim."""
    steps: int
    """Optimiser steps."""
    seconds: float


@dataclass(frozen=True)
class Provenance:
    """Everything needed to repeat an attack, and what came of it."""

    attack: str
    options: Mapping[str, Any]
    """All of them, defaults included."""
    seed: int
    device: str
    victim: Mapping[str, Any]
    """Target, revision, adapter, preprocessing that was found out, sha256 of its files."""
    data: Mapping[str, Any]
    """Name, digest and size of the whole data set."""
    surrogate: Mapping[str, Any]
    """Adapter, preprocessing where its files cannot say it, facts that the attack found out."""
    fidelity: Fidelity
    cost: Cost
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``provenance.json``."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that an attack may use."""
    installed = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}
