"""Telling queries from ordinary images."""

import numpy as np
import pytest

from fp_audit.evasion import detectability, evasion
from fp_audit.types import Fingerprint


def images(count, seed, low=0, high=256):
    return np.random.default_rng(seed).integers(low, high, (count, 1, 12, 12)).astype(np.uint8)


def test_what_is_alike_cannot_be_told_and_what_differs_can():
    ordinary = images(60, 0)
    assert detectability(images(60, 1), ordinary, seed=0) == pytest.approx(0.5, abs=0.2)
    assert detectability(images(60, 1, high=80), ordinary, seed=0) > 0.99


def test_methods_with_the_same_queries_share_a_detector_and_others_are_left_out():
    queries = images(30, 1, high=80)
    made = {
        "a": Fingerprint("a", {}, {"queries": queries}),
        "b": Fingerprint("b", {}, {"queries": queries.copy()}),
        "few": Fingerprint("few", {}, {"queries": queries[:19]}),
        "other-size": Fingerprint("other-size", {}, {"queries": images(30, 1)[:, :, :6]}),
        "none": Fingerprint("none", {}, {}),
    }
    told = []
    found = evasion(made, images(60, 0), seed=0, progress=lambda what, done: told.append(done))
    assert set(found) == {"a", "b"}
    assert found["a"] == found["b"]
    assert told[-1] == 1.0
    assert found == evasion(made, images(60, 0), seed=0)
