"""What a method may use beside the victim while it generates: networks that are trained here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fp_audit import victims
from fp_audit.data import Labelled
from fp_audit.engine import Progress, silent, top1
from fp_audit.fresh import Architecture
from fp_audit.model import BlackBox

if TYPE_CHECKING:
    from fp_audit.networks import Network


EFFORT = 0.5
"""Share of a reference's training that a network gets here: no verdict rests on it."""


@dataclass(frozen=True)
class Workshop:
    """Trains networks for a method, and says how far it is. Finished ones are kept and found again."""

    device: str = "cpu"
    cache: Path | None = None
    """Folder of the trained networks; None: ``cache/networks`` of the register's home."""
    progress: Progress = silent
    architecture: Architecture | None = None
    """The victim's, where it is small enough to be trained here."""

    def independents(self, data: Labelled, count: int, *, seed: int, alike: bool) -> list[Network]:
        """Train innocent networks: on the true labels.

        Args:
            data: images with labels in the victim's class order.
            count: number of networks.
            seed: everything random follows from it.
            alike: of one architecture (the victim's, if the workshop has it) and one recipe, so that they differ in
                their seeds only; else of several architectures, other than the victim's.
        """
        classes = len(data.classes) if data.classes else int(data.labels.max()) + 1
        return self._trained("independent", data, count, classes, seed=seed, alike=alike)

    def surrogates(self, victim: BlackBox, data: Labelled, count: int, *, seed: int, alike: bool) -> list[Network]:
        """Train stolen networks: on the victim's top-1 answers. Arguments as for ``independents``.

        The labels of ``data`` are not used. Each image is shown to the victim once.
        """
        labels, classes = top1(victim, data.pixels, self.progress)
        return self._trained("surrogate", replace(data, labels=labels), count, classes, seed=seed, alike=alike)

    def _trained(
        self, purpose: str, data: Labelled, count: int, classes: int, *, seed: int, alike: bool
    ) -> list[Network]:
        """Train networks in the order of their specs."""
        from fp_audit import networks

        choose, own = (networks.alike, self.architecture is not None) if alike else (networks.plan, False)
        specs = choose(count, data, classes, seed=seed, purpose=purpose, own=own, effort=EFFORT)
        trained = networks.train(
            specs,
            data,
            cache=self.cache or victims.home() / "cache" / "networks",
            device=self.device,
            architecture=self.architecture,
            progress=self.progress,
            what=f"training {count} {purpose}s",
        )
        found = {network.name: network for network in trained}
        return [found[spec.name] for spec in specs]
