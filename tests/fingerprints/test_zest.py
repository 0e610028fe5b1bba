"""ZEST: the fit against scikit-learn and against coefficients that are known, masking and matching against loops."""

from itertools import permutations

import numpy as np
import pytest
from contract.test_methods import SHAPE, Tiny, data, network
from sklearn.linear_model import LinearRegression

from fp_audit.engine import silent
from fp_audit.errors import NotApplicable, UsageError
from fp_audit.fingerprints import zest
from fp_audit.fingerprints._segments import patches, quickshift
from fp_audit.fingerprints.zest import (
    Zest,
    closeness,
    draw_masks,
    faded,
    local_weights,
    masked,
    matched_classes,
    solver,
)
from fp_audit.model import Counted, LabelOnly, Reordered, as_images, as_probabilities
from fp_audit.subject import Subject
from fp_audit.types import InputSpec

VICTIM, OTHER = Tiny(network(0)), Tiny(network(1))
DATA = data(VICTIM)
FAST = {"images": 6, "masks": 40, "segments": "grid", "grid": 2}


def generate(seed=0, victim=VICTIM, **options):
    return Zest(**{**FAST, **options}).generate(Subject.of_model(victim), DATA, seed=seed)


KEPT = generate()


def score(model, kept=KEPT):
    return Zest().compare(kept, Subject.of_model(model))


def shown_masks(kept):
    return np.unpackbits(kept.arrays["masks"], axis=2, count=kept.arrays["weights"].shape[1]).astype(bool)


def pictures(kept, n, masks):
    """Mask one reference, pixel by pixel."""
    image, labels = kept.arrays["references"][n].astype(float), kept.arrays["segments"][n]
    made = []
    for mask in masks[n]:
        picture = image.copy()
        for segment, shown in enumerate(mask):
            if not shown and (labels == segment).any():
                for channel, plane in enumerate(image):
                    picture[channel][labels == segment] = np.rint(plane[labels == segment].mean())
        made.append(picture)
    return np.stack(made).astype(np.uint8)


class Function:
    """A model of probabilities out of a function of images."""

    output, classes, spec = "probabilities", None, InputSpec(*SHAPE)

    def __init__(self, function):
        self.predict = lambda images: np.asarray(function(np.asarray(images, np.float64)))


@pytest.mark.parametrize("options", [{}, {"grid": 3}, {"segments": "quickshift", "kernel": 0.5, "masks": 100}])
def test_weights_are_those_of_scikit_learn_one_image_at_a_time(options):
    kept = generate(**options)
    masks = shown_masks(kept)
    for n, labels in enumerate(kept.arrays["segments"]):
        answers = as_probabilities(VICTIM.predict(as_images(pictures(kept, n, masks))), "logits")
        present = labels.max() + 1
        fit = LinearRegression().fit(masks[n][:, :present], answers)
        np.testing.assert_allclose(kept.arrays["weights"][n, :present], fit.coef_.T, atol=2e-6)
        assert (kept.arrays["weights"][n, present:] == 0).all()
        np.testing.assert_allclose(kept.arrays["answers"][n], answers[0], atol=1e-6)


def test_a_model_that_is_linear_gives_back_its_coefficients():
    rng = np.random.default_rng(0)
    slope = rng.uniform(-0.02, 0.02, SHAPE)
    share = Function(lambda images: np.stack([p := 0.5 + (images * slope).sum(axis=(1, 2, 3)), 1 - p], axis=1))
    references = rng.integers(0, 256, (3, *SHAPE)).astype(np.uint8)
    segments = patches(references, 2)
    masks = draw_masks(segments, 30, 0.5, rng)
    weights, answers = local_weights(share, references, segments, masks)
    change = slope * (as_images(references) - as_images(faded(references, segments)))
    for label in range(4):
        wanted = (change * (segments == label)[:, None]).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(weights[:, label, 0], wanted, atol=1e-9)
        np.testing.assert_allclose(weights[:, label, 1], -wanted, atol=1e-9)
    np.testing.assert_allclose(answers, share.predict(as_images(references)), atol=1e-12)


def test_golden_weights():
    masks = np.array([[[1, 1], [1, 0], [0, 1], [0, 0]]], bool)
    fit = solver(masks)[0]
    np.testing.assert_allclose(fit, [[0.5, 0.5, -0.5, -0.5], [0.5, -0.5, 0.5, -0.5]], atol=1e-12)
    np.testing.assert_allclose(fit @ [10, 7, 5, 2], [5, 3], atol=1e-12)


def test_what_masks_do_not_tell_apart_shares_its_weight():
    masks = np.array([[[1, 1, 0], [1, 1, 0], [0, 0, 0]]], bool)
    weights = solver(masks)[0] @ [3.0, 3.0, 1.0]
    assert weights[0] == pytest.approx(weights[1])
    assert weights[0] + weights[1] == pytest.approx(2, abs=1e-9)
    assert weights[2] == 0


def test_the_fit_is_the_pseudo_inverse():
    masks = np.random.default_rng(0).random((4, 25, 6)) < 0.5
    masks[2, :, 3:] = False
    for fit, mask in zip(solver(masks), masks, strict=True):
        wanted = np.linalg.pinv(np.column_stack([mask, np.ones(25)]), rcond=1e-8)[:-1]
        np.testing.assert_allclose(fit, wanted, atol=1e-10)


@pytest.mark.parametrize("channels", [1, 3])
def test_masked_images_are_those_of_a_loop(channels):
    rng = np.random.default_rng(1)
    references = rng.integers(0, 256, (3, channels, 7, 5)).astype(np.uint8)
    segments = quickshift(references, kernel=1.0, ratio=0.05)
    masks = draw_masks(segments, 9, 0.5, rng)
    made = masked(references, faded(references, segments), segments, masks)
    assert made.dtype == np.uint8
    kept = type("Kept", (), {"arrays": {"references": references, "segments": segments}})
    for n in range(3):
        np.testing.assert_array_equal(made[n], pictures(kept, n, masks))
    np.testing.assert_array_equal(made[:, 0], references)


def test_masks():
    segments = np.array([[[0, 1], [2, 3]], [[0, 0], [1, 1]]], np.int32)
    masks = draw_masks(segments, 5000, 0.7, np.random.default_rng(0))
    assert masks.shape == (2, 5000, 4)
    assert masks[0, 0].all()
    assert masks[1, 0].tolist() == [True, True, False, False]
    assert not masks[1, :, 2:].any()
    np.testing.assert_allclose(masks[0].mean(axis=0), 0.7, atol=0.03)
    np.testing.assert_allclose(masks[1, :, :2].mean(axis=0), 0.7, atol=0.03)
    assert abs(np.corrcoef(masks[0, :, 0], masks[1, :, 0])[0, 1]) < 0.05


def test_the_queries_are_images_of_grey_levels_and_no_more_than_said():
    counted, seen = Counted(VICTIM), []
    ask = counted.predict
    counted.predict = lambda images: seen.append(images) or ask(images)
    found = score(counted)
    assert found.queries == counted.queries == KEPT.facts["queries"] == 6 * 40 == Zest(**FAST).budget()
    levels = 255 * np.concatenate(seen)
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    assert Zest().budget() == 128_000
    few = generate(images=1000, masks=3)
    assert few.facts["queries"] == 3 * len(DATA)


@pytest.mark.parametrize("values", [1, 5 * 6 * 16, 7 * 6 * 16])
def test_the_block_does_not_matter(monkeypatch, values):
    wanted = score(OTHER)
    monkeypatch.setattr(zest, "_VALUES", values)
    found = score(OTHER)
    assert found.value == pytest.approx(wanted.value, abs=1e-6)
    assert found.parts == pytest.approx(dict(wanted.parts), abs=1e-6)
    assert found.queries == wanted.queries


def test_the_score_is_that_of_a_loop():
    theirs = generate(victim=OTHER)
    np.testing.assert_array_equal(theirs.arrays["references"], KEPT.arrays["references"])
    np.testing.assert_array_equal(theirs.arrays["masks"], KEPT.arrays["masks"])
    ours, theirs = KEPT.arrays, theirs.arrays
    best = max(permutations(range(5)), key=lambda order: fitness(ours["answers"], theirs["answers"][:, order]))
    a, b = ours["weights"].ravel().tolist(), theirs["weights"][:, :, best].ravel().tolist()
    size_a, size_b = (sum(x * x for x in vector) ** 0.5 for vector in (a, b))
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / size_a / size_b
    l2 = 1 - sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 / (size_a + size_b)
    found = score(OTHER)
    assert found.value == found.parts["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert found.parts["l2"] == pytest.approx(l2, abs=1e-5)
    assert found.detail == {"classes_compared": 5}


def fitness(ours, theirs):
    return sum(np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True))


def test_golden_closeness():
    assert closeness(np.array([3.0, 4.0]), np.array([3.0, 4.0])) == 1
    assert closeness(np.array([3.0, 4.0]), np.array([0.0, 0.0])) == 0
    assert closeness(np.array([1.0, 0.0]), np.array([-1.0, 0.0])) == 0
    assert closeness(np.array([1.0, 0.0]), np.array([3.0, 0.0])) == pytest.approx(0.5)


def test_copies_score_one_in_every_part():
    found = score(VICTIM)
    assert found.value == pytest.approx(1)
    assert found.parts == pytest.approx({"cosine": 1, "l2": 1}, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 3), (3, 5), (5, 3)])
def test_matching_is_the_best_of_all(shape):
    rng = np.random.default_rng(2)
    ours, theirs = (rng.normal(size=(30, classes)) for classes in shape)
    theirs[:, 0] += 2 * ours[:, -1]
    first, second = matched_classes(ours, theirs)
    assert len(set(first)) == len(set(second)) == min(shape)
    pairings = [
        (rows, columns)
        for rows in permutations(range(shape[0]), min(shape))
        for columns in permutations(range(shape[1]), min(shape))
    ]
    wanted = max(fitness(ours[:, rows], theirs[:, columns]) for rows, columns in pairings)
    assert fitness(ours[:, first], theirs[:, second]) == pytest.approx(wanted)
    assert (shape[0] - 1, 0) in set(zip(first.tolist(), second.tolist(), strict=True))


def test_classes_that_nothing_tells_apart_stay_in_order():
    answers = np.full((4, 6), 0.1)
    answers[:, 2] = [0.1, 0.4, 0.2, 0.1]
    first, second = matched_classes(answers, answers)
    np.testing.assert_array_equal(first, second)
    first, second = matched_classes(np.ones((1, 4)), np.ones((1, 4)))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("order", [[3, 1, 0, 4, 2], [4, 3, 2, 1, 0]])
def test_the_order_of_classes_does_not_matter(order):
    assert score(Reordered(VICTIM, order, None)).value == pytest.approx(1)
    assert score(Reordered(OTHER, order, None)).parts == pytest.approx(dict(score(OTHER).parts), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 9])
def test_other_numbers_of_classes_can_be_compared(classes):
    found = score(Tiny(network(3, classes=classes)))
    assert -1 < found.value < 1
    assert 0 < found.parts["l2"] < 1
    assert found.detail == {"classes_compared": min(classes, 5)}


def test_a_suspect_with_more_classes_is_recognised():
    def predict(images):
        hot = 2.0 * np.asarray(images).reshape(len(images), -1)[:, :2]
        return np.concatenate([hot[:, :1], VICTIM.predict(images), hot[:, 1:]], axis=1)

    wider = Reordered(VICTIM, range(5), None)
    wider.predict = predict
    kept = generate(images=30)
    assert score(wider, kept).value > score(OTHER, kept).value + 0.1


def test_labels_alone_can_be_compared():
    kept = generate(victim=LabelOnly(VICTIM))
    assert score(LabelOnly(VICTIM), kept).value == pytest.approx(1)
    assert 0 < score(LabelOnly(VICTIM)).value < 1


def test_a_suspect_that_never_moves_scores_nothing():
    still = Function(lambda images: np.full((len(images), 5), 0.2))
    found = score(still)
    assert found.value == pytest.approx(0, abs=1e-6)
    assert found.parts["l2"] == pytest.approx(0, abs=1e-6)


def test_a_victim_that_never_moves_is_said():
    with pytest.raises(NotApplicable, match="whichever segments are hidden"):
        generate(victim=Function(lambda images: np.full((len(images), 5), 0.2)))
    with pytest.raises(NotApplicable, match="whichever segments are hidden"):
        generate(grid=4)


def test_seeds():
    first, again, other = generate(3), generate(3), generate(4)
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, again.arrays[name])
    assert not np.array_equal(first.arrays["references"], other.arrays["references"])
    assert not np.array_equal(first.arrays["masks"], other.arrays["masks"])


def test_small_images_are_cut_into_a_grid_and_the_number_of_segments_is_told():
    method = Zest(images=3, masks=20, grid=2)
    kept = method.generate(Subject.of_model(VICTIM), DATA, seed=0)
    np.testing.assert_array_equal(kept.arrays["segments"], patches(kept.arrays["references"], 2))
    assert kept.facts["segments"] == 4
    chosen = Zest(images=3, masks=20, segments="quickshift").generate(Subject.of_model(VICTIM), DATA, seed=0)
    np.testing.assert_array_equal(chosen.arrays["segments"], quickshift(chosen.arrays["references"]))


def test_large_images_are_cut_by_quickshift():
    large = np.random.default_rng(0).integers(0, 256, (2, 1, 66, 20)).astype(np.uint8)
    np.testing.assert_array_equal(Zest()._cut(large, silent), quickshift(large))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": "slic"}, "zest: segments is 'slic'; expected auto, quickshift or grid"),
        ({"images": 0}, "zest: images is 0; expected 1 or more"),
        ({"masks": 1}, "zest: masks is 1; expected 2 or more"),
        ({"grid": 1}, "zest: grid is 1; expected 2 or more"),
        ({"ratio": -1.0}, "zest: ratio is -1.0; expected 0 or more"),
        ({"kernel": 0.0}, "zest: kernel is 0.0; expected more than 0"),
        ({"max_distance": float("nan")}, "zest: max_distance is nan; expected more than 0"),
        ({"keep": 1.0}, "zest: keep is 1.0; expected more than 0 and less than 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Zest(**options)
