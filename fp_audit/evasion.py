"""Whether a thief's API could tell a fingerprint's queries from ordinary images, and then answer them otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fp_audit.engine import Progress, Recipe, fit, predict_network, silent
from fp_audit.metrics import auc
from fp_audit.model import as_images
from fp_audit.types import Fingerprint, Pixels

STEPS = 200
"""Optimiser steps of each detector."""

LEAST = 20
"""Queries below which a detector would be judged on too few."""


def evasion(
    fingerprints: Mapping[str, Fingerprint],
    benign: Pixels,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, float]:
    """Train a detector of each fingerprint's queries and return its AUC: .5 cannot tell, 1 tells all.

    Source: Hitaj, Hitaj, Mancini, "Evasion Attacks Against Watermarking Techniques found in MLaaS Systems" (SDS 2019):
    a binary classifier of queries and ordinary images. Differences: a small LeNet, trained on one half of the
    queries and as many ordinary images, judged on the other, and the other way round; the thief is given real
    queries to learn from, which he does not have, so that this is the most that he could achieve.

    Args:
        fingerprints: by method; those without images to show, with fewer than ``LEAST`` or of another size than
            ``benign`` are left out. Methods that share their queries share the detector.
        benign: N x C x H x W, uint8: ordinary images, at least as many as there are queries.
        seed: the detectors follow from it.
        device: where they are trained.
        progress: told the share that is done.
    """
    found: dict[str, float] = {}
    known: dict[bytes, float] = {}
    for done, (method, fingerprint) in enumerate(fingerprints.items()):
        progress("telling queries from ordinary images", done / len(fingerprints))
        queries = fingerprint.arrays.get("queries")
        if queries is None or len(queries) < LEAST or queries.shape[1:] != benign.shape[1:]:
            continue
        key = queries.tobytes()
        if key not in known:
            known[key] = detectability(queries, benign, seed=seed, device=device)
        found[method] = known[key]
    progress("telling queries from ordinary images", 1.0)
    return found


def detectability(queries: Pixels, benign: Pixels, *, seed: int, device: str = "cpu") -> float:
    """Return the AUC of detectors that tell queries from ordinary images, over two folds.

    Args:
        queries: N x C x H x W, uint8.
        benign: M x C x H x W, uint8.
        seed: which ordinary images are taken, how the halves are made, and the detectors' weights follow from it.
        device: where the detectors are trained.
    """
    rng = np.random.default_rng(seed)
    count = min(len(queries), len(benign))
    shown = queries[rng.permutation(len(queries))[:count]]
    ordinary = benign[rng.permutation(len(benign))[:count]]
    halves = [np.concatenate([shown[i::2], ordinary[i::2]]) for i in (0, 1)]
    labels = [np.repeat([1, 0], [len(shown[i::2]), len(ordinary[i::2])]) for i in (0, 1)]
    scores = [_detector(halves[1 - i], labels[1 - i], halves[i], seed, device) for i in (0, 1)]
    areas = [auc(score[truth == 1], score[truth == 0]) for score, truth in zip(scores, labels, strict=True)]
    return float(np.mean(areas))


def _detector(pixels: Pixels, labels: np.ndarray, judged: Pixels, seed: int, device: str) -> np.ndarray:
    """Train on images and labels; return how much each of the judged ones looks like a query."""
    import torch

    from fp_audit.families import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build("lenet", 16, 2, pixels.shape[1:])
    recipe = Recipe(epochs=STEPS * 32 / len(pixels), batch=32, optimizer="adam", learning_rate=0.002)
    fit(network, pixels, labels, recipe, seed=seed, device=device)
    answers = predict_network(network, as_images(judged), device=device)
    return np.asarray(answers[:, 1] - answers[:, 0])
