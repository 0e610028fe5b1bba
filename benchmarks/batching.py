"""IPGuard, CW, ZEST and CEM with everything in flight, against one image at a time.

Run ``python -m benchmarks.batching --data TRAIN.parquet`` (MNIST). The loop is the same code with one item in flight
(for ZEST: one masked image a call), so that both take the same steps and stop by the same rule; it is timed on the
first ``--items`` and scaled up. Both ways take turns in one process. ``benchmarks.neurons`` does the same for Alg. 2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.zoo import lenet5
from fp_audit import data
from fp_audit.descent import Adam, ball, search
from fp_audit.engine import Recipe, fit, pick_device
from fp_audit.fingerprints._adversarial import cw, misclassification
from fp_audit.fingerprints._conferrable import Sides, ensemble
from fp_audit.fingerprints._segments import patches
from fp_audit.fingerprints.cem import Cem
from fp_audit.fingerprints.ipguard import boundary_loss
from fp_audit.fingerprints.zest import draw_masks, local_weights
from fp_audit.networks import Network
from fp_audit.types import InputSpec

REPEATS = 3


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="MNIST's train.parquet")
    parser.add_argument("--images", type=int, default=128, help="in flight")
    parser.add_argument("--items", type=int, default=8, help="timed one at a time")
    parser.add_argument("--members", type=int, default=18, help="networks on each side of CEM")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    device = pick_device(given.device)
    images = data.load(str(given.data))
    module = lenet5()
    fit(
        module, images.pixels[:20_000], images.labels[:20_000], Recipe(3, optimizer="adam", learning_rate=0.003), seed=1
    )
    module.to(device)
    shown, labels = images.pixels[-given.images :], images.labels[-given.images :]
    x, truth = torch.from_numpy(shown).to(device).float() / 255, torch.from_numpy(labels).to(device)
    print(f"{given.images} items, the loop timed on {given.items} of them, {device}")
    print(f"{'':10}{'batched s':>10}{'loop s':>10}{'ratio':>8}")
    jobs = {
        "IPGuard": ipguard(module, x),
        "CW": carlini_wagner(module, x, truth),
        "ZEST": zest(module, shown, device),
        "CEM": cem(module, x, given.members, device),
    }
    for name, job in jobs.items():
        report(name, job, given.images, given.items)


Job = Callable[[int, int], None]
"""Works on the first ``count`` items with ``in_flight`` at once."""


def report(name: str, job: Job, count: int, items: int) -> None:
    """Time both ways in turns and print the medians."""
    job(2, 2)
    batched, loop = [], []
    for _ in range(REPEATS):
        batched.append(timed(job, count, count))
        loop.append(timed(job, items, 1) * count / items)
    ratio = statistics.median(a / b for a, b in zip(loop, batched, strict=True))
    print(f"{name:10}{statistics.median(batched):10.2f}{statistics.median(loop):10.2f}{ratio:8.1f}", flush=True)


def timed(job: Job, count: int, in_flight: int) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    job(count, in_flight)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ipguard(module: torch.nn.Module, x: torch.Tensor) -> Job:
    """Push images over the boundary, each until its loss is zero, at most 200 steps."""
    with torch.no_grad():
        logits = module(x)
    source, goal = logits.argmax(dim=1), logits.argmin(dim=1)

    def objective(moved: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = boundary_loss(module(moved), source[index], goal[index], 5.0)
        return loss, loss <= 0

    def job(count: int, in_flight: int) -> None:
        search(x[:count], objective, Adam(0.01), steps=200, in_flight=in_flight)

    return job


def carlini_wagner(module: torch.nn.Module, x: torch.Tensor, truth: torch.Tensor) -> Job:
    """Run 100 steps of CW on every image."""
    loss = misclassification(module, truth)

    def job(count: int, in_flight: int) -> None:
        cw(x[:count], loss, 5.0, steps=100, learning_rate=0.01, in_flight=in_flight)

    return job


def zest(module: torch.nn.Module, shown: np.ndarray, device: str) -> Job:
    """Fit the answers to 100 masked copies of every image."""
    segments = patches(shown, 4)
    masks = draw_masks(segments, 100, 0.5, np.random.default_rng(0))
    network = Network("lenet", module=module, spec=InputSpec(1, 28, 28), classes=None, white=None, device=device)

    class OneByOne:
        output = "logits"

        def predict(self, images: np.ndarray) -> np.ndarray:
            return np.concatenate([network.predict(images[i : i + 1]) for i in range(len(images))])

    def job(count: int, in_flight: int) -> None:
        local_weights(network if in_flight > 1 else OneByOne(), shown[:count], segments[:count], masks[:count])

    return job


def cem(module: torch.nn.Module, x: torch.Tensor, members: int, device: str) -> Job:
    """Take 5 steps of equation 6 against two untrained ensembles: the time does not depend on their weights."""
    sides = [ensemble([lenet5().to(device).eval() for _ in range(members)], together=device != "cpu") for _ in range(2)]
    method = Cem(early=False)

    def job(count: int, in_flight: int) -> None:
        objective = method._objective(Sides(module, *sides), x[:count], 0)
        search(x[:count], objective, Adam(5e-4), steps=5, project=ball(x[:count], 0.025), in_flight=in_flight)

    return job


if __name__ == "__main__":
    main()
