"""Answers to images with and without a universal adversarial perturbation, compared by a trained encoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fp_audit.data import Labelled
from fp_audit.engine import Progress, silent
from fp_audit.errors import DataError, NotApplicable, UsageError
from fp_audit.fingerprints._base import Method, versus
from fp_audit.fingerprints._encoder import Weights, cosines, encode, train_encoder
from fp_audit.fingerprints._queries import centred_logits, predict_pixels, shown_probabilities
from fp_audit.fingerprints._universal import Universal, find_universal, inconsistency, mean_norm, perturbed
from fp_audit.metrics import Floats
from fp_audit.model import BlackBox, as_probabilities, one_hot
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Null, OutputKind, Outputs, Pixels, Scatter, Score

if TYPE_CHECKING:
    import torch

    from fp_audit.networks import Network
    from fp_audit.workshop import Workshop

_ENCODER = "encoder_"
"""Begins the names of the encoder's arrays in a fingerprint."""

SIGNIFICANT = 0.05
"""Level of the paper's t-test."""


@dataclass(frozen=True)
class Views:
    """Sets of images, one image of every cluster in each."""

    pixels: Pixels
    """U x C x H x W: every image that occurs, once."""
    picks: NDArray[np.intp]
    """V x n: the images of each view, as positions in ``pixels``."""


class Uap(Method):
    """Mean cosine between the encoded fingerprints of suspect and victim; in [-1, 1].

    A universal adversarial perturbation v changes the victim's label on nearly any image and depends on its whole
    decision boundary, which a model trained on its answers takes over. The fingerprint of a model f on a view, n images
    x_1 ... x_n, is ``[f(x_1), f(x_1 + v), ..., f(x_n), f(x_n + v)]`` in probabilities (equation 6; 2 n K
    numbers). K-means on the victim's logits splits the data into n clusters, and a view holds an image of
    each. An encoder is trained with the supervised contrastive loss (equation 7) to bring the views of the victim and
    of surrogates together and those of independents elsewhere; the networks differ in architecture. The score is the
    mean over ``fingerprints`` views. ``judge`` adds the paper's t-test, Score.detail the inconsistency of equation 5.

    Source: Peng et al., "Fingerprinting Deep Neural Networks Globally via Universal Adversarial Perturbations",
    CVPR 2022. The published code does not run and several sizes are not in the paper. Differences:

    - v is found by gradient ascent on the mean cross-entropy over mini-batches with projection to the L2 ball, as
      Shafahi et al. (AAAI 2020) do, not by Moosavi-Dezfooli's DeepFool on one image after the other: it is
      batched, and several v are found at once. An image counts only until it is surely fooled.
    - The paper gives no xi. Here it starts at ``radius`` times the mean norm of the images and grows by a quarter until
      the wanted share is fooled; facts tell where it ended.
    - x + v is clipped to [0, 1] and rounded to uint8, as an image file would be.
    - Views are drawn from whole clusters, not from the neighbours of one image. Images shown to suspects
      (at most a quarter of each cluster, at least one) are not in the views that train the encoder, nor in the
      training of any network, so that a suspect does not look unlike them merely by having been trained elsewhere.
      In clusters smaller than the number of views images come again; a lone image of a cluster is in both.
    - "Two parallel networks" is read as in SimCLR: one encoder for both members of a pair.
      Input -> 50 -> 20 -> 20 with ReLU; the size of the head is not in the paper.
    - Surrogates learn the victim's top-1 labels on the owner's images, not adversarial ones (CloudLeak).
    - Where a suspect hides probabilities, the victim's are hidden alike before they are encoded.
    - The t-test compares with independents that did not train the encoder.

    Args:
        points: clusters, images of a view (n).
        fingerprints: views shown to a suspect; it is asked at most 2 points * fingerprints images.
        views: views of each network that train the encoder (k).
        surrogates: stolen networks that train it.
        independents: innocent networks that train it.
        held_out: innocent networks that the t-test compares with where there is no null.
        radius: first L2 norm of v, as a share of the mean L2 norm of the images.
        fooling: share of images whose label v must change.
        steps: of ascent at one norm.
        temperature: of the contrastive loss.
        epochs: of encoder training.
        batch: views in a step of encoder training.
        learning_rate: Adam's in encoder training.
        subspace: perturbations of the victim, and of a suspect that can be differentiated, for equation 5; 0: none.
    """

    name: ClassVar[str] = "uap"
    summary: ClassVar[str] = "answers with and without a universal perturbation, compared by an encoder"
    paper: ClassVar[str] = "Peng et al., CVPR 2022"
    withstands: ClassVar[str] = "copies, quantisation, fine-tuning, pruning, extraction with many queries"
    misses: ClassVar[str] = "surrogates unlike those that trained the encoder; adversarial training"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    suspect_access: ClassVar[Access] = Access.QUERIES
    suspect_gain: ClassVar[Access | None] = Access.GRADIENTS
    default: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    scatter: ClassVar[Scatter] = Scatter(0.1)

    def __init__(
        self,
        *,
        points: int = 100,
        fingerprints: int = 20,
        views: int = 200,
        surrogates: int = 5,
        independents: int = 5,
        held_out: int = 3,
        radius: float = 0.1,
        fooling: float = 0.8,
        steps: int = 40,
        temperature: float = 0.2,
        epochs: int = 10,
        batch: int = 512,
        learning_rate: float = 5e-4,
        subspace: int = 0,
    ) -> None:
        counts = {
            "points": points,
            "fingerprints": fingerprints,
            "views": views,
            "surrogates": surrogates,
            "independents": independents,
            "held_out": held_out,
            "steps": steps,
            "epochs": epochs,
            "batch": batch,
        }
        positive = {"radius": radius, "temperature": temperature, "learning_rate": learning_rate}
        for key, count in counts.items():
            least = 2 if key in ("fingerprints", "batch") else 1
            _require(count >= least, key, count, f"{least} or more")
        for key, value in positive.items():
            _require(value > 0, key, value, "more than 0")
        _require(0 < fooling <= 1, "fooling", fooling, "a share in (0, 1]")
        _require(subspace >= 0, "subspace", subspace, "0 or more")
        self.options = {**counts, **positive, "fooling": fooling, "subspace": subspace}

    def budget(self) -> int:
        """See ``Method.budget``."""
        return int(2 * self.options["points"] * self.options["fingerprints"])

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        test = f" (t-test of the paper: p = {detail['t_test_p']:.2g})" if "t_test_p" in detail else ""
        return (
            f"answers images with and without the victim's universal perturbation like the victim: {score:.2f}{test}"
            + versus(null, ".2f")
        )

    def judge(self, fingerprint: Fingerprint, score: Score, null: Null | None) -> Mapping[str, Any]:
        """Add the paper's t-test: whether the suspect's similarities are larger on average than independents'.

        They are those of the null, one mean each, else those of the independents held out at generation. The test asks
        about averages and not whether the suspect is among the independents: of innocent models above their average
        it calls many piracy, so that the verdict rests on the null instead.
        """
        enough = null is not None and len(null.scores) > 1
        others = np.array(null.scores) if null and enough else fingerprint.arrays["held_out"].ravel()
        p = welch(np.array(score.detail["similarities"]), others)
        return {"t_test_p": p, "piracy": p < SIGNIFICANT, "t_test_against": "null" if enough else "held out"}

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        data, model, module = self.required(data), victim.black_box(), victim.white_box().module
        test, train = self._views(model, data, rng)
        found = self._search(module, data.pixels, rng, workshop)
        pattern = found.perturbations[0]
        own = ask(model, test.pixels, pattern)
        unseen = without(data, test.pixels, classes=own.shape[2])
        stolen, innocent, kept = self._networks(model, unseen, rng, workshop)
        weights = self._encoder([model, *stolen], innocent, train, pattern, rng, workshop)
        answers = [ask(network, test.pixels, pattern) for network in kept]
        held_out = np.array([similarities(weights, own, each, test.picks) for each in answers])
        spanned, about = self._spanned(module, kept, test.pixels, rng, workshop)
        arrays = {"queries": test.pixels, "picks": test.picks, "uap": pattern, "answers": own, "held_out": held_out}
        facts = {
            "radius": found.radius,
            "norm": float(np.linalg.norm(pattern)),
            "fooled": float((own[:, 0].argmax(axis=1) != own[:, 1].argmax(axis=1)).mean()),
            "clusters": test.picks.shape[1],
            "held_out": {network.name: float(row.mean()) for network, row in zip(kept, held_out, strict=True)},
        }
        encoder = {f"{_ENCODER}{key}": value for key, value in weights.items()}
        return Fingerprint(self.name, {}, {**arrays, **encoder, **spanned}, {**facts, **about})

    def _views(self, model: BlackBox, data: Labelled, rng: np.random.Generator) -> tuple[Views, Views]:
        """Cluster the data by the victim's answers; draw the views for suspects and those for the encoder."""
        members = clusters(
            centred_logits(predict_pixels(model, data.pixels), model.output), self.options["points"], rng
        )
        test, train = draw_views(members, self.options["fingerprints"], self.options["views"], rng)
        return _viewed(data.pixels, test), _viewed(data.pixels, train)

    def _search(
        self, module: torch.nn.Module, pixels: Pixels, rng: np.random.Generator, workshop: Workshop
    ) -> Universal:
        options = self.options
        found = find_universal(
            module,
            pixels,
            1,
            radius=options["radius"] * mean_norm(pixels),
            fooling=options["fooling"],
            steps=options["steps"],
            rng=rng,
            progress=workshop.progress,
        )
        if found.rate < options["fooling"] / 2:
            raise NotApplicable(
                f"a perturbation of L2 norm {found.radius:.3g} changes the label of only {found.rate:.0%} of the "
                "images; try a larger radius or more steps"
            )
        return found

    def _networks(
        self, victim: BlackBox, data: Labelled, rng: np.random.Generator, workshop: Workshop
    ) -> tuple[list[Network], list[Network], list[Network]]:
        """Train surrogates and independents for the encoder, and independents to hold out."""
        count, kept = self.options["independents"], self.options["held_out"]
        first, second = map(int, rng.integers(2**31, size=2))
        stolen = workshop.surrogates(victim, data, self.options["surrogates"], seed=first, alike=False)
        innocent = workshop.independents(data, count + kept, seed=second, alike=False)
        return stolen, innocent[:count], innocent[count:]

    def _encoder(
        self,
        stolen: Sequence[BlackBox],
        innocent: Sequence[BlackBox],
        views: Views,
        pattern: NDArray[np.float32],
        rng: np.random.Generator,
        workshop: Workshop,
    ) -> Weights:
        """Train the encoder to tell the views of the victim and its surrogates (0) from those of independents (1)."""
        models, answers = (*stolen, *innocent), list[Outputs]()
        for model in models:
            workshop.progress("asking the networks", len(answers) / len(models))
            answers.append(ask(model, views.pixels, pattern))
        labels = np.repeat([0, 1], [len(stolen), len(innocent)])
        return train_encoder(
            np.concatenate([fingerprints(each, views.picks) for each in answers]),
            np.repeat(labels, len(views.picks)),
            temperature=self.options["temperature"],
            epochs=self.options["epochs"],
            batch=self.options["batch"],
            learning_rate=self.options["learning_rate"],
            seed=int(rng.integers(2**31)),
            progress=workshop.progress,
        )

    def _spanned(
        self,
        module: torch.nn.Module,
        kept: Sequence[Network],
        pixels: Pixels,
        rng: np.random.Generator,
        workshop: Workshop,
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Find the victim's perturbations for equation 5, and how inconsistent independents are with them."""
        if not self.options["subspace"]:
            return {}, {}
        own = self._directions(module, pixels, rng, workshop.progress)
        others = {each.name: self._directions(each.module, pixels, rng, workshop.progress) for each in kept}
        return {"subspace": own}, {"inconsistency": {name: inconsistency(own, each) for name, each in others.items()}}

    def _directions(
        self, module: torch.nn.Module, pixels: Pixels, rng: np.random.Generator, progress: Progress = silent
    ) -> NDArray[np.float32]:
        """Find ``subspace`` perturbations of a model and scale them to L2 norm 1, L x C x H x W."""
        count, radius = self.options["subspace"], self.options["radius"] * mean_norm(pixels)
        fooling, steps = self.options["fooling"], self.options["steps"]
        found = find_universal(
            module, pixels, count, radius=radius, fooling=fooling, steps=steps, rng=rng, progress=progress
        ).perturbations
        return np.asarray(found / np.sqrt(np.square(found).sum(axis=(1, 2, 3), keepdims=True)))

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        arrays, model = fingerprint.arrays, suspect.black_box()
        weights = {key.removeprefix(_ENCODER): arrays[key] for key in arrays if key.startswith(_ENCODER)}
        theirs = ask(model, arrays["queries"], arrays["uap"])
        found = similarities(weights, arrays["answers"], theirs, arrays["picks"], model.output)
        detail: dict[str, Any] = {"similarities": found.tolist(), "sd": float(found.std(ddof=1))}
        if self.options["subspace"] and suspect.can_be_differentiated():
            rng = np.random.default_rng(fingerprint.options["seed"])
            directions = self._directions(suspect.white_box().module, arrays["queries"], rng)
            detail["inconsistency"] = inconsistency(arrays["subspace"], directions)
        return Score(float(found.mean()), queries=2 * len(arrays["queries"]), detail=detail)


def clusters(points: Floats, count: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Split N x K points into ``count`` clusters by K-means (k-means++ seeding); return the members of each.

    Clusters that K-means leaves empty are left out.

    Raises:
        DataError: fewer points than clusters are distinct.
    """
    from scipy.cluster.vq import kmeans2

    distinct = len(np.unique(points, axis=0))
    if distinct < count:
        raise DataError(
            f"uap: the victim tells {distinct} images apart, and {count} clusters are wanted; "
            "pass more images or fewer points"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        _, nearest = kmeans2(np.asarray(points, np.float64), count, minit="++", seed=rng)
    return [members for i in range(count) if len(members := np.flatnonzero(nearest == i))]


def draw_views(
    members: Sequence[NDArray[np.intp]], test: int, train: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw views, one image of each of n clusters in every one, without replacement.

    A quarter of each cluster, at least one image and at most ``test``, is for the test views and the rest for
    the others. Where images run out all of them are drawn again in a new order; a lone image is in all views.

    Args:
        members: positions of the images of each cluster.
        test: views for suspects.
        train: views for the encoder.
        rng: draws them.

    Returns:
        test x n and train x n positions.
    """
    columns = []
    for cluster in members:
        order = rng.permutation(cluster)
        kept = min(test, max(1, len(order) // 4))
        rest = order[kept:] if len(order) > kept else order
        columns.append((_cycled(order[:kept], test, rng), _cycled(rest, train, rng)))
    first, second = zip(*columns, strict=True)
    return np.stack(first, axis=1), np.stack(second, axis=1)


def _cycled(items: NDArray[np.intp], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw ``count`` items without replacement, again from all of them whenever none is left."""
    rounds = -(-count // len(items))
    return np.concatenate([rng.permutation(items) for _ in range(rounds)])[:count]


def _viewed(pixels: Pixels, chosen: NDArray[np.intp]) -> Views:
    """Collect the images that V x n positions name."""
    shown, picks = np.unique(chosen, return_inverse=True)
    return Views(pixels[shown], picks.reshape(chosen.shape))


def without(data: Labelled, pixels: Pixels, *, classes: int) -> Labelled:
    """Leave out images that are equal to one of ``pixels``; where the data name no classes, number ``classes``."""
    return replace(data.without(pixels), classes=data.classes or tuple(map(str, range(classes))))


def ask(model: BlackBox, pixels: Pixels, pattern: NDArray[np.float32]) -> Outputs:
    """Ask for each of U images without and with a perturbation: probabilities U x 2 x K, 0 where hidden."""
    answers = [predict_pixels(model, images) for images in (pixels, perturbed(pixels, pattern))]
    return np.stack([as_probabilities(each, model.output) for each in answers], axis=1)


def as_seen(answers: Outputs, kind: OutputKind, shown: int) -> NDArray[np.float64]:
    """Read U x 2 x K probabilities as if a model of an output kind had answered with its ``shown`` largest.

    Labels show one as 1. Hidden entries are smoothed as ``shown_probabilities`` does; where none is hidden, nothing
    changes.
    """
    if kind not in ("topk", "labels"):
        return answers.astype(np.float64)
    rows = answers.reshape(-1, answers.shape[-1])
    rows = np.where(rows >= np.sort(rows, axis=1)[:, [-shown]], rows, 0.0)
    if kind == "labels":
        rows = one_hot(rows.argmax(axis=1), rows.shape[1])
    return shown_probabilities(rows, kind).reshape(answers.shape)


def fingerprints(answers: Floats, picks: NDArray[np.intp]) -> NDArray[np.float32]:
    """Join the answers of each view (equation 6): U x 2 x K and V x n positions to V x 2 n K."""
    return answers[picks].reshape(len(picks), -1).astype(np.float32)


def similarities(
    weights: Weights, own: Outputs, theirs: Outputs, picks: NDArray[np.intp], kind: OutputKind = "probabilities"
) -> NDArray[np.float64]:
    """Cosine of the encoded fingerprints of two models on each view, V.

    Args:
        weights: the encoder's.
        own: the victim's answers, U x 2 x K, nothing hidden.
        theirs: the suspect's.
        picks: V x n.
        kind: the suspect's output; what it hides is hidden of the victim's answers.
    """
    shown = int((theirs > 0).sum(axis=-1).max())
    encoded = [encode(weights, fingerprints(as_seen(each, kind, shown), picks)) for each in (own, theirs)]
    return cosines(*encoded)


def welch(a: Floats, b: Floats) -> float:
    """p-value of Welch's t-test that the mean of ``a`` is not larger than that of ``b``."""
    from scipy.special import stdtr

    squares = np.array([np.var(sample, ddof=1) / len(sample) for sample in (a, b)])
    difference = float(np.mean(a) - np.mean(b))
    if not squares.sum():
        return 0.0 if difference > 0 else 1.0
    freedom = squares.sum() ** 2 / (squares**2 / (np.array([len(a), len(b)]) - 1)).sum()
    return float(stdtr(freedom, -difference / np.sqrt(squares.sum())))


def _require(holds: bool, key: str, value: object, expected: str) -> None:
    if not holds:
        raise UsageError(f"uap: {key} is {value}; expected {expected}")
