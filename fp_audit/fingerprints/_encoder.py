"""A small encoder trained by supervised contrast: embeddings of one class point the same way, others elsewhere.

It is trained by torch and evaluated by numpy: whoever only compares needs its weights and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit.engine import Progress, silent
from fp_audit.metrics import Floats

if TYPE_CHECKING:
    import torch

Weights: TypeAlias = Mapping[str, NDArray[np.float32]]
"""``weight0``, ``bias0``, ``weight1``, ... of the linear layers, input side first; weights are out x in."""

LAYERS = (50, 20, 20)
"""Widths after the input: two hidden layers with ReLU, and the embedding."""


def contrastive_loss(embeddings: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Supervised contrastive loss of a batch (Khosla et al., NeurIPS 2020; equation 7 of the UAP paper), a scalar.

    ``sum_i -1/|P(i)| sum_{p in P(i)} log(exp(s_ip) / sum_{a != i} exp(s_ia))`` with s the cosine over ``temperature``
    and P(i) the others of i's label. An item that is alone with its label adds nothing.

    Args:
        embeddings: N x E.
        labels: N.
        temperature: tau.
    """
    import torch
    from torch.nn.functional import normalize

    unit = normalize(embeddings, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similar = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    log_share = (similar - similar.logsumexp(dim=1, keepdim=True)).masked_fill(itself, 0.0)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    return -((log_share * positive).sum(dim=1) / positive.sum(dim=1).clamp_min(1)).sum()


def train_encoder(
    fingerprints: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    temperature: float,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    progress: Progress = silent,
) -> Weights:
    """Train an encoder on labelled fingerprints with ``contrastive_loss`` and Adam, on the CPU.

    Args:
        fingerprints: N x D.
        labels: N.
        temperature: of the loss.
        epochs: passes over the fingerprints.
        batch: fingerprints in a step.
        learning_rate: Adam's.
        seed: the first weights and the order follow from it.
        progress: told the share of epochs done.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _untrained(fingerprints.shape[1])
    order = torch.Generator().manual_seed(seed)
    inputs, wanted = torch.from_numpy(fingerprints), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        progress("training the encoder", epoch / epochs)
        for index in torch.split(torch.randperm(len(inputs), generator=order), batch):
            loss = contrastive_loss(encoder(inputs[index]), wanted[index], temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return _arrays(encoder)


def _untrained(width: int) -> torch.nn.Sequential:
    """Build the encoder for inputs of a width; its weights are drawn from torch's global generator."""
    from torch import nn

    first, second, last = LAYERS
    return nn.Sequential(
        nn.Linear(width, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, last)
    )


def _arrays(encoder: torch.nn.Sequential) -> Weights:
    """Read the weights of ``_untrained``."""
    values = list(encoder.parameters())
    names = [f"{kind}{i}" for i in range(len(values) // 2) for kind in ("weight", "bias")]
    return {name: value.detach().numpy() for name, value in zip(names, values, strict=True)}


def encode(weights: Weights, fingerprints: Floats) -> NDArray[np.float64]:
    """Embed N x D fingerprints, N x E."""
    values = np.asarray(fingerprints, np.float64)
    last = len(weights) // 2 - 1
    for i in range(last + 1):
        values = values @ weights[f"weight{i}"].T.astype(np.float64) + weights[f"bias{i}"]
        if i < last:
            values = np.maximum(values, 0.0)
    return values


def cosines(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Cosine between row i of ``a`` and of ``b`` (both N x E), N. A zero row counts as 0."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny))
