"""Which way trains an ensemble of small networks fastest, and are its members as good?

Run ``python -m benchmarks.ensembles --data DIR``; the folder holds ``train.parquet`` and ``test.parquet`` of MNIST.
The same independents (true labels) and surrogates (a victim's labels) are trained three times from the same seeds:
one after another in this process with all cores, as ``networks.train`` does (CPU: a process for each core; CUDA:
those of one group at once), and all of them at once with ``engine.fit_many``. Compare only
what was printed by one run, on a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from fp_audit import networks
from fp_audit.data import Labelled, load
from fp_audit.engine import cores, fit, fit_many, pick_device, predict_network
from fp_audit.families import build
from fp_audit.model import as_images

PURPOSES = ("independent", "surrogate")


def main() -> None:
    """Print the table."""
    options = arguments()
    torch.set_num_threads(cores())
    networks.SEEN_IMAGES = options.seen
    data = load(str(options.data / "train.parquet")).take(np.arange(options.images))
    test = load(str(options.data / "test.parquet")).take(np.arange(options.test))
    taught = {"independent": data, "surrogate": replace(data, labels=answers_of_a_victim(data, options.device))}
    specs = {
        purpose: networks.alike(options.count, data, 10, seed=0, purpose=purpose, own=False) for purpose in PURPOSES
    }
    recipe = specs["surrogate"][0].recipe
    print(
        f"{options.count} independents and {options.count} surrogates, {len(data)} images of {data.pixels.shape[1:]}, "
        f"{recipe.epochs:g} epochs, {options.device}, {cores()} cores, torch {torch.__version__}"
    )
    print(f"{'way':24} {'seconds':>8} {'ratio':>6} {'independents':>16} {'surrogates':>16}")
    slowest = None
    for name, way in {"one after another": alone, "networks.train": as_a_user_does, "fit_many": at_once}.items():
        start = time.perf_counter()
        trained = way(specs, taught, options.device)
        seconds = time.perf_counter() - start
        slowest = slowest or seconds
        reached = [show(accuracies(trained[purpose], test, options.device)) for purpose in PURPOSES]
        print(f"{name:24} {seconds:8.1f} {seconds / slowest:6.2f} {reached[0]:>16} {reached[1]:>16}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--count", type=int, default=18, help="independents, and as many surrogates")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--seen", type=int, default=networks.SEEN_IMAGES, help="images shown to a network in training")
    parser.add_argument("--test", type=int, default=2_000, help="images to measure accuracy on")
    parser.add_argument("--device", default="auto", type=pick_device, help="auto, cpu or cuda")
    return parser.parse_args()


def answers_of_a_victim(data: Labelled, device: str):
    """Label the images by one more network, trained on them."""
    (spec,) = networks.alike(1, data, 10, seed=0, purpose="victim", own=False)
    (victim,) = alone({"victim": [spec]}, {"victim": data}, device)["victim"]
    return predict_network(victim, as_images(data.pixels), device=device).argmax(axis=1)


def untrained(spec: networks.NetworkSpec):
    """Draw a network's first weights as ``networks`` does."""
    torch.manual_seed(spec.seed)
    return build(spec.family, spec.width, spec.classes, spec.shape, max_side=networks.MAX_SIDE)


def alone(specs, taught, device):
    """Train one after another with ``fit``."""
    trained = {purpose: [untrained(spec) for spec in group] for purpose, group in specs.items()}
    for purpose, group in specs.items():
        data = taught[purpose]
        for spec, network in zip(group, trained[purpose], strict=True):
            fit(network, data.pixels, data.labels, spec.recipe, seed=spec.seed, device=device)
    return trained


def as_a_user_does(specs, taught, device):
    """Train with ``networks.train`` and an empty cache."""
    with TemporaryDirectory() as cache:
        return {
            purpose: [
                network.module for network in networks.train(group, taught[purpose], cache=Path(cache), device=device)
            ]
            for purpose, group in specs.items()
        }


def at_once(specs, taught, device):
    """Train all networks of both kinds together with ``fit_many``."""
    drawn = [spec for purpose in PURPOSES for spec in specs[purpose]]
    labels = np.concatenate([np.tile(taught[purpose].labels, (len(specs[purpose]), 1)) for purpose in PURPOSES])
    made = [untrained(spec) for spec in drawn]
    pixels = taught["surrogate"].pixels
    fit_many(made, pixels, labels, drawn[0].recipe, seeds=[spec.seed for spec in drawn], device=device)
    half = len(specs["independent"])
    return {"independent": made[:half], "surrogate": made[half:]}


def accuracies(trained, test: Labelled, device: str):
    images = as_images(test.pixels)
    return [(predict_network(each, images, device=device).argmax(axis=1) == test.labels).mean() for each in trained]


def show(reached) -> str:
    return f"{np.mean(reached):.2%} +- {np.std(reached):.2%}"


if __name__ == "__main__":
    main()
