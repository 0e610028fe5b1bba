"""Six distances on test cases made for them: adversarial examples, and images that excite one neuron (DeepJudge)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit import metrics
from fp_audit.data import Labelled
from fp_audit.engine import batch_size, device_of
from fp_audit.errors import NotApplicable, UnsupportedModel, UsageError
from fp_audit.fingerprints._adversarial import cw, fgsm, misclassification, pgd
from fp_audit.fingerprints._base import versus
from fp_audit.fingerprints._neurons import (
    Excited,
    chosen_layers,
    counterpart,
    excite,
    layer_shapes,
    pairs,
    place_of,
    responses_of,
)
from fp_audit.fingerprints._queried import Queried, Queries
from fp_audit.fingerprints._queries import predict_pixels
from fp_audit.fingerprints._representations import probabilities
from fp_audit.model import BlackBox, WhiteBox, as_images
from fp_audit.subject import Subject
from fp_audit.types import Access, Fingerprint, Null, OutputKind, Outputs, Pixels, Scatter, Score

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop

Responses: TypeAlias = NDArray[np.float32]
"""Of each neuron of a layer to each test case, N x W."""

BLACK, WHITE = ("robd", "jsd"), ("nod", "nad", "lod", "lad")
SHOWN = {"robd": "RobD", "jsd": "JSD", "nod": "NOD", "nad": "NAD", "lod": "LOD", "lad": "LAD"}

ALPHA = {**dict.fromkeys(BLACK, 0.9), **dict.fromkeys(WHITE, 0.6)}
"""Share of the independents' distance that a copy must stay below."""

LN2 = float(np.log(2.0))

SMALL_SIDE = 64
"""Images of more pixels a side are of ImageNet's kind."""

CW_STEPS = 1000

TRIES = 30
"""Seeds tried at most for each black-box test case."""


class Row(NamedTuple):
    """What table VIII says of PGD for one data set."""

    epsilon: float
    steps: int


MNIST, CIFAR, IMAGENET = Row(0.1, 10), Row(0.03, 10), Row(0.01, 10)


@dataclass(frozen=True)
class Cases(Queries):
    """Black-box test cases."""

    labels: NDArray[np.int64] = field(kw_only=True)
    """Their true labels, N."""


class DeepJudge(Queried):
    """Mean of up to six similarities, each 1 for a copy; two need answers, four an opened suspect.

    Seeds are images that the victim classifies correctly, the most certain ones first (sum of squared probabilities).
    Black-box test cases are adversarial examples made from them:

    - ``robd``: 1 - RobD, the difference of the two shares of test cases that still get their true label; [0, 1].
    - ``jsd``: 1 - JSD / ln 2, JSD the mean Jensen-Shannon divergence of the two answers in nats; [0, 1].

    White-box test cases are made for one neuron of a layer each: from a seed, gradient ascent until the neuron's
    response exceeds m times its largest over the data (Algorithm 2, all pairs at once). Averaged over layers:

    - ``nod``: 1 - NOD / the victim's mean response, both at the neuron of each case; at most 1, below 0 for a response
      that is off by more than its size. The same for every width.
    - ``nad``: 1 - NAD, the share of cases whose neuron is active in one model only; [0, 1], the same for every width.
    - ``lod``: 1 - LOD / the victim's, of all the layer's neurons, root mean square; at most 1. The paper's norm
      grows with the square root of the width; this does not.
    - ``lad``: 1 - LAD, the share of (case, neuron) pairs active in one model only; [0, 1], the same for every width.

    A neuron is active on a case if it responds more than the middle between its least and largest response over the
    layer's cases, in that model. Layers correspond by name if they have as many neurons; else (PyTorch against ONNX) by
    the shape of their outputs, by their place among layers of that shape, and among the few nearest to it by the least
    LOD. A layer without counterpart says nothing. Where the classes cannot be aligned, only the white-box
    similarities are given.

    ``judge`` adds the paper's vote: a distance (1 - similarity; JSD in nats) votes "copy" if it is at most alpha * LB,
    LB being the lower bound of the one-tailed 99 % t-interval of the independents' mean distance, alpha .9 for
    black-box and .6 for white-box distances. More than half of the votes that are possible decide.

    Source: Chen et al., "Copy, Right? A Testing Framework for Copyright Protection of Deep Learning Models", S&P 2022.
    Differences:

    - Seeds whose adversarial examples do not fool the victim are used last (``fooling``): of a LeNet on MNIST the 100
      most certain images withstand epsilon .1, and then RobD and JSD are 0 for independents too.
    - Test cases are rounded to uint8, so that a pixel can be half a grey level outside the radius.
    - The step of PGD, which the paper does not state, is 2.5 * epsilon / steps (Madry et al.'s rule).
    - CW and Algorithm 2 use Adam. Algorithm 2 gives an image up when it stops gaining.
    - White-box test cases that miss m times the largest response are kept if they exceed the largest response
      after rounding; ``facts`` count both. Neurons that never respond, and pairs whose ReLU is shut at the seed (no
      gradient), are left out. Neurons and seeds are paired in turn, not each with each.
    - NAD and LAD scale each neuron by itself, so that scaling a channel does not matter; NOD and LOD are relative to
      the victim, so that layers can be averaged.

    Args:
        queries: black-box test cases.
        attack: ``pgd``, ``fgsm`` or ``cw``.
        fooling: whether to go down the ranking (at most 30 seeds for each test case) until there are enough test cases
            that fool the victim; or (the paper) to take the first seeds, whatever comes of them.
        epsilon: L-infinity radius; 0 stands for table VIII: .1 for one channel (MNIST), .03 for three (CIFAR-10), .01
            for images of more than 64 pixels a side (ImageNet). CW has none.
        step: of PGD; 0 stands for 2.5 * epsilon / steps.
        steps: of PGD or CW; 0 stands for table VIII: 10 and 1000. FGSM takes one.
        constant: weight of the loss against the distance, of CW.
        cw_rate: CW's learning rate, in units of the [0, 1] box.
        seeds: that neurons take in turn, the most certain ones.
        m: how far a neuron is to exceed its largest response over the data, as a factor, 1 or more.
        neuron_steps: most steps of Algorithm 2 per image.
        neuron_rate: its learning rate, in units of the [0, 1] box.
        layers: names separated by ``|``; empty: two convolutional or token layers near the input
            (``_neurons.chosen_layers``).
        cases: white-box test cases per layer. A wide layer gives as many neurons, drawn at random; a narrow one gives
            its neurons in turn, each time with another seed. 0: every neuron once.
        sample: images of the data, drawn at random, of which seeds are chosen and responses taken.
        batch: most images optimised at once; fewer where they are large.
    """

    name: ClassVar[str] = "deepjudge"
    summary: ClassVar[str] = "six distances on adversarial examples and on images that excite single neurons"
    paper: ClassVar[str] = "Chen et al., S&P 2022"
    withstands: ClassVar[str] = "fine-tuning, pruning, quantisation; transfer to other classes if the suspect is opened"
    misses: ClassVar[str] = "extraction: a network trained from scratch on the victim's labels"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    suspect_gain: ClassVar[Access | None] = Access.GRADIENTS
    unaligned_gain: ClassVar[bool] = True
    default: ClassVar[bool] = False
    needs_data: ClassVar[bool] = True
    aligned: ClassVar[bool] = True
    query_set: ClassVar[str | None] = "adversarial"
    representation: ClassVar[str] = "probabilities"
    distance: ClassVar[str] = "jsd"
    scatter: ClassVar[Scatter] = Scatter(0.05)
    """About the noise of a rate over 100 test cases."""

    def __init__(
        self,
        *,
        queries: int = 100,
        attack: str = "pgd",
        fooling: bool = True,
        epsilon: float = 0.0,
        step: float = 0.0,
        steps: int = 0,
        constant: float = 5.0,
        cw_rate: float = 0.01,
        seeds: int = 100,
        m: float = 3.0,
        neuron_steps: int = 1000,
        neuron_rate: float = 0.1,
        layers: str = "",
        cases: int = 64,
        sample: int = 5000,
        batch: int = 256,
    ) -> None:
        self.options = {
            "queries": queries,
            "attack": attack,
            "fooling": fooling,
            "epsilon": epsilon,
            "step": step,
            "steps": steps,
            "constant": constant,
            "cw_rate": cw_rate,
            "seeds": seeds,
            "m": m,
            "neuron_steps": neuron_steps,
            "neuron_rate": neuron_rate,
            "layers": layers,
            "cases": cases,
            "sample": sample,
            "batch": batch,
        }
        ones, zeros = (
            ("queries", "seeds", "m", "sample", "batch"),
            ("epsilon", "step", "steps", "neuron_steps", "cases"),
        )
        for key, bound in {**dict.fromkeys(ones, 1), **dict.fromkeys(zeros, 0)}.items():
            if self.options[key] < bound:
                raise UsageError(f"deepjudge: {key} is {self.options[key]}; expected {bound} or more")
        if attack not in ("pgd", "fgsm", "cw"):
            raise UsageError(f"deepjudge: attack is {attack!r}; expected pgd, fgsm or cw")

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        found = ", ".join(f"{SHOWN[key]} {float(value):.2f}" for key, value in detail["distances"].items())
        votes = detail.get("votes")
        if votes:
            return f"passes {sum(votes.values())} of {len(votes)} of DeepJudge's tests for a copy ({found})"
        return f"resembles the victim to {score:.2f} in DeepJudge's tests ({found})" + versus(null, ".2f")

    def judge(self, fingerprint: Fingerprint, score: Score, null: Null | None) -> Mapping[str, Any]:
        """See ``Method.judge``: thresholds and votes of the paper, where two independents or more have a distance."""
        del fingerprint
        thresholds, votes = {}, {}
        for key in SHOWN:
            others = [parts[key] for parts in (null.parts if null else ()) if key in parts]
            if key in score.parts and len(others) >= 2:
                thresholds[key] = threshold([distance_of(key, part) for part in others], ALPHA[key])
                votes[key] = distance_of(key, score.parts[key]) <= thresholds[key]
        return {"thresholds": thresholds, "votes": votes, "copy": 2 * sum(votes.values()) > len(votes)} if votes else {}

    def _queries(self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop) -> Queries:
        _, seeds = self._seeds(victim, self.required(data), rng)
        return self._cases(victim.white_box(), seeds, workshop)

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        sample, seeds = self._seeds(victim, self.required(data), rng)
        model, white = victim.black_box(), victim.white_box()
        cases = self._cases(white, seeds, workshop)
        answers = predict_pixels(model, cases.pixels)
        shown = probabilities(answers, model.output)
        arrays: dict[str, NDArray[Any]] = {"queries": cases.pixels, "labels": cases.labels, "probabilities": shown}
        facts: dict[str, Any] = {**cases.facts, "robustness": metrics.accuracy(answers, cases.labels), "layers": []}
        for about in self._layers(white, seeds):
            made = self._excited(white, about["name"], sample, seeds, rng, workshop)
            place = len(facts["layers"])
            if made:
                facts["layers"].append({**about, "cases": len(made.neurons), "reached": made.reached})
                arrays[f"neurons.{place}"], arrays[f"index.{place}"] = made.pixels, made.neurons
                arrays[f"responses.{place}"] = made.responses
        return Fingerprint(self.name, {}, arrays, facts)

    def _seeds(self, victim: Subject, data: Labelled, rng: np.random.Generator) -> tuple[Labelled, Labelled]:
        """Draw the sample; return it, and its correctly classified images, the most certain first."""
        sample, model = data.take(rng.permutation(len(data))[: self.options["sample"]]), victim.black_box()
        ranked = most_certain(predict_pixels(model, sample.pixels), model.output, sample.labels)
        if not len(ranked):
            raise NotApplicable(f"the victim classifies none of {len(sample)} images correctly")
        return sample, sample.take(ranked)

    def _cases(self, white: WhiteBox, seeds: Labelled, workshop: Workshop) -> Cases:
        """Make black-box test cases, going down the seeds until enough of them fool the victim."""
        wanted, made, fooled = self.options["queries"], [], np.zeros(0, bool)
        for start in range(0, min(len(seeds), TRIES * wanted), wanted):
            block = seeds.take(np.arange(start, min(len(seeds), start + wanted)))
            made.append(self._attacked(white, block))
            fooled = np.append(fooled, white.predict(as_images(made[-1])).argmax(axis=1) != block.labels)
            workshop.progress("making adversarial examples", min(1.0, fooled.sum() / wanted))
            if fooled.sum() >= wanted or not self.options["fooling"]:
                break
        kept = np.sort(np.argsort(~fooled, kind="stable")[:wanted])
        epsilon, step, steps = strength(seeds.pixels.shape[1:], self.options)
        facts = {"queries": len(kept), "tried": len(fooled), "epsilon": epsilon, "step": step, "steps": steps}
        return Cases(np.concatenate(made)[kept], facts, labels=seeds.labels[kept])

    def _attacked(self, white: WhiteBox, seeds: Labelled) -> Pixels:
        """Make one adversarial example of each seed, N x C x H x W, uint8."""
        import torch

        from fp_audit.descent import as_pixels

        options, device = self.options, device_of(white.module)
        loss = misclassification(white.module, torch.from_numpy(seeds.labels).to(device))
        images = torch.from_numpy(as_images(seeds.pixels)).to(device)
        epsilon, step, steps = strength(seeds.pixels.shape[1:], options)
        fitting = batch_size(white.module, seeds.pixels.shape[1:], str(device), gradients=True)
        in_flight = min(options["batch"], fitting)
        if options["attack"] == "fgsm":
            moved = fgsm(images, loss, epsilon, in_flight=in_flight)
        elif options["attack"] == "pgd":
            moved = pgd(images, loss, epsilon, step=step, steps=steps, in_flight=in_flight)
        else:
            rate = options["cw_rate"]
            moved = cw(images, loss, options["constant"], steps=steps, learning_rate=rate, in_flight=in_flight)
        return as_pixels(moved).cpu().numpy()

    def _layers(self, white: WhiteBox, seeds: Labelled) -> list[dict[str, Any]]:
        """Choose layers; return what their counterparts in a suspect are found by."""
        shapes = layer_shapes(white, seeds.pixels)
        names = self.options["layers"].split("|")
        if names == [""]:
            names = chosen_layers(shapes, seeds.pixels.shape[1])
        for name in names:
            if name not in shapes:
                known = f"one of {len(shapes)}, such as {', '.join(list(shapes)[:5])}"
                raise UsageError(f"deepjudge: layers names {name!r}; expected {known}")
        return [{"name": name, "shape": list(shapes[name]), "place": place_of(shapes, name)} for name in names]

    def _excited(
        self,
        white: WhiteBox,
        layer: str,
        sample: Labelled,
        seeds: Labelled,
        rng: np.random.Generator,
        workshop: Workshop,
    ) -> Excited | None:
        """Make white-box test cases for one layer; None if none of its neurons can be excited."""
        highest = responses_of(white, sample.pixels, layer).max(axis=0)
        live = rng.permutation(np.flatnonzero(highest > 0))
        if not len(live):
            return None
        neurons, turn = pairs(live, min(len(seeds), self.options["seeds"]), self.options["cases"] or len(live))
        made = excite(
            white,
            layer,
            seeds.pixels[turn],
            neurons,
            highest,
            self.options["m"],
            steps=self.options["neuron_steps"],
            learning_rate=self.options["neuron_rate"],
            in_flight=self.options["batch"],
            progress=workshop.progress,
        )
        return made if len(made.neurons) else None

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        parts: dict[str, float] = {}
        detail: dict[str, Any] = {}
        queries = 0
        if suspect.aligned():
            parts, queries = black_similarities(fingerprint, suspect.black_box()), len(fingerprint.arrays["queries"])
        if suspect.can_be_differentiated():
            try:
                more, detail["layers"] = white_similarities(fingerprint, suspect.white_box())
            except UnsupportedModel as error:
                more, detail["not_opened"] = {}, str(error)
            parts |= more
        if not parts:
            raise NotApplicable("its classes are others, and it has no layer like those of the victim")
        detail["distances"] = {key: distance_of(key, part) for key, part in parts.items()}
        return Score(float(np.mean(list(parts.values()))), queries=queries, parts=parts, detail=detail)


def most_certain(answers: Outputs, kind: OutputKind, labels: NDArray[np.integer]) -> NDArray[np.intp]:
    """Rank the images that are classified correctly by DeepGini's certainty, sum of squared probabilities, most first.

    Args:
        answers: N x K.
        kind: what they are.
        labels: true ones, N.
    """
    from scipy.special import softmax

    wide = np.asarray(answers, np.float64)
    certainty = np.square(softmax(wide, axis=1) if kind == "logits" else wide).sum(axis=1)
    ranked = np.argsort(-certainty, kind="stable")
    return np.asarray(ranked[answers[ranked].argmax(axis=1) == labels[ranked]])


def strength(shape: Sequence[int], options: Mapping[str, Any]) -> tuple[float, float, int]:
    """Return epsilon, step and number of steps for images of C x H x W; see ``DeepJudge``."""
    row = IMAGENET if max(shape[1:]) > SMALL_SIDE else MNIST if shape[0] == 1 else CIFAR
    epsilon = options["epsilon"] or row.epsilon
    steps = options["steps"] or (CW_STEPS if options["attack"] == "cw" else row.steps)
    return epsilon, options["step"] or 2.5 * epsilon / steps, steps


def black_similarities(fingerprint: Fingerprint, suspect: BlackBox) -> dict[str, float]:
    """Compare answers to the black-box test cases."""
    arrays = fingerprint.arrays
    answers = suspect.predict(as_images(arrays["queries"]))
    shown = probabilities(answers, suspect.output)
    return {
        "robd": 1.0 - metrics.robustness_distance(arrays["probabilities"], answers, arrays["labels"]),
        "jsd": 1.0 - metrics.jensen_shannon(arrays["probabilities"], shown) / LN2,
    }


def white_similarities(fingerprint: Fingerprint, suspect: WhiteBox) -> tuple[dict[str, float], dict[str, Any]]:
    """Compare responses to the white-box test cases.

    Returns:
        The similarities, averaged over the layers that have a counterpart, none if no layer has; and for each such
        layer its counterpart and its distances as they are, in units of the responses.
    """
    arrays, relative, detail = fingerprint.arrays, [], {}
    shapes = cache(lambda: layer_shapes(suspect, arrays["neurons.0"]))
    for place, about in enumerate(fingerprint.facts["layers"]):
        ours, neurons = arrays[f"responses.{place}"], arrays[f"index.{place}"]
        found = counterpart(suspect, about, arrays[f"neurons.{place}"], ours, shapes)
        if found:
            name, theirs = found
            distances, whole = layer_distances(ours, theirs, neurons), layer_distances(ours, 0 * ours, neurons)
            units = {"nod": whole["nod"], "lod": whole["lod"], "nad": 1.0, "lad": 1.0}
            relative.append([distances[key] / units[key] for key in WHITE])
            detail[about["name"]] = {"as": name, **distances}
    means = np.mean(relative, axis=0) if relative else []
    return {key: 1.0 - float(mean) for key, mean in zip(WHITE, means, strict=False)}, detail


def layer_distances(a: Responses, b: Responses, neurons: NDArray[np.integer]) -> dict[str, float]:
    """Return the four white-box distances between responses, N x W, to cases made for ``neurons``, N."""
    return {
        "nod": metrics.neuron_output_distance(a, b, neurons),
        "nad": metrics.neuron_activation_distance(a, b, neurons),
        "lod": metrics.layer_output_distance(a, b),
        "lad": metrics.layer_activation_distance(a, b),
    }


def distance_of(key: str, similarity: float) -> float:
    """Turn a similarity back into a distance: JSD in nats; NOD and LOD stay relative to the victim."""
    return (1.0 - similarity) * (LN2 if key == "jsd" else 1.0)


def threshold(distances: Sequence[float], alpha: float) -> float:
    """Return alpha times the lower bound of the one-tailed 99 % t-interval of the mean of two distances or more.

    It is below zero, and no distance can vote "copy", where the independents are few and far apart.
    """
    from scipy.special import stdtrit

    sample = np.asarray(distances, np.float64)
    n = len(sample)
    return alpha * float(sample.mean() - stdtrit(n - 1, 0.99) * sample.std(ddof=1) / np.sqrt(n))
