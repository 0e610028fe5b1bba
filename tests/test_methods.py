"""Methods by name, compositions, and what a command line may write."""

import numpy as np
import pytest
from contract.test_methods import Tiny, data, network, subject

from fp_audit import methods, plugins
from fp_audit.errors import PluginError, UsageError
from fp_audit.fingerprints._representations import DISTANCES, REPRESENTATIONS
from fp_audit.model import LabelOnly, Reordered, as_images, as_probabilities
from fp_audit.types import Access

VICTIM, OTHER = Tiny(network(0)), Tiny(network(1))
DATA = data(VICTIM)
FITTING = [(r, d) for d, distance in DISTANCES.items() for r in distance.fits]


def names(built):
    return [method.name for method in built]


def test_every_plugin_has_its_name():
    for name in plugins.names("fingerprints"):
        assert methods.kind(name).name == name


def test_without_a_choice_the_default_methods_are_built():
    chosen = names(methods.chosen((), queries=None, data=True))
    assert chosen == [name for name in plugins.names("fingerprints") if methods.kind(name).default]
    assert {"identity", "weights", "negatives", "sac"} <= set(chosen)
    for name in names(methods.chosen((), queries=None, data=False)):
        assert not methods.kind(name).needs_data


def test_all_means_all():
    assert names(methods.chosen(("all",), queries=None, data=True)) == list(plugins.names("fingerprints"))
    tuned = methods.chosen(("all", "zest:masks=50"), queries=None, data=True)
    assert sorted(names(tuned)) == sorted(plugins.names("fingerprints"))
    assert next(method for method in tuned if method.name == "zest").options["masks"] == 50
    more = names(methods.chosen(("all", "natural+logits+cosine"), queries=None, data=True))
    assert more == [*plugins.names("fingerprints"), "natural+logits+cosine"]


def test_options_are_read_as_what_they_are():
    built = methods.chosen(("sac:cutmix=true:box=0.4", "ipguard:steps=7:target=random"), queries=9, data=True)
    assert built[0].options == {"queries": 9, "cutmix": True, "box": 0.4}
    assert built[1].options["steps"] == 7
    assert built[1].options["target"] == "random"
    assert methods.chosen(("sac:queries=3",), queries=9, data=True)[0].options["queries"] == 3
    assert methods.chosen(("sac",), queries=None, data=True)[0].options["queries"] == 100


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sac:cutmix", "'cutmix' is no option of sac; expected KEY=VALUE with one of: queries, cutmix, box"),
        ("sac:boxes=1", "no option of sac"),
        ("sac:cutmix=1", "expected true or false"),
        ("sac:queries=many", "queries is 'many'; expected int, such as 100"),
        ("ipguard:target=most", "expected least or random"),
        ("boundary+logits", "expected QUERIES+REPRESENTATION+DISTANCE"),
        ("edge+logits+cosine", "no queries 'edge'; expected one of"),
        ("boundary+logs+cosine", "no representation 'logs'; expected one of labels, logits"),
        ("boundary+logits+far", "no distance 'far'; expected one of hamming, cosine"),
        ("boundary+logits+hamming", "hamming does not compare logits; it compares labels"),
    ],
)
def test_what_makes_no_sense_is_said(spec, message):
    with pytest.raises(UsageError, match=message.replace("+", r"\+")):
        methods.chosen((spec,), queries=None, data=True)


def test_unknown_methods_and_budgets():
    with pytest.raises(PluginError, match="no method called 'nagatives'"):
        methods.chosen(("nagatives",), queries=None, data=True)
    with pytest.raises(UsageError, match="expected at least 1"):
        methods.chosen((), queries=0, data=True)
    with pytest.raises(UsageError, match="named twice"):
        methods.chosen(("sac", "sac:box=0.3"), queries=None, data=True)


def test_rungs():
    assert methods.rung("weights", Access.GRADIENTS) == Access.WEIGHTS
    assert methods.rung("negatives", Access.GRADIENTS) == Access.QUERIES
    assert methods.rung("negatives", Access.IDENTITY) == Access.QUERIES
    gaining = [name for name in plugins.names("fingerprints") if methods.kind(name).suspect_gain]
    for name in gaining:
        assert methods.rung(name, Access.GRADIENTS) == methods.kind(name).suspect_gain
        assert methods.rung(name, Access.QUERIES) == methods.kind(name).suspect_access


@pytest.mark.parametrize(("representation", "distance"), FITTING)
def test_compositions(representation, distance):
    method = methods.chosen((f"natural+{representation}+{distance}:queries=14",), queries=None, data=True)[0]
    kept = method.generate(subject(VICTIM), DATA, seed=0)
    assert kept.method == method.name == f"natural+{representation}+{distance}"
    np.testing.assert_array_equal(
        kept.arrays["queries"],
        methods.kind("natural")(queries=14).generate(subject(VICTIM), DATA, seed=0).arrays["queries"],
    )
    itself = method.compare(kept, subject(VICTIM))
    assert itself.value == pytest.approx(1, abs=1e-5)
    assert itself.trials == (14 if distance == "hamming" else None)
    assert method.compare(kept, subject(OTHER)).value < 1
    assert method.aligned == REPRESENTATIONS[representation].aligned
    if not method.aligned:
        turned = subject(VICTIM).seen_as(Reordered(VICTIM, [3, 1, 0, 4, 2], None))
        assert method.compare(kept, turned).value == pytest.approx(1, abs=1e-5)
    hidden = method.compare(kept, subject(VICTIM).seen_as(LabelOnly(VICTIM)))
    assert np.isfinite(hidden.value)
    again = methods.restored(kept)
    assert again.compare(kept, subject(OTHER)).value == method.compare(kept, subject(OTHER)).value
    assert representation in method.explain(0.5, {}, None)


def test_named_methods_are_compositions():
    for name, spec in (("negatives-logits", "negatives+logits+cosine"), ("sac", "negatives+correlation+l1")):
        named = methods.kind(name)(queries=12)
        composition = methods.kind(spec)(queries=12)
        a = named.compare(named.generate(subject(VICTIM), DATA, seed=3), subject(OTHER))
        b = composition.compare(composition.generate(subject(VICTIM), DATA, seed=3), subject(OTHER))
        assert a.value == b.value


def test_about_a_hundred_schemes_can_be_composed():
    assert len(methods.query_sets()) * len(FITTING) >= 80


def test_representations_against_loops():
    images = as_images(DATA.pixels[:8])
    answers = VICTIM.predict(images)
    shown = as_probabilities(answers, "logits").astype(float)
    apart = [1 - shown[i] @ shown[i + 4] / np.linalg.norm(shown[i]) / np.linalg.norm(shown[i + 4]) for i in range(4)]
    np.testing.assert_allclose(REPRESENTATIONS["ddv"].read(answers, "logits"), apart, atol=1e-6)
    np.testing.assert_allclose(REPRESENTATIONS["ddv"].read(answers[:7], "logits").shape, (3,))
    centred = [[z - sum(row) / len(row) for z in row] for row in answers.tolist()]
    np.testing.assert_allclose(REPRESENTATIONS["logits"].read(answers, "logits"), centred, atol=1e-5)


def test_distances_golden_values():
    a, b = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.5, 0.5], [0.0, 1.0]])
    assert DISTANCES["jsd"].similarity(a, b) == pytest.approx(0.5)
    assert DISTANCES["l1"].similarity(a, b) == pytest.approx(0.5)
    assert DISTANCES["l2"].similarity(a, b) == pytest.approx(1 - 0.5**0.5)
    assert DISTANCES["cosine"].similarity(a, b) == pytest.approx(0.5)
    assert DISTANCES["hamming"].similarity(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 0])) == 0.5
