"""RDG: random distortion over grids, CSRP's baseline."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Unpack

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require
from fp_audit.attacks._random import Mode, surrogate_behind
from fp_audit.augmentation import MAX_GRIDS, Rdg
from fp_audit.engine import Recipe
from fp_audit.types import Access


class RandomDistortion(Attack):
    """Stretches and squeezes the rows and columns of every image at random before the victim sees it.

    Source: random distortion over grids of Qiu et al., "An Efficient Preprocessing-based Approach to Mitigate Advanced
    Adversarial Attacks" (IEEE Transactions on Computers 2021; see ``augmentation.Rdg``), as the baseline of Wang et al.
    (ACM TOSN 2023), table 5, which states no parameters. ``grids`` and ``limit`` are those of the authors' code for
    ImageNet, 26 and .33; images of less than 52 pixels a side then have cells of one pixel.

    Differences: their code limits rows by the width and columns by the height (the same for square images).
    ``data-limited`` fine-tunes all layers behind the distortion, as CSRP's does; table 5 has ``data-free`` only.
    """

    name: ClassVar[str] = "rdg"
    summary: ClassVar[str] = "distort every image at random before the victim sees it"
    paper: ClassVar[str] = "Qiu et al., IEEE TC 2021; Wang et al., ACM TOSN 2023"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = "nothing; some epochs of training when data-limited"
    keeps: ClassVar[str] = "its weights; some points of accuracy go"
    recipe: ClassVar[Recipe] = Recipe(epochs=7.0, learning_rate=0.001, one_cycle=False)

    def __init__(
        self,
        *,
        mode: Mode = "data-free",
        grids: int = 26,
        limit: float = 0.33,
        **training: Unpack[Training],
    ) -> None:
        require(1 <= grids <= MAX_GRIDS, "grids", grids, f"1 to {MAX_GRIDS} cells an axis")
        require(0 <= limit <= 1, "limit", limit, "a share in [0, 1]")
        self.options = {"mode": mode, "grids": grids, "limit": limit, **self.trained_as(training)}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        return surrogate_behind(Rdg(self.options["grids"], self.options["limit"]), task, folder, self.options)
