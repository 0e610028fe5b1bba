"""Extraction by asking: a new network learns the victim's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Unpack

from fp_audit.attacks._base import Attack, Surrogate, Task, Training, require, train
from fp_audit.attacks._fresh import SAME, chosen_network, student
from fp_audit.attacks._start import pretrained
from fp_audit.attacks._theft import Answers, ask, check_budget, drawn
from fp_audit.engine import Recipe
from fp_audit.subject import file_digests
from fp_audit.types import Access


class Extract(Attack):
    """Trains a network on the thief's images and the victim's answers to them; the true labels are never seen.

    Source: Lukas et al. (ICLR 2021), appendix A.5.1. With ``answers`` ``labels`` it is "retraining", eq. 10,
    S <- Train(M, D) on top-1 labels; with ``probabilities`` the extraction of Jagielski et al. (USENIX Security 2020),
    eq. 11 and 12: on the soft labels p_i^(1/T) / sum_j p_j^(1/T), T = ``temperature``, softmax(z / T) where the victim
    shows logits z. Of a victim that shows k probabilities the others count as 0; one that shows labels only gives
    one-hot rows. Each of ``queries`` images (0: all) is shown to the victim once; a shifted or flipped copy keeps its
    label and costs no query.

    ``architecture`` and ``size``: see ``_fresh.chosen_network``. ``start`` names instead the folder of a model that
    was trained elsewhere, from which training starts ("transfer learning" there); its last layer is drawn anew if it
    has not as many classes as the victim.

    Differences: Adam with a one-cycle schedule (peak .003) instead of a schedule for each architecture; T is 1, as
    the paper names none.
    """

    name: ClassVar[str] = "extract"
    summary: ClassVar[str] = "train a new or a pre-trained network on the victim's labels or probabilities"
    paper: ClassVar[str] = "Lukas et al., ICLR 2021; Jagielski et al., USENIX Security 2020"
    victim_access: ClassVar[Access] = Access.QUERIES
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "queries, and training from scratch"
    keeps: ClassVar[str] = "its answers, not its weights"
    recipe: ClassVar[Recipe] = Recipe(epochs=20.0, learning_rate=0.003, optimizer="adam", shift=0.1)

    def __init__(
        self,
        *,
        architecture: str = SAME,
        queries: int = 0,
        size: int = 0,
        answers: Answers = "labels",
        temperature: float = 1.0,
        start: str = "",
        **training: Unpack[Training],
    ) -> None:
        require(temperature > 0, "temperature", temperature, "more than 0")
        require(not start or architecture == SAME, "architecture", architecture, f"none beside start={start}")
        self.options = {
            **chosen_network(architecture, size),
            "queries": check_budget(queries),
            "answers": answers,
            "temperature": temperature,
            "start": start,
            **self.trained_as(training),
        }

    def _run(self, task: Task, folder: Path) -> Surrogate:
        options, facts = self.options, dict[str, Any]()
        shown = drawn(task.data, options["queries"], task.seed)
        victim = task.victim.black_box()
        targets, classes = ask(victim, shown.pixels, options["answers"], options["temperature"], task.progress)
        if options["start"]:
            model, adapter, artifact = pretrained(task, options["start"], classes)
            facts["start"] = {path.name: file_digests(path)["sha256"] for path in artifact.local_files()}
        else:
            model, adapter = student(task, options, classes)
        steps = train(task, model, shown, options, targets=targets, what="training on the victim's answers")
        adapter.save(model, folder)
        return Surrogate(adapter.name, steps, facts=facts)
