"""Adversarial images that only the victim and models stolen from it fall for (conferrable examples, CEM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._conferrable import Sides, assessed, conferrable_loss, drawn, mean_prediction
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import predict_pixels
from fp_audit.model import as_images, as_probabilities
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Null, Outputs, Pixels, Score

if TYPE_CHECKING:
    import torch

    from fp_audit.descent import Objective
    from fp_audit.engine import Progress
    from fp_audit.networks import Network
    from fp_audit.workshop import Workshop


THRESHOLDS = {0.01: 0.63, 0.025: 0.75, 0.05: 0.84, 0.075: 0.86, 0.1: 0.87, 0.125: 0.87, 0.15: 0.87}
"""Table 1 of the paper: CAEAcc from which a CIFAR-10 model counts as a surrogate, by epsilon."""

SEED_SHARE = 0.2
"""Share of the data that is kept for seeds; up to half where that is fewer than ``TRIES`` for each query."""

TRIES = 5
"""Most seeds searched from for each query that is asked for."""

HOPELESS = 2
"""Batches without a conferrable image after which the search is given up."""

SCREENED = 4
"""Seeds looked at for each one that is searched from."""

SCREEN_STEPS = 20
"""Steps of the attack on the victim alone that decides whether a seed is worth a search."""

CHECK_EVERY = 10
"""Steps between two looks at whether an image is already conferrable."""


class Cem(Queried):
    """Matching rate of top-1 labels on conferrable adversarial examples (CAEAcc, equation 7); in [0, 1].

    A conferrable example is one that the victim and its surrogates put in the same wrong class t, and independents do
    not: ``Confer(x) = Pr_S[S(x) = t] (1 - Pr_R[R(x) = t])`` (equation 2). Surrogates S are trained here on the
    victim's answers, independents R on the true labels. From a seed x0, Adam minimises over the L-infinity ball
    around it, within [0, 1], equation 6::

        alpha H(1, max_t ME(x)_t) - beta H(M(x0), M(x)) + gamma H(M(x), Surr(x)),  ME = softmax(Surr (1 - Ref))

    with M the victim, H the cross-entropy, all of them probabilities (n x K), and Surr and Ref the mean over S and R of
    ``Dropout(probabilities)`` (each entry zeroed with probability d, the others divided by 1 - d). The attack is
    untargeted: t is what the victim says in the end.

    Source: Lukas, Zhang, Kerschbaum, "Deep Neural Network Fingerprinting by Conferrable Adversarial Examples", ICLR
    2021. Differences: images are rounded to uint8, and epsilon down to whole grey levels, before conferrability and the
    victim's label are taken; seeds are images that the networks here were not trained on and that the victim gets
    right, so that *adversarial* means that its label has changed; those with the largest Surr_t (1 - Ref_t) for a
    wrong class t come first (the paper draws them at random), these classes in turn; those that a short attack on the
    victim alone cannot take over its boundary are left out; at most five seeds for each query are searched from, and
    a tenth of the budget is the least to be content with, and the search ends early where two batches give
    none; among images that pass, the classes of the key take turns,
    the largest Surr_t (1 - Ref_t) of each first; with ``early`` an image is finished as soon as it passes. The networks
    differ in their seeds only, as in the paper's CIFAR-10 experiments.

    Args:
        queries: images to keep.
        surrogates: networks trained on the victim's answers.
        independents: networks trained on the true labels.
        epsilon: largest change of a pixel, in units of the [0, 1] box.
        steps: Adam steps per image, at most.
        learning_rate: Adam's, in units of the [0, 1] box.
        dropout: d, in [0, 1).
        alpha: weight of conferrability. The paper uses 1, 1, 1 throughout; its appendix finds that 1, .1, .1 is better
            (conferrability .49 instead of .40 on unseen networks).
        beta: weight of the distance to the victim's first answer.
        gamma: weight of the agreement of victim and surrogates.
        conferrability: least value of equation 2 to keep an image; at .95 with 18 networks of a kind all must agree.
        early: finish an image as soon as it is conferrable, instead of after all steps.
        sampled: networks of each side that one step follows; 0: all.
        batch: images searched for at once; autograd then holds this many passes through every network.
    """

    name: ClassVar[str] = "cem"
    summary: ClassVar[str] = "agreement of labels on adversarial images made to fool only the victim and its surrogates"
    paper: ClassVar[str] = "Lukas et al., ICLR 2021"
    withstands: ClassVar[str] = (
        "fine-tuning, pruning; extraction and other architectures, by its authors' CIFAR-10 figures"
    )
    misses: ClassVar[str] = "adversarial training; extraction of a victim whose labels are nearly all the true ones"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    default: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    query_set: ClassVar[str | None] = "conferrable"

    def __init__(
        self,
        *,
        queries: int = 100,
        surrogates: int = 18,
        independents: int = 18,
        epsilon: float = 0.025,
        steps: int = 300,
        learning_rate: float = 5e-4,
        dropout: float = 0.3,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        conferrability: float = 0.95,
        early: bool = True,
        sampled: int = 6,
        batch: int = 64,
    ) -> None:
        if not 1 / 255 <= epsilon <= 1:
            raise UsageError(f"cem: epsilon is {epsilon}; expected 1/255 (one grey level) to 1")
        if not 0 <= dropout < 1:
            raise UsageError(f"cem: dropout is {dropout}; expected at least 0 and less than 1")
        if not 0 < conferrability <= 1:
            raise UsageError(f"cem: conferrability is {conferrability}; expected more than 0, at most 1")
        for option, given in {"surrogates": surrogates, "independents": independents, "batch": batch}.items():
            if given < 1:
                raise UsageError(f"cem: {option} is {given}; expected at least 1")
        if sampled < 0:
            raise UsageError(f"cem: sampled is {sampled}; expected 0 (all networks) or more")
        self.options = {
            "queries": queries,
            "surrogates": surrogates,
            "independents": independents,
            "epsilon": epsilon,
            "steps": steps,
            "learning_rate": learning_rate,
            "dropout": dropout,
            "alpha": alpha,
            "beta": beta,
            "gamma": gamma,
            "conferrability": conferrability,
            "early": early,
            "sampled": sampled,
            "batch": batch,
        }

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"is fooled like the victim by {score:.0%} of the images made to fool only copies of it" + versus(
            null, ".0%"
        )

    def judge(self, fingerprint: Fingerprint, score: Score, null: Null | None) -> Mapping[str, Any]:
        """See ``Method.judge``: the threshold of the paper's table 1 for the fingerprint's epsilon."""
        del null
        threshold = decision_threshold(fingerprint.options["epsilon"])
        return {"caeacc": score.value, "threshold": threshold, "surrogate": score.value >= threshold}

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        budget, least = self.options["queries"], self.options["conferrability"]
        local, rest = split(self.required(data), TRIES * budget, rng)
        answers = predict_pixels(victim.black_box(), rest.pixels)
        surrogates, independents = self._networks(victim, local, answers.shape[1], rng, workshop)
        surr, ref = mean_answer(surrogates, rest.pixels), mean_answer(independents, rest.pixels)
        seeds = rest.take(promising(answers, rest.labels, surr, ref)[: SCREENED * TRIES * budget])
        module = victim.white_box().module
        sides = Sides.of(module, surrogates, independents)
        reached = movable(module, seeds.pixels, seeds.labels, self.options["epsilon"])
        found = self._found(sides, seeds.pixels[reached][: TRIES * budget], answers.shape[1], rng, workshop.progress)
        kept = found.at_least(least)
        if len(kept) < max(1, budget / 10):
            raise NotApplicable(
                f"only {len(kept)} of {len(found)} images became conferrable (the best to "
                f"{found.conferrability.max(initial=0.0):.2f}; {least} is asked for); try beta and gamma 0.1, a larger "
                "epsilon or a smaller conferrability"
            )
        chosen = kept.take(round_robin(kept.targets, kept.confidence)[:budget])
        facts = {"seeds": len(seeds), "tried": len(found), "kept": len(kept), "threshold": least}
        return Queries(chosen.pixels, {**facts, **chosen.facts()})

    def _networks(
        self, victim: Subject, data: Labelled, classes: int, rng: np.random.Generator, workshop: Workshop
    ) -> tuple[list[Network], list[Network]]:
        """Train surrogates and independents, all with as many classes as the victim."""
        first, second = map(int, rng.integers(2**31, size=2))
        data = data.of_classes(classes)
        surrogates = workshop.surrogates(victim.black_box(), data, self.options["surrogates"], seed=first, alike=True)
        return surrogates, workshop.independents(data, self.options["independents"], seed=second, alike=True)

    def _found(
        self, sides: Sides, pixels: Pixels, classes: int, rng: np.random.Generator, progress: Progress
    ) -> Candidates:
        """Search from one batch of seeds after the other until enough are conferrable, or there is no hope of more."""
        found, total = Candidates.none(pixels), len(pixels)
        hopeless = HOPELESS * self.options["batch"]
        while len(found) < total and (len(found) < hopeless or found.at_least(self.options["conferrability"])):
            part = pixels[len(found) :][: self.options["batch"]]
            told = portion(progress, len(found) / total, len(part) / total)
            found = found.joined(self._search(sides, part, rng, told))
            if enough(found.at_least(self.options["conferrability"]).targets, classes, self.options["queries"]):
                break
        return found

    def _search(self, sides: Sides, pixels: Pixels, rng: np.random.Generator, progress: Progress) -> Candidates:
        """Search from n seeds at once."""
        import torch

        from fp_audit.descent import Adam, as_pixels, ball, search
        from fp_audit.engine import device_of

        device = device_of(sides.victim)
        start = torch.from_numpy(as_images(pixels)).to(device)
        found = search(
            start,
            self._objective(sides, start, int(rng.integers(2**31))),
            Adam(self.options["learning_rate"]),
            steps=self.options["steps"],
            project=ball(start, whole_levels(self.options["epsilon"])),
            in_flight=len(start),
            progress=progress,
            what="searching for conferrable images",
        )
        rounded = as_pixels(found.images)
        with torch.no_grad():
            held = (rounded, *assessed(sides, rounded, sides.victim(start).argmax(dim=1)))
        return Candidates(*(tensor.cpu().numpy() for tensor in held))

    def _objective(self, sides: Sides, start: torch.Tensor, seed: int) -> Objective:
        """Equation 6, and whether an image is already good enough to be left as it is."""
        import torch

        from fp_audit.descent import as_pixels

        options, turn = self.options, count(1)
        weights = options["alpha"], options["beta"], options["gamma"]
        generator, draws = torch.Generator(start.device).manual_seed(seed), np.random.default_rng(seed)
        with torch.no_grad():
            first = sides.victim(start).softmax(dim=1)

        def objective(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            surr, ref = (
                mean_prediction(side(x, drawn(options[name], options["sampled"], draws)), options["dropout"], generator)
                for name, side in (("surrogates", sides.surrogates), ("independents", sides.independents))
            )
            loss = conferrable_loss(first[index], sides.victim(x).softmax(dim=1), surr, ref, weights)
            done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            if options["early"] and next(turn) % CHECK_EVERY == 0:
                with torch.no_grad():
                    passed = assessed(sides, as_pixels(x), first[index].argmax(dim=1))[1]
                done = passed >= options["conferrability"]
            return loss, done

        return objective


@dataclass(frozen=True)
class Candidates:
    """Images that a search ended with."""

    pixels: Pixels
    """N x C x H x W, uint8."""
    targets: NDArray[np.int64]
    """N, what the victim says."""
    conferrability: NDArray[np.float32]
    """N, equation 2; 0 where the victim says what it said before."""
    confidence: NDArray[np.float32]
    """N, the same with mean probabilities in place of shares of labels."""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.targets)

    @classmethod
    def none(cls, like: Pixels) -> Self:
        """Return no images, of the shape of those in ``like``."""
        return cls(like[:0], np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.float32))

    def joined(self, other: Self) -> Self:
        """Return these and the others."""
        return type(self)(**{name: np.concatenate([mine, vars(other)[name]]) for name, mine in vars(self).items()})

    def take(self, index: NDArray[Any]) -> Self:
        """Return those at ``index``, or where it is true."""
        return type(self)(**{name: held[index] for name, held in vars(self).items()})

    def at_least(self, conferrability: float) -> Self:
        """Return those of this conferrability or more."""
        return self.take(self.conferrability >= conferrability)

    def facts(self) -> dict[str, Any]:
        """Return what a reader should know of them."""
        targets, counts = np.unique(self.targets, return_counts=True)
        balance = dict(zip(map(str, targets.tolist()), counts.tolist(), strict=True))
        return {"conferrability": float(self.conferrability.mean()), "targets": balance}


def movable(module: torch.nn.Module, pixels: Pixels, labels: NDArray[np.int64], epsilon: float) -> NDArray[np.bool_]:
    """Say of n images whether PGD within ``epsilon`` takes the victim away from these labels, n."""
    import torch

    from fp_audit.descent import Sign, ball, search
    from fp_audit.engine import device_of

    device = device_of(module)
    start, source = torch.from_numpy(as_images(pixels)).to(device), torch.from_numpy(labels).to(device)
    radius = whole_levels(epsilon)

    def objective(x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, column = module(x), source[index, None]
        lead = logits.gather(1, column)[:, 0] - logits.scatter(1, column, float("-inf")).amax(dim=1)
        return lead, lead < 0

    rule, project = Sign(4 * radius / SCREEN_STEPS), ball(start, radius)
    return np.asarray(search(start, objective, rule, steps=SCREEN_STEPS, project=project).done.cpu().numpy())


def whole_levels(epsilon: float) -> float:
    """Round down to whole grey levels, so that rounding an image to uint8 does not take it out of the ball."""
    return float(np.floor(epsilon * 255 + 1e-6) / 255)


def decision_threshold(epsilon: float) -> float:
    """Interpolate table 1 of the paper; beyond its ends the values there."""
    return float(np.interp(epsilon, list(THRESHOLDS), list(THRESHOLDS.values())))


def split(data: Labelled, seeds: int, rng: np.random.Generator) -> tuple[Labelled, Labelled]:
    """Split off ``SEED_SHARE`` of the data, at random, or more to make up ``seeds``, but at most half.

    Returns:
        The images to train on, and those to start from.
    """
    order = rng.permutation(len(data))
    size = max(round(SEED_SHARE * len(data)), min(seeds, len(data) // 2))
    return data.take(np.sort(order[size:])), data.take(np.sort(order[:size]))


def mean_answer(networks: Sequence[Network], pixels: Pixels) -> NDArray[np.float32]:
    """Average the probabilities of m networks for N images, N x K."""
    answers = [as_probabilities(predict_pixels(network, pixels), network.output) for network in networks]
    return np.asarray(np.mean(answers, axis=0))


def promising(
    answers: Outputs, labels: NDArray[np.int64], surr: NDArray[np.float32], ref: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Return the indices of the images that the victim gets right, those nearest to being conferrable first.

    Near is a large Surr_t (1 - Ref_t) for a wrong class t; these classes take turns.

    Args:
        answers: N x K, the victim's.
        labels: N, the true ones.
        surr: N x K, mean probabilities of the surrogates.
        ref: N x K, of the independents.
    """
    score = surr * (1 - ref)
    score[np.arange(len(labels)), labels] = -1.0
    right = np.flatnonzero(answers.argmax(axis=1) == labels)
    return right[round_robin(score.argmax(axis=1)[right], score.max(axis=1)[right])]


def round_robin(groups: NDArray[np.integer], values: NDArray[np.floating]) -> NDArray[np.intp]:
    """Order N items so that groups take turns, each with the largest of its values first; return indices, N."""
    order = np.lexsort((-values, groups))
    turn = np.arange(len(order)) - np.searchsorted(groups[order], groups[order])
    return order[np.lexsort((-values[order], turn))]


def enough(targets: NDArray[np.int64], classes: int, budget: int) -> bool:
    """Whether images of these classes fill the budget in balance, or fill it twice."""
    balanced = np.minimum(np.bincount(targets, minlength=classes), -(-budget // classes)).sum()
    return bool(balanced >= budget or len(targets) >= 2 * budget)


def portion(progress: Progress, start: float, share: float) -> Progress:
    """Return what tells ``progress`` about a part of the work."""
    return lambda what, done: progress(what, start + share * done)
