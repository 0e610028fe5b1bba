"""What a method may use beside the victim while it generates: networks that are trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fp_audit import victims
from fp_audit.data import Labelled
from fp_audit.engine import Progress, silent, top1
from fp_audit.errors import NotApplicable
from fp_audit.fresh import Architecture
from fp_audit.model import BlackBox

if TYPE_CHECKING:
    from fp_audit.networks import Network


EFFORT = 0.5
"""Share of a reference's training that a network gets here: no verdict rests on it."""

TRIALS = (0.5, 1.0, 2.0, 4.0)
"""The same share, of networks that find out how long the victim was trained."""

SHOWN = 4000
"""Images on which they are compared with the victim."""


@dataclass(frozen=True)
class Workshop:
    """Trains networks for a method, and says how far it is. Finished ones are kept and found again."""

    device: str = "cpu"
    cache: Path | None = None
    """Folder of the trained networks; None: ``cache/networks`` of the register's home."""
    progress: Progress = silent
    architecture: Architecture | None = None
    """The victim's, where it is small enough to be trained here."""
    given: Sequence[BlackBox] = ()
    """Siblings of the victim that its owner named."""

    def siblings(self, victim: BlackBox, data: Labelled, count: int, *, seed: int) -> Sequence[BlackBox]:
        """Return networks that were trained as the victim was, from other seeds: the owner's, or else trained here.

        Those trained here have the victim's architecture and a recipe that suits most; how long they are trained
        follows from how many images the victim gets right, between the trials. Whether the victim passes for one of
        them is for the caller to find out.

        Args:
            victim: the model.
            data: the images that it was trained on, with labels in its class order.
            count: number of networks, where none were named.
            seed: everything random follows from it.

        Raises:
            NotApplicable: none were named, and the victim's architecture cannot be trained here.
        """
        if self.given:
            return self.given
        if self.architecture is None:
            raise NotApplicable(
                "networks of its architecture cannot be trained here: "
                "train some by its own recipe with other seeds, and pass --siblings"
            )
        shown = data.take(np.random.default_rng(seed).permutation(len(data))[:SHOWN])
        train = partial(self._trained, data=data, classes=data.class_count, seed=seed, alike=True)
        trials = [train("trial", count=1, effort=effort)[0] for effort in TRIALS]
        known = [np.mean(top1(model, shown.pixels)[0] == shown.labels) for model in (victim, *trials)]
        effort = np.interp(known[0], np.maximum.accumulate(known[1:]), TRIALS)
        return train("sibling", count=count, effort=round(float(effort), 2))

    def independents(self, data: Labelled, count: int, *, seed: int, alike: bool) -> list[Network]:
        """Train innocent networks: on the true labels.

        Args:
            data: images with labels in the victim's class order.
            count: number of networks.
            seed: everything random follows from it.
            alike: of one architecture (the victim's, if the workshop has it) and one recipe, so that they differ in
                their seeds only; else of several architectures, other than the victim's.
        """
        return self._trained("independent", data, count, data.class_count, seed=seed, alike=alike)

    def surrogates(self, victim: BlackBox, data: Labelled, count: int, *, seed: int, alike: bool) -> list[Network]:
        """Train stolen networks: on the victim's top-1 answers. Arguments as for ``independents``.

        The labels of ``data`` are not used. Each image is shown to the victim once.
        """
        labels, classes = top1(victim, data.pixels, self.progress)
        return self._trained("surrogate", replace(data, labels=labels), count, classes, seed=seed, alike=alike)

    def _trained(
        self,
        purpose: str,
        data: Labelled,
        count: int,
        classes: int,
        *,
        seed: int,
        alike: bool,
        effort: float = EFFORT,
    ) -> list[Network]:
        """Train networks in the order of their specs."""
        from fp_audit import networks

        choose, own = (networks.alike, self.architecture is not None) if alike else (networks.plan, False)
        specs = choose(count, data, classes, seed=seed, purpose=purpose, own=own, effort=effort)
        trained = networks.train(
            specs,
            data,
            cache=self.cache or victims.home() / "cache" / "networks",
            device=self.device,
            architecture=self.architecture,
            progress=self.progress,
            what=f"training {count} {purpose}{'s' if count > 1 else ''}",
        )
        found = {network.name: network for network in trained}
        return [found[spec.name] for spec in specs]
