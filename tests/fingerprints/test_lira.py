"""Where surrogates agree with the victim and innocent models do not: oracle, and a victim whose mistakes are known."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from training import train_here

from fp_audit import networks
from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints._queries import candidates
from fp_audit.fingerprints.lira import Lira, agreement, telling
from fp_audit.subject import Subject
from fp_audit.types import InputSpec
from fp_audit.workshop import Workshop

SPEC = InputSpec(1, 8, 8)


class Judge:
    """Says true labels (the brightness of a corner), but for images whose mean is above ``edge``: there it says 1."""

    output, classes = "labels", None

    def __init__(self, edge=1.0):
        self.spec, self.edge = SPEC, edge

    def predict(self, images):
        bright = images.mean(axis=(1, 2, 3)) > self.edge
        return np.eye(2, dtype=np.float32)[np.where(bright, 1, images[:, 0, 0, 0] > 0.5).astype(int)]


class Shelf:
    """A workshop whose networks are finished."""

    def __init__(self, innocents, surrogates):
        self.found = {"independents": innocents, "surrogates": surrogates}

    def independents(self, data, count, *, seed, alike):
        return self.found["independents"][:count]

    def surrogates(self, victim, data, count, *, seed, alike):
        return self.found["surrogates"][:count]


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (600, 1, 8, 8)).astype(np.uint8)
    pixels[:300] += 120
    labels = rng.integers(0, 2, 600)
    pixels[:, :, :4, :4] = np.where(labels, 255, 0)[:, None, None, None]
    return Labelled(pixels, labels, classes=None, name="corners")


def test_as_its_formulas_query_by_query():
    rng = np.random.default_rng(0)
    pixels, own = rng.integers(0, 256, (50, 1, 8, 8)).astype(np.uint8), rng.integers(0, 2, 50)
    kinds = [Judge(edge) for edge in (0.4, 0.45, 0.5)], [Judge(edge) for edge in (0.3, 0.48, 0.52, 0.55)]
    weights, information = telling(*(agreement(kind, pixels, own) for kind in kinds))
    for n in range(len(pixels)):
        a = []
        for kind in kinds:
            said = [int(judge.predict(pixels[n : n + 1] / np.float32(255)).argmax()) for judge in kind]
            a.append((said.count(own[n]) + 0.5) / (len(kind) + 1))
        assert weights[n] == pytest.approx(log(a[1] / (1 - a[1])) - log(a[0] / (1 - a[0])))
        assert information[n] == pytest.approx((a[1] - a[0]) * weights[n])


def test_what_the_victim_gets_right_is_not_asked(data):
    """An innocent model that was trained on these images knows them too."""
    pixels, mistakes, rest = candidates(Judge(0.5), data, 40, np.random.default_rng(0))
    known = {image.tobytes(): label for image, label in zip(data.pixels, data.labels, strict=True)}
    said = Judge(0.5).predict(pixels / np.float32(255)).argmax(axis=1)
    truth = [known.get(image.tobytes()) for image in pixels]
    assert mistakes > 10
    assert all(label not in (None, own) for label, own in zip(truth[:mistakes], said[:mistakes], strict=True))
    assert not any(label is not None for label in truth[mistakes:])
    assert len(pixels) - mistakes > 40
    assert not {image.tobytes() for image in pixels} & {image.tobytes() for image in rest.pixels}


def test_only_what_tells_is_asked_and_weighs(data):
    """Of four surrogates all make the victim's mistakes, of four innocents none: all queries are bright images."""
    victim, method = Judge(0.55), Lira(queries=40, networks=4)
    fingerprint = method.generate(
        Subject.of_model(victim), data, seed=0, workshop=Shelf([Judge()] * 2, [Judge(0.55)] * 2)
    )
    queries = fingerprint.arrays["queries"] / np.float32(255)
    assert 0 < len(queries) <= 40
    assert (queries.mean(axis=(1, 2, 3)) > 0.55).all()
    found = [method.compare(fingerprint, Subject.of_model(model)).value for model in (victim, Judge(0.6), Judge())]
    assert found[0] == 1
    assert found[0] > found[1] > found[2] == 0


def test_mistakes_are_asked_before_blends(data):
    """Also those that tell less than some blends: estimates for thousands of blends are mostly luck."""
    victim, surrogates = Judge(0.5), [Judge(0.52), Judge(0.48)]
    fingerprint = Lira(queries=10, networks=4).generate(
        Subject.of_model(victim), data, seed=0, workshop=Shelf([Judge()] * 2, surrogates)
    )
    owned = {image.tobytes() for image in data.pixels}
    assert all(image.tobytes() in owned for image in fingerprint.arrays["queries"])
    assert fingerprint.facts["mistakes"] == 10


def test_nothing_to_ask_where_surrogates_answer_like_innocents(data):
    same = [Judge(), Judge(0.6)]
    with pytest.raises(NotApplicable, match="nowhere more often"):
        Lira(networks=4).generate(Subject.of_model(Judge(0.55)), data, seed=0, workshop=Shelf(same, same))


def test_with_real_networks(data, tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "SEEN_IMAGES", 6_000)
    monkeypatch.setattr(networks, "_train_in_processes", train_here)
    victim, workshop, method = Judge(0.55), Workshop(cache=tmp_path), Lira(queries=20, networks=4)
    fingerprint = method.generate(Subject.of_model(victim), data, seed=0, workshop=workshop)
    stolen = workshop.surrogates(victim, data, 1, seed=5, alike=True)
    innocent = workshop.independents(data, 1, seed=6, alike=True)
    found = [method.compare(fingerprint, Subject.of_model(model)).value for model in (*stolen, *innocent)]
    assert found[0] > found[1] + 0.3


def test_too_few_networks_are_refused():
    with pytest.raises(UsageError, match="lira: networks is 3; expected 4 or more"):
        Lira(networks=3)
