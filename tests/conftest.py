"""An isolated home for everything, and the small trained models that the tests of the main job share."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

SCRATCH = Path(tempfile.mkdtemp(prefix="fp-audit-tests-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)

# Before anything imports huggingface_hub, which reads them once.
os.environ["FP_AUDIT_HOME"] = str(SCRATCH / "home")
os.environ["HF_HOME"] = str(SCRATCH / "hf")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(name, None)

sys.path.insert(0, str(Path(__file__).parent.parent))  # for fixtures/

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from training import train_here  # noqa: E402

pytest_plugins = ("hub_server",)

REFERENCES = 8
SEEN_IMAGES = 5000
"""Images that one reference is shown: a few epochs of the few images here."""

IPGUARD_STEPS = 150


@dataclass(frozen=True)
class DigitModels:
    """A victim, suspects whose history is known, and the owner's images."""

    root: Path
    victim: Path
    data: Path
    models: Path

    @property
    def int8(self) -> Path:
        """An ONNX surrogate: quick to scan."""
        return self.models / "thief" / "int8" / "model.onnx"

    @property
    def stranger(self) -> Path:
        """An independent ONNX model."""
        return self.models / "other" / "onnx" / "model.onnx"


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Tiny networks lose more to the handing out of work than they gain."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digit_models(few_threads: None) -> DigitModels:
    """Train once: victim, surrogates (renamed, reordered, fine-tuned, int8), independents (HuggingFace, ONNX)."""
    from fixtures import digits
    from fp_audit.attacking import attack

    root = SCRATCH / "digits"
    root.mkdir()
    pixels, labels = digits.digits()
    data = root / "owner.npz"
    np.savez(data, images=pixels[:500], labels=labels[:500], classes=np.array(digits.CLASSES))
    found = DigitModels(root, root / "victim", data, root / "models")
    digits.write_huggingface(found.victim, kind="resnet", seed=1)
    digits.train(found.victim, seed=1, epochs=5)
    thief, other = found.models / "thief", found.models / "other"
    shutil.copytree(found.victim, thief / "renamed")
    _reorder(shutil.copytree(found.victim, thief / "reordered"))
    attack("fine-tune", str(found.victim), str(data), thief / "fine-tuned", options={"mode": "ftal", "epochs": 2.0})
    attack("quantise", str(found.victim), str(data), thief / "int8", options={"mode": "static"})
    digits.write_huggingface(other / "same-architecture", kind="resnet", seed=21)
    digits.train(other / "same-architecture", seed=21, epochs=5)
    found.stranger.parent.mkdir(parents=True)
    digits.write_onnx(found.stranger, seed=24, epochs=6)
    return found


def _reorder(folder: Path) -> None:
    """Rotate the classes of a HuggingFace folder by three, and forget their names."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    rotated = {key: np.roll(value, 3, axis=0) if "classifier" in key else value for key, value in tensors.items()}
    save_file(rotated, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    names = [f"LABEL_{i}" for i in range(10)]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Register with less effort; what is cached is found again only with the same effort."""
    from fp_audit import plugins

    patch.setattr("fp_audit.networks.SEEN_IMAGES", SEEN_IMAGES)
    patch.setattr("fp_audit.networks._train_in_processes", train_here)
    patch.setitem(plugins.load("fingerprints", "ipguard").__init__.__kwdefaults__, "steps", IPGUARD_STEPS)


@pytest.fixture(scope="session")
def registered(digit_models: DigitModels) -> DigitModels:
    """Register the victim as ``owner``, with trained references; as ``asked`` with the methods that only ask."""
    from fp_audit import Plan, register, victims

    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        plan = Plan(str(digit_models.victim), "owner", str(digit_models.data), train_references=REFERENCES)
        owner = register(plan)
    asking = {name: owner.fingerprints[name] for name in ("negatives", "negatives-logits", "sac")}
    victims.save(replace(owner, name="asked", fingerprints=asking), victims.folder("asked"))
    return digit_models


@pytest.fixture
def home(registered: DigitModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the register (``owner``, ``asked``) and its cache, to be changed at will; without results of scans."""
    path = tmp_path / "copied-home"
    shutil.copytree(SCRATCH / "home", path, ignore=shutil.ignore_patterns("results.sqlite*"))
    monkeypatch.setenv("FP_AUDIT_HOME", str(path))
    hurry(monkeypatch)
    return path
