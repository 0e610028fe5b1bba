"""Linear models of the answers to partly hidden images (ZEST)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit import metrics
from fp_audit.data import Labelled
from fp_audit.engine import Progress, silent
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._base import Method, versus
from fp_audit.fingerprints._queries import shown_probabilities
from fp_audit.fingerprints._segments import Labels, patches, quickshift
from fp_audit.model import BlackBox, as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Pixels, Scatter, Score

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop

Masks: TypeAlias = NDArray[np.bool_]
"""N x M x S: whether mask m of image n shows segment s; False for segments that an image does not have."""

Floats: TypeAlias = NDArray[np.float64]

GRID_SIDE = 64
"""Pixels a side up to which ``segments=auto`` cuts a grid."""

_VALUES = 2**24
"""Pixel values of the images that are shown at once."""

_ZERO = 1e-10
"""Eigenvalues below this share of the largest one are zero: the masks do not tell these segments apart."""

_IN_ORDER = 1e-9
"""Added to the correlation of columns of equal number: where nothing tells classes apart, their order stays."""

_MOVED = 1e-6
"""A largest weight below this is rounding."""


class Zest(Method):
    """Cosine of the weights of local linear models of victim and suspect; in [-1, 1].

    Each of N reference images is cut into segments. M masks hide each segment with probability 1 - ``keep``; a
    hidden segment takes its own mean colour. A least-squares fit, with a constant, of the probabilities of K classes
    to which segments were shown gives weights, N x S x K: how much a segment of an image counts for a class. The
    weights of all images and classes form one vector. ``Score.value`` and the part ``cosine`` are the cosine of the
    two models' vectors a and b, the part ``l2`` is ``1 - |a - b| / (|a| + |b|)``, in [0, 1]; both parts are judged.

    Neither architectures nor classes need agree. The suspect's classes are always assigned to the victim's by what
    the models answer, never by name: one to one, so that the sum of the correlations over the unmasked references is
    largest; where one model has more classes, those left over are not compared. For whatever answers like the victim
    that is the true correspondence. For others it is the one under which they look most alike: independents score
    higher than by name, those of the null too, which costs power and raises no false alarm. With fewer references than
    classes it is little more than a guess, except for near copies. A suspect with few classes is compared on
    little, so that its score scatters more than those of a null with the victim's classes.

    Source: Jia et al., "A Zest of LIME: Towards Architecture-Independent Model Distances", ICLR 2022; LIME: Ribeiro
    et al., KDD 2016. Differences: probabilities are explained, which any suspect gives (the authors' code: logits);
    the fit has a constant, as LIME's does (the code: none); hidden segments take their own mean, as in LIME (the
    code: the mean colour of the data set); classes are assigned optimally and by answers (the code: greedily, by the
    distances of their weights); masked images are rounded to uint8.

    The paper's 128 x 1,000 queries are the default. Segments of the default size suit images of some 200 pixels a
    side. Of 28 x 28 or 32 x 32 pixels they make one or two, from which little is learned: there ``segments=grid`` told
    surrogates from independents somewhat better in small trials. ``kernel=1`` makes some 14 segments on CIFAR-10.

    Args:
        images: reference images, N.
        masks: masks of each image, M, of which the first hides nothing; better many more than segments.
        segments: ``quickshift``, a ``grid`` of equal patches, or ``auto``: the grid for small images.
        kernel: of quickshift, pixels; larger segments if larger.
        ratio: of quickshift, weight of colour (CIELAB units) against place (pixels).
        max_distance: of quickshift, longest link between two pixels.
        grid: patches along each side of an image.
        keep: probability that a mask shows a segment.
    """

    name: ClassVar[str] = "zest"
    summary: ClassVar[str] = "how much parts of images count for each class; needs no common classes, many queries"
    paper: ClassVar[str] = "Jia et al., ICLR 2022"
    withstands: ClassVar[str] = "quantisation, pruning, light fine-tuning, reordered or added classes"
    misses: ClassVar[str] = "extraction, above all to another architecture; strong fine-tuning; RemovalNet"
    victim_access: ClassVar[Access] = Access.QUERIES
    suspect_access: ClassVar[Access] = Access.QUERIES
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = False
    default: ClassVar[bool] = False
    scatter: ClassVar[Scatter] = Scatter(0.01)

    def __init__(
        self,
        *,
        images: int = 128,
        masks: int = 1000,
        segments: str = "auto",
        kernel: float = 4.0,
        ratio: float = 0.2,
        max_distance: float = 200.0,
        grid: int = 8,
        keep: float = 0.5,
    ) -> None:
        self.options = {
            "images": images,
            "masks": masks,
            "segments": segments,
            "kernel": kernel,
            "ratio": ratio,
            "max_distance": max_distance,
            "grid": grid,
            "keep": keep,
        }
        _check(self.options)

    def budget(self) -> int:
        """See ``Method.budget``."""
        return int(self.options["images"] * self.options["masks"])

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del detail
        return f"finds the same parts of images important as the victim: {score:.3f}" + versus(null, ".3f")

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        data = self.required(data)
        references = data.pixels[np.sort(rng.permutation(len(data))[: self.options["images"]])]
        segments = self._cut(references, workshop.progress)
        masks = draw_masks(segments, self.options["masks"], self.options["keep"], rng)
        weights, answers = local_weights(victim.black_box(), references, segments, masks, workshop.progress)
        if np.abs(weights).max() < _MOVED:
            raise NotApplicable("the victim answers the same whichever segments are hidden")
        arrays: dict[str, NDArray[Any]] = {
            "references": references,
            "segments": segments,
            "masks": np.packbits(masks, axis=2),
            "weights": weights.astype(np.float32),
            "answers": answers.astype(np.float32),
        }
        facts = {"queries": masks[:, :, 0].size, "segments": float(1 + segments.max(axis=(1, 2)).mean())}
        return Fingerprint(self.name, {}, arrays, facts)

    def _cut(self, references: Pixels, progress: Progress) -> Labels:
        options = self.options
        small = max(references.shape[2:]) <= GRID_SIDE
        if options["segments"] == "grid" or (options["segments"] == "auto" and small):
            return patches(references, options["grid"])
        return quickshift(
            references,
            kernel=options["kernel"],
            ratio=options["ratio"],
            max_distance=options["max_distance"],
            progress=progress,
        )

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        kept = fingerprint.arrays
        masks = np.unpackbits(kept["masks"], axis=2, count=kept["weights"].shape[1]).astype(bool)
        weights, answers = local_weights(suspect.black_box(), kept["references"], kept["segments"], masks)
        ours, theirs = matched_classes(kept["answers"], answers)
        a, b = kept["weights"][:, :, ours].reshape(1, -1), weights[:, :, theirs].reshape(1, -1)
        parts = {"cosine": metrics.mean_cosine(a, b), "l2": closeness(a, b)}
        return Score(parts["cosine"], queries=masks[:, :, 0].size, parts=parts, detail={"classes_compared": len(ours)})


def _check(options: Mapping[str, Any]) -> None:
    """Refuse options that make no sense."""
    if options["segments"] not in ("auto", "quickshift", "grid"):
        raise UsageError(f"zest: segments is {options['segments']!r}; expected auto, quickshift or grid")
    for name, least in {"images": 1, "masks": 2, "grid": 2, "ratio": 0}.items():
        if not least <= options[name]:
            raise UsageError(f"zest: {name} is {options[name]}; expected {least} or more")
    for name in ("kernel", "max_distance"):
        if not options[name] > 0:
            raise UsageError(f"zest: {name} is {options[name]}; expected more than 0")
    if not 0 < options["keep"] < 1:
        raise UsageError(f"zest: keep is {options['keep']}; expected more than 0 and less than 1")


def draw_masks(segments: Labels, count: int, keep: float, rng: np.random.Generator) -> Masks:
    """Draw ``count`` masks for each of N cut images; the first one of each image shows all of it, as in LIME."""
    most = segments.max(axis=(1, 2))
    masks = rng.random((len(segments), count, most.max() + 1)) < keep
    masks[:, 0] = True
    return np.asarray(masks & (np.arange(most.max() + 1) <= most[:, None])[:, None])


def local_weights(
    model: BlackBox, references: Pixels, segments: Labels, masks: Masks, progress: Progress = silent
) -> tuple[Floats, Floats]:
    """Fit a model's probabilities on masked images to the masks.

    Returns:
        Weights, N x S x K, zero for segments that an image does not have; the probabilities of the images as the
        first masks show them, N x K.
    """
    hidden, fit = faded(references, segments), solver(masks)
    size = max(1, _VALUES // references.size)
    weights: Floats | float = 0.0
    for start in range(0, masks.shape[1], size):
        part = slice(start, start + size)
        images = masked(references, hidden, segments, masks[:, part]).reshape(-1, *references.shape[1:])
        answers = shown_probabilities(model.predict(as_images(images)), model.output)
        answers = answers.reshape(len(references), -1, answers.shape[1])
        weights = weights + fit[:, :, part] @ answers
        if start == 0:
            whole = answers[:, 0]
        progress("hiding parts of images", min(1.0, part.stop / masks.shape[1]))
    return np.asarray(weights), whole


def faded(references: Pixels, segments: Labels) -> Pixels:
    """Give every pixel of N x C x H x W images the mean colour of its segment, rounded."""
    count, channels = int(segments.max()) + 1, references.shape[1]
    place = (segments.reshape(len(segments), -1) + count * np.arange(len(segments))[:, None]).ravel()
    sizes = np.bincount(place)
    planes = references.transpose(1, 0, 2, 3).reshape(channels, -1)
    means = np.stack([np.bincount(place, plane) / np.maximum(sizes, 1) for plane in planes])
    colours = np.rint(means).astype(np.uint8)[:, place]
    return np.ascontiguousarray(colours.reshape(channels, *segments.shape).transpose(1, 0, 2, 3))


def masked(references: Pixels, hidden: Pixels, segments: Labels, masks: Masks) -> Pixels:
    """Show N x C x H x W images where their masks do and ``hidden`` elsewhere, N x M x C x H x W."""
    place = segments.reshape(len(segments), 1, -1).astype(np.intp)
    shown = np.take_along_axis(masks, place, axis=2).reshape(*masks.shape[:2], 1, *segments.shape[1:])
    return np.where(shown, references[:, None], hidden[:, None])


def solver(masks: Masks) -> Floats:
    """Return the matrices that turn M answers into least-squares weights of S segments, N x S x M.

    The pseudo-inverse of ``[masks, 1]`` without its last row, the constant. Where the masks do not determine the
    weights, these are the shortest ones.
    """
    design = np.concatenate([masks, np.ones((*masks.shape[:2], 1))], axis=2)
    transposed = design.transpose(0, 2, 1)
    inverse = np.linalg.pinv(transposed @ design, rtol=_ZERO, hermitian=True) @ transposed
    return np.asarray(inverse[:, :-1])


def matched_classes(
    ours: NDArray[np.floating], theirs: NDArray[np.floating]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pair the columns of N x K and N x L answers so that the sum of their correlations is largest; min(K, L) pairs."""
    from scipy.optimize import linear_sum_assignment

    correlation = _standardised(ours).T @ _standardised(theirs)
    first, second = linear_sum_assignment(correlation + _IN_ORDER * np.eye(*correlation.shape), maximize=True)
    return first, second


def _standardised(columns: NDArray[np.floating]) -> Floats:
    """Bring columns to mean 0 and length 1; a constant one becomes zero."""
    centred = np.asarray(columns, np.float64) - columns.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=0)
    return np.asarray(np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > _MOVED))


def closeness(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """1 - |a - b| / (|a| + |b|), in [0, 1]; ``a`` must not be zero."""
    return 1.0 - float(np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b)))
