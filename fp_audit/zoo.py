"""A zoo: models whose history is known, to measure verdicts on; built and kept, so that a second call goes on.

Labelled images are divided with the seed (``divide``): some stay aside for tests, the owner gets one half of the
others and the thief the other half. The victim is taken to have been trained on the owner's half: train it on
``divide(images, seed).owner``. Or name the thief's images apart (``ZooOptions.thief``): then all DATA are the owner's.

Surrogates are made by attacks on the victim with the thief's images and saved as ordinary model folders; independents
are networks of many kinds, trained on true labels: of the victim's own images, of half of them or of none. ::

    from pathlib import Path
    from fp_audit.zoo import ZooOptions, build_zoo

    zoo = build_zoo("victim.onnx", "owner.npz", Path("zoo"), ZooOptions(thief="thief.npz"), progress=print)
    print(len(zoo.surrogates), len(zoo.independents), zoo.failures)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fp_audit import data as labelled_images
from fp_audit import networks, registration
from fp_audit.alignment import count_outputs
from fp_audit.attacking import OpenVictim, obtained, open_victim, slug, spelt_out, told_under
from fp_audit.attacks._base import Attack
from fp_audit.attacks._options import from_specs
from fp_audit.data import Labelled
from fp_audit.engine import Progress, pick_device, silent, top1
from fp_audit.errors import DataError, FpAuditError, UsageError
from fp_audit.networks import Network, NetworkSpec

TRAININGS = ("same", "half", "none")
"""How much of the victim's training images an independent was trained on."""

TEST_SHARE, MAX_TEST = 0.1, 2000
"""Images that nobody is trained on: this share, and no more than so many."""

ALL, QUICK = "all", "quick"

OTHER = ":queries=12000:epochs=6"
"""Of networks that are trained on enlarged images, each dear."""

ALL_ATTACKS = (
    "quantise:mode=static",
    "quantise:mode=dynamic",
    "quantise:mode=fp16",
    "disguise",
    "csrp@2",
    "rdg",
    "fine-tune:mode=ftll",
    "fine-tune:mode=ftal",
    "fine-tune:mode=rtal",
    "prune:rate=0.3",
    "prune:rate=0.6:epochs=2",
    "prune:rate=0.8:epochs=4",
    "prune-channels:rate=0.2:epochs=2",
    "csrp:mode=data-limited",
    "fine-tune:epochs=3+csrp",
    "removalnet@2",
    "removalnet:preset=code",
    "extract@3",
    f"extract:architecture=test_resnet{OTHER}@2",
    f"extract:architecture=test_efficientnet{OTHER}@2",
    f"extract:architecture=test_vit{OTHER}",
    f"extract:answers=probabilities:architecture=test_resnet{OTHER}",
    "extract:answers=probabilities@2",
    "extract-mix",
    "distill",
    "papernot",
    "cloudleak",
    "adversarial-tune",
    "adversarial-extract:epochs=8@2",
    "transfer",
)
"""What ``all`` stands for: every kind of attack, the cheap ones first; ``SPEC@N`` is tried with N seeds.

``knockoff`` is not among them: on the thief's own images it is ``extract:answers=probabilities`` once more.
"""

QUICK_ATTACKS = (
    "quantise:mode=static",
    "fine-tune:epochs=2",
    "prune:rate=0.5:epochs=1",
    "csrp",
    "extract:epochs=10",
    "removalnet:iterations=100",
)
"""What ``quick`` stands for: a short attack of each of the main kinds."""

_KINDS = {
    "extract-mix": "extraction-mix",
    "adversarial-extract": "adversarial-extraction",
    "distill": "distillation",
    "knockoff": "substitute",
    "papernot": "substitute",
    "cloudleak": "substitute",
} | {name: name for name in ("adversarial-tune", "removalnet", "csrp", "rdg", "transfer")}
"""Kind of the surrogates that an attack makes, where its options do not matter; others leave a ``copy``."""

COPY = "copy"


@dataclass(frozen=True)
class ZooOptions:
    """What a zoo is made of."""

    attacks: tuple[str, ...] = (ALL,)
    """``quick``, ``all`` or attacks as ``NAME:key=value``, chains joined by ``+``, ``@N`` at the end: N seeds."""
    independents: int = 24
    seed: int = 0
    device: str = "auto"
    thief: str | None = None
    """The thief's labelled images; all of DATA are then the owner's. None: half of DATA are the thief's."""
    trained_on: tuple[str, ...] = TRAININGS
    """Those of ``TRAININGS`` among which the independents are divided."""

    def __post_init__(self) -> None:
        named = set(self.trained_on)
        if not named or not named <= set(TRAININGS) or len(named) < len(self.trained_on):
            text = ",".join(self.trained_on)
            raise UsageError(f"--trained-on {text!r}: expected some of {', '.join(TRAININGS)}, each once")
        if self.independents < len(self.trained_on):
            raise UsageError(f"--independents {self.independents}: expected at least {len(self.trained_on)}")


@dataclass(frozen=True)
class Theft:
    """One surrogate to be made."""

    spec: str
    """As it was named, without ``@N``."""
    attacks: Sequence[Attack]
    """One after another."""
    seed: int

    @property
    def name(self) -> str:
        """Folder of the surrogate."""
        return f"{slug(self.spec)}.seed{self.seed}"

    @property
    def kind(self) -> str:
        """See ``kind_of``."""
        return kind_of(self.attacks)


@dataclass(frozen=True)
class Surrogate:
    """A stolen model in its folder."""

    name: str
    kind: str
    folder: Path
    provenance: Mapping[str, Any]
    """Content of its ``provenance.json``."""


@dataclass(frozen=True)
class Independent:
    """An innocent model in memory."""

    name: str
    training: str
    """One of ``TRAININGS``."""
    network: Network
    accuracy: float
    """Share of the test images that it gets right."""
    agreement: float
    """Share of the test images to which it gives the victim's label."""


@dataclass(frozen=True)
class Divided:
    """Who has which images."""

    owner: Labelled
    thief: Labelled
    test: Labelled
    """Nobody is trained on these."""


@dataclass(frozen=True)
class Zoo:
    """A victim and the models around it."""

    victim: OpenVictim
    owner: Path
    """The owner's images as an ``.npz``, labels in the order of the victim's outputs: what it is registered with."""
    victim_accuracy: float
    """On the test images."""
    surrogates: tuple[Surrogate, ...]
    independents: tuple[Independent, ...]
    failures: Mapping[str, str]
    """Name of a surrogate that could not be made -> why."""


def build_zoo(
    model: str, data: str, out: Path, options: ZooOptions | None = None, *, progress: Progress = silent
) -> Zoo:
    """Make what is missing of a victim's zoo in ``out``: surrogates, then independents.

    ``out/surrogates`` holds the surrogates, ``out/cache`` the weights of the independents, ``out/owner.npz`` the
    owner's images. An attack that is not possible is recorded and the others go on.

    Args:
        model: the victim: hub id, model folder or ``.onnx`` file.
        data: labelled images, see ``data.load``.
        out: folder to fill; it is made if it does not exist.
        options: what to make.
        progress: told what is being done.

    Raises:
        UsageError: an attack or option makes no sense, the images are too few or do not fit the model, or ``out`` holds
            the zoo of another model, seed or data set.
        TargetError: the model cannot be opened.
    """
    options = options or ZooOptions()
    thefts = planned(options.attacks, options.seed)
    progress("opening the victim", 0.0)
    target = open_victim(model, data, seed=options.seed, device=options.device)
    images = divided(model, target, options)
    owner = _kept(images.owner, out / "owner.npz")
    surrogates, failures = _stolen(
        thefts, replace(target, data=images.thief, digest=images.thief.digest), out, progress
    )
    labels, _ = top1(target.model, images.test.pixels)
    return Zoo(
        victim=target,
        owner=owner,
        victim_accuracy=float((labels == images.test.labels).mean()),
        surrogates=surrogates,
        independents=tuple(_independents(target, images, labels, out / "cache", options, progress)),
        failures=failures,
    )


def planned(named: Sequence[str], seed: int) -> list[Theft]:
    """Spell out which surrogates are named, each once.

    Raises:
        PluginError: there is no such attack.
        UsageError: an option is wrong, or nothing is named.
    """
    specs = spelt_out(named, {QUICK: QUICK_ATTACKS, ALL: ALL_ATTACKS})
    thefts = [theft for spec in specs for theft in _with_seeds(spec, seed)]
    return list({theft.name: theft for theft in thefts}.values())


def _with_seeds(text: str, seed: int) -> list[Theft]:
    spec, _, count = text.rpartition("@")
    if not spec or not count.isdigit():
        spec, count = text, "1"
    if int(count) < 1:
        raise UsageError(f"{text!r}: expected @1 or more")
    attacks = from_specs(spec)
    return [Theft(spec, attacks, seed + i) for i in range(int(count))]


def kind_of(attacks: Sequence[Attack]) -> str:
    """Say what a chain of attacks makes: the kind of what is more than a copy in it.

    A chain around CSRP in which something is trained is ``csrp+ft``.
    """
    kinds = [_kind(attack) for attack in attacks]
    if "csrp" in kinds and any(attack.name == "fine-tune" for attack in attacks):
        return "csrp+ft"
    return next((kind for kind in kinds if kind != COPY), COPY)


def _kind(attack: Attack) -> str:
    options = attack.options
    if attack.name == "extract":
        if options["answers"] == "probabilities":
            return "extraction-probabilities"
        return "extraction-same" if options["architecture"] == "same" and not options["start"] else "extraction-other"
    if attack.name == "csrp" and options["mode"] == "data-limited":
        return "csrp+ft"
    return _KINDS.get(attack.name, COPY)


def divide(images: Labelled, seed: int) -> Divided:
    """Divide images at random: a tenth (at most 2,000) for tests, the others in halves for owner and thief.

    Raises:
        DataError: they are too few.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(images))
    test, rest = np.split(order, [_test_count(images)])
    owner, thief = np.array_split(rest, 2)
    return Divided(*(images.take(np.sort(part)) for part in (owner, thief, test)))


def _test_count(images: Labelled) -> int:
    count = min(MAX_TEST, int(TEST_SHARE * len(images)))
    if count < 10:
        raise DataError(f"{images.name} holds {len(images)} images: expected at least {10 / TEST_SHARE:.0f}")
    return count


def divided(model: str, target: OpenVictim, options: ZooOptions) -> Divided:
    """Divide the images of an opened victim, or those that were given as the thief's.

    Raises:
        DataError: they are too few.
    """
    if options.thief is None:
        return divide(target.data, options.seed)
    size = (target.model.spec.height, target.model.spec.width)
    theirs = labelled_images.load(options.thief, size=(size[0], size[1]) if size[0] and size[1] else None)
    theirs = open_victim(model, theirs, seed=options.seed, device=options.device).data
    order = np.random.default_rng([options.seed, 0]).permutation(len(theirs))
    test, rest = np.split(order, [_test_count(theirs)])
    return Divided(target.data, theirs.take(np.sort(rest)), theirs.take(np.sort(test)))


def _kept(images: Labelled, path: Path) -> Path:
    """Write images to an ``.npz``, unless they are there.

    Raises:
        UsageError: other images are.
    """
    if path.exists():
        if labelled_images.load(str(path)).digest != images.digest:
            raise UsageError(
                f"{path.parent} holds the zoo of another data set or seed: name another --out, or remove it"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    np.savez(partial, images=images.pixels, labels=images.labels, classes=np.array(images.classes or (), str))
    partial.replace(path)
    return path


def _stolen(
    thefts: Sequence[Theft], target: OpenVictim, out: Path, progress: Progress
) -> tuple[tuple[Surrogate, ...], dict[str, str]]:
    """Make the surrogates that are missing, one after another."""
    made, failures = [], {}
    for i, theft in enumerate(thefts):
        title = f"surrogate {i + 1} of {len(thefts)}: {theft.name}"
        progress(title, i / len(thefts))
        where = out / "surrogates" / theft.name
        try:
            told = told_under(title, i, len(thefts), progress)
            provenance = obtained(theft.attacks, target, where, seed=theft.seed, progress=told)
            made.append(Surrogate(theft.name, theft.kind, where, provenance))
        except FpAuditError as error:
            if where.exists():
                raise
            failures[theft.name] = str(error)
            progress(f"{theft.name} is left out: {error}", i / len(thefts))
    return tuple(made), failures


def independent_specs(
    count: int,
    images: Labelled,
    classes: int,
    *,
    seed: int,
    own: bool,
    trained_on: Sequence[str] = TRAININGS,
) -> dict[str, list[NetworkSpec]]:
    """Plan independents, and divide them evenly among training sets.

    In turn, starting with the next set after every round: each set has its share of all architectures and optimisers.
    """
    specs = networks.plan(count, images, classes, seed=seed, purpose="evaluation", own=own)
    sets = len(trained_on)
    return {
        training: [spec for i, spec in enumerate(specs) if (i + i // sets) % sets == k]
        for k, training in enumerate(trained_on)
    }


def training_sets(images: Divided, seed: int) -> dict[str, Labelled]:
    """Return what independents are trained on: the victim's own images, half of them, none of them."""
    owner, thief = images.owner, images.thief
    rng = np.random.default_rng([seed, 1])
    first, second = (part.take(np.sort(rng.permutation(len(part))[: len(part) // 2])) for part in (owner, thief))
    half = replace(
        owner,
        pixels=np.concatenate([first.pixels, second.pixels]),
        labels=np.concatenate([first.labels, second.labels]),
    )
    return {"same": owner, "half": half, "none": thief}


def _independents(
    target: OpenVictim, images: Divided, victim_labels: np.ndarray, cache: Path, options: ZooOptions, progress: Progress
) -> Iterator[Independent]:
    """Train the independents that are missing and measure each on the test images."""
    architecture = registration.own_architecture(target.artifact, target.opening, target.model.spec, target.data)
    classes = count_outputs(target.model)
    own = architecture is not None
    sets = training_sets(images, options.seed)
    plan = independent_specs(
        options.independents, images.owner, classes, seed=options.seed, own=own, trained_on=options.trained_on
    )
    for training, specs in plan.items():
        for network in networks.train(
            specs,
            sets[training],
            cache=cache,
            device=pick_device(options.device),
            architecture=architecture,
            progress=progress,
            what=f"training independents on {training} of the victim's images",
        ):
            labels, _ = top1(network, images.test.pixels)
            yield Independent(
                name=f"{training}/{network.name}",
                training=training,
                network=network,
                accuracy=float((labels == images.test.labels).mean()),
                agreement=float((labels == victim_labels).mean()),
            )
