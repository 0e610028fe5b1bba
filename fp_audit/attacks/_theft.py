"""What extractions share: which images a thief shows, and what is learned from the victim's answers."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from fp_audit.attacks._base import require
from fp_audit.data import Labelled
from fp_audit.engine import Progress, answered, silent, top1
from fp_audit.errors import UnsupportedModel
from fp_audit.model import BlackBox, WhiteBox, as_images, as_probabilities
from fp_audit.types import OutputKind, Outputs, Pixels

Answers: TypeAlias = Literal["labels", "probabilities"]
"""What is learned from an answer: its top-1 label, or its probabilities as soft labels."""


def check_budget(queries: int, least: int = 2) -> int:
    """Return a number of images to ask for, 0 for all, if it makes sense.

    Raises:
        UsageError: it is less than ``least``: of a single image no network with BatchNorm can learn.
    """
    require(queries == 0 or queries >= least, "queries", queries, f"{least} images or more, or 0 for all")
    return queries


def drawn(data: Labelled, budget: int, seed: int) -> Labelled:
    """Draw ``budget`` images at random, all of them for 0; they keep their order."""
    order = np.random.default_rng(seed).permutation(len(data))
    return data.take(np.sort(order[: budget or len(data)]))


def ask(
    model: BlackBox, pixels: Pixels, answers: Answers, temperature: float = 1.0, progress: Progress = silent
) -> tuple[np.ndarray, int]:
    """Ask for N x C x H x W images, each of them once.

    Returns:
        Targets for training: N labels, or N x K probabilities (see ``tempered``), and the number of classes.
    """
    if answers == "labels":
        return top1(model, pixels, progress)
    shown = answered(model, pixels, progress)
    targets = np.concatenate([tempered(answers, model.output, temperature) for answers in shown])
    return targets, targets.shape[1]


def tempered(answers: Outputs, kind: OutputKind, temperature: float) -> Outputs:
    """Turn answers into soft labels: p^(1/T), made to sum to one (Lukas et al., eq. 11).

    With logits z that is softmax(z / T). Hidden probabilities of a top-k answer stay 0, and a lone label stays one-hot.

    Args:
        answers: N x K.
        kind: what they are.
        temperature: T; more than 1 makes them softer.
    """
    if kind == "logits":
        return as_probabilities(answers / np.float32(temperature), kind)
    raised = answers ** np.float32(1.0 / temperature)
    return np.asarray(raised / raised.sum(axis=1, keepdims=True), np.float32)


def last_hidden(white: WhiteBox, pixels: Pixels) -> str:
    """Name the last layer of a network whose output is not of the shape of the logits.

    Raises:
        UnsupportedModel: there is none.
    """
    images = as_images(pixels[:1].repeat(2, axis=0))
    logits = white.predict(images).shape
    for layer in reversed(white.layers()):
        shape = white.activations(images, layer).shape
        if shape[0] == logits[0] and shape != logits:
            return layer
    raise UnsupportedModel("the network has no hidden layer")
