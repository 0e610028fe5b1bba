"""Segments: quickshift against a slow double loop, colours against known values, patches exactly."""

import math

import numpy as np
import pytest

from fp_audit.fingerprints import _segments
from fp_audit.fingerprints._segments import lab, patches, quickshift


def noise(count, channels, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width)).astype(np.uint8)


def smooth(count, channels, side, seed=0):
    """Blocks of 4 x 4 pixels with a little noise: something to segment."""
    coarse = noise(count, channels, side // 4, side // 4, seed).astype(int).repeat(4, axis=2).repeat(4, axis=3)
    return np.clip(coarse + noise(count, channels, side, side, seed + 1) // 16, 0, 255).astype(np.uint8)


def quickshift_by_loop(points, kernel, max_distance):
    """Points: H x W x channels."""
    height, width, _ = points.shape
    reach = math.ceil(3 * kernel)
    places = [(r, c) for r in range(height) for c in range(width)]

    def apart(p, q):
        return math.dist((*points[p], *p), (*points[q], *q))

    near = {p: [q for q in places if max(abs(p[0] - q[0]), abs(p[1] - q[1])) <= reach] for p in places}
    density = {p: sum(math.exp(-(apart(p, q) ** 2) / (2 * kernel**2)) for q in near[p]) for p in places}
    parent = {}
    for p in places:
        denser = [(apart(p, q), q) for q in near[p] if (density[q], q) > (density[p], p)]
        distance, nearest = min(denser, default=(math.inf, p))
        parent[p] = nearest if distance <= max_distance else p

    def root(p):
        return p if parent[p] == p else root(parent[p])

    roots = [root(p) for p in places]
    order = sorted(set(roots))
    return np.array([order.index(p) for p in roots]).reshape(height, width)


@pytest.mark.parametrize(
    ("kernel", "ratio", "max_distance"), [(1.0, 0.2, 200.0), (1.0, 0.2, 3.0), (2.0, 0.5, 200.0), (4.0, 0.2, 200.0)]
)
def test_quickshift_is_that_of_a_loop(kernel, ratio, max_distance):
    images = np.concatenate([smooth(2, 3, 12), noise(1, 3, 12, 12)])
    got = quickshift(images, kernel=kernel, ratio=ratio, max_distance=max_distance)
    points = ratio * lab(images).transpose(0, 2, 3, 1)
    for labels, image in zip(got, points, strict=True):
        np.testing.assert_array_equal(labels, quickshift_by_loop(image, kernel, max_distance))
    if kernel == 1:
        assert 1 < got.max() < 12 * 12


def test_images_need_not_be_square_nor_larger_than_the_window():
    images = noise(2, 3, 3, 9)
    points = 0.2 * lab(images).transpose(0, 2, 3, 1)
    for labels, image in zip(quickshift(images, kernel=1.5), points, strict=True):
        np.testing.assert_array_equal(labels, quickshift_by_loop(image, 1.5, 200.0))


def test_labels_have_no_gaps_and_count_from_zero():
    labels = quickshift(smooth(5, 3, 16), kernel=1.0)
    assert labels.dtype == np.int32
    for image in labels:
        np.testing.assert_array_equal(np.unique(image), np.arange(image.max() + 1))


def test_the_block_does_not_matter(monkeypatch):
    images = smooth(7, 3, 16)
    whole = quickshift(images, kernel=1.0)
    monkeypatch.setattr(_segments, "_BLOCK", 1)
    told = []
    np.testing.assert_array_equal(quickshift(images, kernel=1.0, progress=lambda _, share: told.append(share)), whole)
    assert len(told) == 7
    assert told[-1] == 1


def test_two_flat_halves_are_two_segments():
    image = np.zeros((1, 3, 8, 8), np.uint8)
    image[:, :, :, 4:] = 255
    labels = quickshift(image, kernel=1.0, ratio=1.0, max_distance=10.0)[0]
    assert len(np.unique(labels)) == 2
    assert len(np.unique(labels[:, :4])) == len(np.unique(labels[:, 4:])) == 1


def test_a_larger_kernel_makes_larger_segments_and_a_short_leash_smaller_ones():
    images = smooth(4, 3, 24)
    counts = [quickshift(images, kernel=kernel).max(axis=(1, 2)).mean() for kernel in (0.5, 1.0, 2.0, 4.0)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert (quickshift(images, kernel=1.0, max_distance=0.5) == np.arange(24 * 24).reshape(24, 24)).all()


def test_grey_images_are_cut_as_if_they_were_rgb():
    grey = smooth(3, 1, 16)
    np.testing.assert_array_equal(quickshift(grey, kernel=1.0), quickshift(grey.repeat(3, axis=1), kernel=1.0))


@pytest.mark.parametrize(
    ("rgb", "wanted"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
        ((5, 5, 5), (1.37, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colours(rgb, wanted):
    pixel = np.array(rgb, np.uint8).reshape(1, 3, 1, 1)
    np.testing.assert_allclose(lab(pixel).ravel(), wanted, atol=0.02)


def test_patches():
    wanted = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(patches(noise(2, 3, 4, 4), 2), [wanted, wanted])


@pytest.mark.parametrize(("height", "width", "side"), [(28, 28, 8), (32, 48, 8), (7, 5, 3)])
def test_patches_differ_by_one_pixel_at_most(height, width, side):
    labels = patches(noise(1, 1, height, width), side)[0]
    assert labels.max() + 1 == side**2
    for label in range(side**2):
        rows, columns = np.nonzero(labels == label)
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert tall * wide == len(rows)
        assert tall in (height // side, height // side + 1)
        assert wide in (width // side, width // side + 1)


def test_a_small_image_is_cut_into_its_pixels():
    np.testing.assert_array_equal(patches(noise(1, 1, 2, 4), 8)[0], np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(patches(noise(1, 1, 2, 6), 3)[0], [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]])
