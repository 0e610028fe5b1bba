"""Attacks that put a random preprocessing in front of the victim."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fp_audit.attacks._base import Surrogate, Task, train
from fp_audit.augmentation import Augmentation
from fp_audit.errors import UnsupportedModel
from fp_audit.model import RandomisedWhite

Mode: TypeAlias = Literal["data-free", "data-limited"]
"""Whether the thief has images to fine-tune on."""


def surrogate_behind(augmentation: Augmentation, task: Task, folder: Path, options: Mapping[str, Any]) -> Surrogate:
    """Save the victim behind ``augmentation``, fine-tuned through it first where ``mode`` is ``data-limited``.

    Raises:
        UnsupportedModel: the victim has a random preprocessing already.
        UsageError: the training diverged.
    """
    victim = task.copy_of_victim()
    if isinstance(victim, RandomisedWhite):
        raise UnsupportedModel(f"{task.artifact.target} has a random preprocessing already: a model states one")
    model, steps = RandomisedWhite(victim, augmentation, task.seed), 0
    if options["mode"] == "data-limited":
        steps = train(task, model, task.data, options, what="fine-tuning behind the random preprocessing")
    task.adapter.save(model, folder)
    return Surrogate(task.artifact.adapter, steps, facts={"augmentation": augmentation.to_json()})
