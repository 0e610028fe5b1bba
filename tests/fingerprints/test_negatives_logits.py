"""Logits on negatives: a loop as an oracle, and answers that show less than logits."""

import numpy as np
import pytest
from contract.test_methods import Tiny, data, network, subject

from fp_audit.errors import CorruptModel
from fp_audit.fingerprints._queries import centred_logits, shown_probabilities
from fp_audit.fingerprints.negatives import Negatives
from fp_audit.fingerprints.negatives_logits import NegativesLogits
from fp_audit.model import LabelOnly, TopK, as_images, as_probabilities

VICTIM, OTHER = Tiny(network(0)), Tiny(network(1))
DATA = data(VICTIM)
KEPT = NegativesLogits(queries=20).generate(subject(VICTIM), DATA, seed=0)


class Transformed:
    classes, spec = None, None

    def __init__(self, change, output="logits"):
        self.change, self.output = change, output

    def predict(self, images):
        return self.change(VICTIM.predict(images))


def score(model):
    return NegativesLogits().compare(KEPT, subject(VICTIM).seen_as(model)).value


def test_the_queries_are_those_of_negatives():
    other = Negatives(queries=20).generate(subject(VICTIM), DATA, seed=0)
    np.testing.assert_array_equal(KEPT.arrays["queries"], other.arrays["queries"])


def test_the_score_is_the_mean_cosine_of_a_loop():
    cosines = []
    for query in KEPT.arrays["queries"]:
        a, b = VICTIM.predict(as_images(query[None]))[0], OTHER.predict(as_images(query[None]))[0]
        a, b = a - a.mean(), b - b.mean()
        cosines.append(float((a * b).sum() / (a * a).sum() ** 0.5 / (b * b).sum() ** 0.5))
    assert score(OTHER) == pytest.approx(np.mean(cosines), abs=1e-5)


def test_golden_values():
    assert score(VICTIM) == pytest.approx(1)
    assert score(Transformed(lambda z: -z)) == pytest.approx(-1, abs=1e-6)
    assert score(Transformed(lambda z: 3 * z + 100)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(centred_logits(np.float32([[1, 2, 6]]), "logits"), [[-2, -1, 3]])
    np.testing.assert_allclose(shown_probabilities(np.float32([[0, 1]]), "labels"), [[0.01 / 1.02, 1.01 / 1.02]])


def test_probabilities_give_the_score_of_logits():
    assert score(Transformed(lambda z: as_probabilities(z, "logits"), "probabilities")) == pytest.approx(1, abs=1e-3)


def test_less_is_coarser_but_still_high():
    unlike = score(OTHER)
    assert score(TopK(VICTIM, 3)) > unlike
    assert score(LabelOnly(VICTIM)) > unlike
    assert 0.5 < score(LabelOnly(VICTIM)) < score(TopK(VICTIM, 5)) < 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_a_corrupt_model(spoil):
    with pytest.raises(CorruptModel):
        score(Transformed(lambda z: np.full_like(z, spoil)))
