"""DeepJudge's Algorithm 2 for all (seed, neuron) pairs at once, against a loop that treats one pair at a time.

Run ``python -m benchmarks.neurons --data mnist/train.parquet [--device cuda]``. A LeNet-5 is trained on the spot; then
for each of its two convolutional layers 100 seeds x all channels are ascended. Both ways start from the same images,
follow the same rule (Adam, box, thresholds, giving up) and run the network only as far as the layer. The loop takes a
random subset of the pairs, half of them before and half after the batch, and its time is scaled up. It runs on one
thread: a single image does not profit from more, and on a busy machine suffers from them.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.zoo import lenet5
from fp_audit import data
from fp_audit.engine import Recipe, fit, pick_device
from fp_audit.fingerprints._neurons import GAIN, PATIENCE, ascend, pairs, responses, responses_of
from fp_audit.fingerprints.deepjudge import most_certain
from fp_audit.model import WhiteBox, as_images
from fp_audit.preprocess import NAMED
from fp_audit.types import InputSpec

M, STEPS, LEARNING_RATE, IN_FLIGHT = 3.0, 1000, 0.1, 256
SAMPLE = 5000
LAYERS = {"1": "convolution 1", "4": "convolution 2"}


class Job(NamedTuple):
    """All pairs of one layer."""

    layer: str
    images: Tensor
    neurons: Tensor
    thresholds: Tensor


def main() -> None:
    """Print the figures."""
    options = arguments()
    device = pick_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    labelled = data.load(options.data)
    white = trained(labelled, device, options.epochs)
    rng = np.random.default_rng(0)
    sample = labelled.take(rng.permutation(len(labelled))[:SAMPLE])
    answers = white.predict(as_images(sample.pixels))
    right = (answers.argmax(axis=1) == sample.labels).mean()
    seeds = sample.take(most_certain(answers, "logits", sample.labels)[: options.seeds])
    print(f"LeNet-5, {right:.1%} of {SAMPLE} images right; {device}, {torch.get_num_threads()} threads")
    print(f"m = {M}, at most {STEPS} steps, Adam {LEARNING_RATE}, {IN_FLIGHT} pairs in flight")
    for layer, title in LAYERS.items():
        report(title, white, job(white, layer, sample, seeds, device), rng, options.loop)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="MNIST: parquet, folder or .npz")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--loop", type=int, default=30, help="pairs of the loop that are measured")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--epochs", type=float, default=1.0)
    return parser.parse_args()


def trained(labelled: data.Labelled, device: str, epochs: float) -> WhiteBox:
    """Train a LeNet-5."""
    from fp_audit_adapters._torch import TorchModel

    torch.manual_seed(0)
    network = lenet5()
    recipe = Recipe(epochs=epochs, optimizer="adam", learning_rate=0.003)
    fit(network, labelled.pixels, labelled.labels, recipe, seed=0, device=device)
    spec = InputSpec(*labelled.pixels.shape[1:])
    return TorchModel(network, preprocess=NAMED["0..1"], spec=spec, classes=None, adapter="", recipe={}, device=device)


def job(white: WhiteBox, layer: str, sample: data.Labelled, seeds: data.Labelled, device: str) -> Job:
    """Pair every seed with every neuron that ever responds."""
    highest = responses_of(white, sample.pixels, layer).max(axis=0)
    live = np.flatnonzero(highest > 0)
    neurons, turn = pairs(live, len(seeds), len(seeds) * len(live))
    images = torch.from_numpy(as_images(seeds.pixels[turn])).to(device)
    thresholds = torch.from_numpy(np.float32(M) * highest[neurons]).to(device)
    return Job(layer, images, torch.from_numpy(neurons).to(device), thresholds)


def report(title: str, white: WhiteBox, work: Job, rng: np.random.Generator, count: int) -> None:
    """Time both ways and print them."""
    chosen = rng.permutation(len(work.images))[:count]
    first, second = np.array_split(chosen, 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    before, reached_before = timed(lambda: one_by_one(white, work, first))
    torch.set_num_threads(threads)
    batch, found = timed(lambda: at_once(white, work))
    torch.set_num_threads(1)
    after, reached_after = timed(lambda: one_by_one(white, work, second))
    torch.set_num_threads(threads)
    loop, reached = before + after, [*reached_before, *reached_after]
    scaled = loop / len(chosen) * len(work.images)
    same = np.mean(found.done.cpu().numpy()[chosen] == reached)
    print(f"{title}: {len(work.images)} pairs, {found.steps.float().mean():.0f} steps each on average")
    print(f"  at once     {batch:8.1f} s, {found.done.float().mean():.1%} exceed {M} x the largest response")
    measured = f"scaled up from {loop:.1f} s for {len(chosen)} pairs at random"
    print(f"  one by one  {scaled:8.1f} s ({measured}), {np.mean(reached):.1%}")
    print(f"  ratio {scaled / batch:.1f}; of the {len(chosen)} pairs {same:.0%} end alike")


def at_once(white: WhiteBox, work: Job):
    """Ascend all pairs together."""
    return ascend(
        white,
        work.layer,
        work.images,
        work.neurons,
        work.thresholds,
        steps=STEPS,
        learning_rate=LEARNING_RATE,
        in_flight=IN_FLIGHT,
    )


def one_by_one(white: WhiteBox, work: Job, chosen: np.ndarray) -> list[bool]:
    """Ascend the chosen pairs as a script would; return which of them exceeded their threshold."""
    reached = []
    for n in chosen:
        x = work.images[n : n + 1].clone().requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=LEARNING_RATE)
        threshold, best, idle = work.thresholds[n].item(), -np.inf, 0
        for step in range(STEPS + 1):
            response = responses(white.activate(x, work.layer))[0, work.neurons[n]]
            now = response.item()
            best, idle = (now, 0) if now > best + GAIN * threshold else (best, idle + 1)
            if now > threshold or idle >= PATIENCE or step == STEPS:
                break
            (x.grad,) = torch.autograd.grad(-response, x)
            optimizer.step()
            with torch.no_grad():
                x.clamp_(0, 1)
        reached.append(now > threshold)
    return reached


def timed(work):
    """Run and return seconds and result."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
