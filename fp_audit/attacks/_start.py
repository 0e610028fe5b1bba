"""Transfer from a model that was trained elsewhere."""

from __future__ import annotations

from pathlib import Path

from fp_audit import plugins
from fp_audit.alignment import count_outputs
from fp_audit.attacks._base import Task
from fp_audit.attacks._fresh import claims, opening
from fp_audit.attacks._heads import with_classes
from fp_audit.errors import TargetError, UnsupportedModel, UsageError
from fp_audit.model import Adapter, WhiteBox
from fp_audit.types import Access, Artifact


def pretrained(task: Task, folder: str, classes: int) -> tuple[WhiteBox, Adapter, Artifact]:
    """Open the model to start from; where it has another number of classes its last layer is drawn anew.

    Args:
        task: gives seed, device and the images.
        folder: of a model of timm or transformers, on this machine.
        classes: number of outputs wanted.

    Raises:
        UsageError: there is no such folder, or its model cannot be opened.
    """
    try:
        adapter, artifact = _found(Path(folder))
        options = opening(task, adapter)
        model = adapter.load_white(artifact, options)
        if count_outputs(model) != classes:
            model = with_classes(adapter, artifact, options, task.sample(), classes=classes, seed=task.draw)
        model.module(task.sample().to(options.device))
    except (TargetError, UsageError) as error:
        raise UsageError(f"start={folder} cannot be opened: {error}") from error
    return model, adapter, artifact


def _found(folder: Path) -> tuple[Adapter, Artifact]:
    """Find the adapter that opens the model in a folder."""
    if not folder.is_dir():
        raise UsageError("expected a model folder on this machine")
    reasons = []
    for name in plugins.names("adapters"):
        adapter: Adapter = plugins.load("adapters", name)()
        for found in claims(adapter, folder) if Access.GRADIENTS in adapter.gives else ():
            if isinstance(found, Artifact):
                return adapter, found
            reasons.append(found.reason)
    raise UnsupportedModel(reasons[0] if reasons else "no model found: expected a config.json with safetensors weights")
