"""What an attack must offer. The algorithm is in ``_run``; the checks are in a final driver."""

from __future__ import annotations

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, final, get_type_hints

import numpy as np

from fp_audit.data import Labelled
from fp_audit.engine import Loss, Progress, Recipe, fit, silent
from fp_audit.errors import UsageError
from fp_audit.model import Adapter, Counted, LoadOptions, WhiteBox, as_images
from fp_audit.preprocess import Preprocess
from fp_audit.subject import Subject
from fp_audit.types import Access, Artifact

if TYPE_CHECKING:
    import torch

NO_LABEL = -1
"""What attacks without ``needs_labels`` see in place of the true labels."""


@dataclass(frozen=True)
class Task:
    """What an attack works on."""

    victim: Subject
    """To be asked; limited to the attack's ``victim_access``."""
    artifact: Artifact
    """The victim's files, for attacks on the file itself."""
    adapter: Adapter
    """The victim's adapter."""
    opening: LoadOptions
    """How the victim is opened: the device, and its preprocessing where its files do not state it."""
    data: Labelled
    """The thief's images, their labels in the victim's class order."""
    seed: int
    """Everything random follows from it."""
    progress: Progress = silent

    def copy_of_victim(self) -> WhiteBox:
        """Open the victim's files once more: a model that the attack may change."""
        return self.adapter.load_white(self.artifact, self.opening)

    @property
    def draw(self) -> int:
        """Seed for drawing weights; not ``seed`` itself, from which torch may have drawn the victim's."""
        return int.from_bytes(hashlib.sha256(f"fp-audit attack {self.seed}".encode()).digest()[:7], "big")

    def sample(self) -> torch.Tensor:
        """Return two of the thief's images as a tensor on the CPU."""
        import torch

        return torch.from_numpy(as_images(self.data.pixels[:2]))


@dataclass(frozen=True)
class Surrogate:
    """What an attack leaves in the output folder."""

    adapter: str
    """Name of the adapter that opens it."""
    steps: int = 0
    """Optimiser steps."""
    queries: int = 0
    """Images shown to the victim; counted by ``Attack.run``. Who holds the weights asks nobody: 0."""
    preprocess: Preprocess | None = None
    """How it wants its images, where the victim's files say it and its own cannot."""
    order: tuple[int, ...] | None = None
    """Its output i is the victim's class ``order[i]``; None: the same classes in the same places."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is needed to repeat or understand it, JSON values only."""


class Training(TypedDict, total=False):
    """Options of every attack that trains, see ``engine.Recipe``; its constructor takes them as ``**training``."""

    epochs: float
    learning_rate: float
    batch: int
    optimizer: Literal["sgd", "adam"]
    weight_decay: float
    one_cycle: bool
    shift: float
    flip: bool


class Attack(ABC):
    """One way to steal or disguise a model. Subclasses are final; the constructor checks and stores the options."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``fp-audit attacks``."""
    paper: ClassVar[str]
    victim_access: ClassVar[Access]
    """What the thief has of the victim."""
    needs_labels: ClassVar[bool]
    """Whether the thief's images must be labelled; if not, the attack does not get to see the labels."""
    cost: ClassVar[str]
    """What the thief pays: training, queries, in a few words."""
    keeps: ClassVar[str]
    """What of the victim is left in the surrogate, in a few words."""
    recipe: ClassVar[Recipe]
    """Defaults of ``**training``, for attacks whose constructor takes it."""
    options: Mapping[str, Any]
    """Every option that changes the result, set by the constructor."""

    @classmethod
    def parameters(cls) -> dict[str, inspect.Parameter]:
        """Return the options of the constructor with their types and defaults, those of ``**training`` at the end."""
        found = inspect.signature(cls, eval_str=True).parameters.values()
        own = {parameter.name: parameter for parameter in found if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found):
            return own
        kinds = get_type_hints(Training).items()
        only = inspect.Parameter.KEYWORD_ONLY
        return own | {
            name: inspect.Parameter(name, only, default=getattr(cls.recipe, name), annotation=kind)
            for name, kind in kinds
        }

    def trained_as(self, given: Training) -> dict[str, Any]:
        """Return all options that describe training, if their values make sense: ``given`` and the class's defaults.

        ``epochs`` may be 0 where that is the default.

        Raises:
            UsageError: a value is out of range.
        """
        options: dict[str, Any] = {name: getattr(self.recipe, name) for name in get_type_hints(Training)} | {**given}
        epochs, batch, shift = options["epochs"], options["batch"], options["shift"]
        enough = epochs >= 0 if self.recipe.epochs == 0 else epochs > 0
        require(enough, "epochs", epochs, "more than 0" if self.recipe.epochs else "0 or more")
        require(batch >= 2, "batch", batch, "2 images or more")
        require(options["learning_rate"] > 0, "learning_rate", options["learning_rate"], "more than 0")
        require(options["weight_decay"] >= 0, "weight_decay", options["weight_decay"], "0 or more")
        require(0 <= shift < 1, "shift", shift, "a share of the image's size in [0, 1)")
        return options

    @final
    def run(self, task: Task, folder: Path) -> Surrogate:
        """Write a surrogate of ``task.victim`` as a model folder into ``folder``.

        Raises:
            AccessError: the victim does not offer ``victim_access``.
        """
        victim, data = task.victim.limited(self.victim_access), task.data
        if not self.needs_labels:
            data = replace(data, labels=np.full_like(data.labels, NO_LABEL))
        queries = None
        if self.victim_access is Access.QUERIES:
            queries = Counted(victim.black_box())
            victim = victim.seen_as(queries)
        folder.mkdir(parents=True, exist_ok=True)
        surrogate = self._run(replace(task, victim=victim, data=data), folder)
        return replace(surrogate, queries=queries.queries if queries else 0)

    @abstractmethod
    def _run(self, task: Task, folder: Path) -> Surrogate:
        """Do the work of ``run``; ``queries`` of the result is filled in by the driver."""

    def __repr__(self) -> str:
        """Name the attack with every option that changes its result."""
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.options.items())})"


def require(holds: bool, option: str, value: object, expected: str) -> None:
    """Refuse an option's value.

    Raises:
        UsageError: ``holds`` is false; says what was expected.
    """
    if not holds:
        raise UsageError(f"{option} is {value}: expected {expected}")


def train(
    task: Task,
    model: WhiteBox,
    data: Labelled,
    options: Mapping[str, Any],
    *,
    targets: np.ndarray | None = None,
    parameters: list[torch.nn.Parameter] | None = None,
    loss: Loss | None = None,
    after_step: Callable[[], None] | None = None,
    what: str,
) -> int:
    """Train a model as the attack's options say; arguments as for ``engine.fit``. Returns the number of steps.

    ``targets`` are by default the labels of ``data``.

    Raises:
        UsageError: the training diverged.
    """
    names = {option.name for option in fields(Recipe)}
    steps = fit(
        model.module,
        data.pixels,
        data.labels if targets is None else targets,
        Recipe(**{name: value for name, value in options.items() if name in names}),
        seed=task.seed,
        device=task.opening.device,
        parameters=parameters,
        loss=loss,
        after_step=after_step,
        progress=task.progress,
        what=what,
    )
    if not all(parameter.isfinite().all() for parameter in model.module.parameters()):
        raise UsageError(f"{what} diverged at learning_rate={options['learning_rate']}: set a smaller one")
    return steps
