"""Do conferrable examples tell surrogates from independents that took no part in making them?

Run ``python -m benchmarks.conferrable --data DIR --out DIR`` where the data folder holds ``train.parquet`` and
``test.parquet`` of MNIST. A LeNet-5 is trained on the owner's images, ``cem`` makes its fingerprint with ``--members``
surrogates and as many independents, and further networks of the same architecture and other seeds are asked:
surrogates taught by the victim and independents, both on the owner's images (as in the paper, except that the seeds
are among them) and on a thief's, which no other network has seen. The claim to check, at epsilon .025: CAEAcc >= .95 on
surrogates, <= .75 on independents. Networks are kept under ``--out``: another epsilon or other weights need no
training.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.zoo import lenet5
from fp_audit import networks
from fp_audit.data import Labelled, load
from fp_audit.engine import Recipe, fit
from fp_audit.errors import NotApplicable
from fp_audit.fingerprints.cem import Cem
from fp_audit.fresh import Architecture
from fp_audit.model import BlackBox, LoadOptions, WhiteBox, as_images
from fp_audit.preprocess import NAMED
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import adapter, locate_one
from fp_audit.workshop import Workshop


def main() -> None:
    """Print the tables."""
    options = arguments()
    networks.SEEN_IMAGES = options.seen
    options.out.mkdir(parents=True, exist_ok=True)
    images = load(str(options.data / "train.parquet"))
    owner, thief = images.take(np.arange(options.images)), images.take(np.arange(options.images, 2 * options.images))
    test = load(str(options.data / "test.parquet"))
    victim, architecture = make_victim(options, owner)
    shop = Workshop(options.device, options.out / "networks", Told(), architecture)
    groups = held_out(shop, victim, {"owner's": owner, "thief's": thief}, options.held_out)
    print(f"victim: {accuracy(victim, test):.2%} on test images, {accuracy(victim, owner):.2%} on its own")
    for name, group in groups.items():
        right = np.mean([accuracy(network, test) for network in group])
        print(f"{len(group)} {name}: {right:.2%} on test images")
    for epsilon in options.epsilon:
        show(epsilon, Subject.of_model(victim, victim), owner, shop, groups, options)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--out", type=Path, required=True, help="where the networks are kept")
    parser.add_argument("--members", type=int, default=18, help="surrogates, and independents, that make the queries")
    parser.add_argument("--held-out", type=int, default=3, help="networks of a kind that are asked")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.025], help="largest change of a pixel")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=20_000, help="the owner's, and as many for the thief")
    parser.add_argument("--seen", type=int, default=networks.SEEN_IMAGES, help="images shown to a network in training")
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=NUMBER", help="further options of cem")
    return parser.parse_args()


class Told:
    """Says what is being done, now and then."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, what: str, done: float) -> None:
        if time.monotonic() - self._last > 20:
            self._last = time.monotonic()
            print(f"    {what} {done:.0%}", file=sys.stderr, flush=True)


def make_victim(options: argparse.Namespace, owner: Labelled) -> tuple[WhiteBox, Architecture]:
    """Train the victim, or find it again; it goes through an ONNX file like any other."""
    path = options.out / f"victim-{options.images}-{options.seen}.onnx"
    if not path.exists():
        torch.manual_seed(11)
        network = lenet5()
        recipe = Recipe(epochs=options.seen / len(owner), optimizer="adam", learning_rate=0.003, shift=0.05)
        fit(network, owner.pixels, owner.labels, recipe, seed=11)
        axes = {"images": {0: "n"}, "logits": {0: "n"}}
        named = {"input_names": ["images"], "output_names": ["logits"], "dynamic_axes": axes}
        torch.onnx.export(network, (torch.zeros(2, 1, 28, 28),), str(path), dynamo=False, **named)
    artifact = locate_one(str(path), SourceOptions()).artifact
    opening = LoadOptions(device=options.device, preprocess=NAMED["0..1"])
    return adapter("onnx").load_white(artifact, opening), Architecture("onnx", artifact, opening)


def held_out(shop: Workshop, victim: BlackBox, data: dict[str, Labelled], count: int) -> dict[str, list[BlackBox]]:
    """Train the networks to be asked; ``cem`` draws its own seeds, and trains on fewer of the owner's images."""
    groups = {}
    for seed, (whose, images) in enumerate(data.items(), start=1000):
        groups[f"surrogates on the {whose} images"] = shop.surrogates(victim, images, count, seed=seed, alike=True)
        groups[f"independents on the {whose} images"] = shop.independents(images, count, seed=seed, alike=True)
    return groups


def accuracy(model: BlackBox, data: Labelled) -> float:
    """Share of right answers."""
    return float((model.predict(as_images(data.pixels)).argmax(axis=1) == data.labels).mean())


def show(
    epsilon: float,
    victim: Subject,
    owner: Labelled,
    shop: Workshop,
    groups: dict[str, list[BlackBox]],
    options: argparse.Namespace,
) -> None:
    """Make a fingerprint and print what each held-out network says."""
    chosen = {name: float(text) for name, text in (pair.split("=") for pair in options.set)}
    whole = {
        name: int(value) if name in ("queries", "steps", "early", "batch") else value for name, value in chosen.items()
    }
    method = Cem(surrogates=options.members, independents=options.members, epsilon=epsilon, **whole)
    start = time.monotonic()
    print(f"\n{method}")
    try:
        fingerprint = method.generate(victim, owner, seed=0, workshop=shop)
    except NotApplicable as reason:
        print(f"{reason} ({time.monotonic() - start:.0f} s)", flush=True)
        return
    print(f"{time.monotonic() - start:.0f} s; {dict(fingerprint.facts)}")
    for name, group in groups.items():
        scores = [method.compare(fingerprint, Subject.of_model(network)) for network in group]
        judged = [method.judge(fingerprint, score, None) for score in scores]
        calls = sum(verdict["surrogate"] for verdict in judged)
        values = " ".join(f"{score.value:.2f}" for score in scores)
        print(f"CAEAcc of {name:34} {values}; {calls} of {len(group)} over {judged[0]['threshold']:.2f}", flush=True)


if __name__ == "__main__":
    main()
