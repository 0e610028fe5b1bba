"""The random preprocessing that a model folder may state, against Alg. 1 and the adapters."""

import json
import shutil
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from attack_victims import KINDS, SIZE, digits, victim

from fp_audit.alignment import make_probes, settle
from fp_audit.attacks.csrp import usual_strength
from fp_audit.augmentation import FILE, MAX_BYTES, Csrp, Rdg, from_json, plain, stated
from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit.fresh import Architecture
from fp_audit.model import LoadOptions, Randomised, RandomisedWhite, Unprepared, as_images
from fp_audit.preprocess import NAMED
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate, locate_one
from fp_audit.types import Skipped

KNOWN = NAMED["-1..1"]
STRONG = Csrp(1.5, 8)


def some(count, height, width=None, channels=3):
    return np.random.default_rng(0).random((count, channels, height, width or height), np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


class Numbers:
    """Gives numbers that are known to the test where a generator is expected."""

    def __init__(self, rows):
        self.rows = rows

    def random(self, shape):
        given = np.array(self.rows, float)
        assert given.shape == shape
        return given


def algorithm_1(image, sigma, padding, u_rows, u_columns):
    """CSRP of one H x W image, line by line; the numbers of the comments are the paper's lines."""
    height, width = image.shape
    h_max, w_max = floor(height * sigma), floor(width * sigma)  # 1
    h_resize, w_resize = h_max - padding, w_max - padding  # 2
    resized = np.zeros((h_resize, w_resize), image.dtype)
    for x in range(h_resize):
        for y in range(w_resize):
            row = min(round(Fraction(x * height, h_resize)), height - 1)
            column = min(round(Fraction(y * width, w_resize)), width - 1)
            resized[x, y] = image[row, column]  # 3
    top, left = floor(u_rows * (padding + 1)), floor(u_columns * (padding + 1))  # 4, 5
    padded = np.zeros((h_max, w_max), image.dtype)
    padded[top : top + h_resize, left : left + w_resize] = resized  # 6
    result = np.zeros_like(image)
    for x in range(height):
        for y in range(width):
            row = min(round(Fraction(x * h_max, height)), h_max - 1)
            column = min(round(Fraction(y * w_max, width)), w_max - 1)
            result[x, y] = padded[row, column]  # 7
    return result


def distorted_axis(values, grids, limit, uniform):
    """RDG along one axis, cell by cell."""
    side = len(values)
    size, begin, positions = max(1, side // grids), 0.0, []
    for number, start in enumerate(range(0, side, size)):
        pixels = min(size, side - start)
        end = begin + size * (1 + limit * (2 * uniform[number] - 1)) if pixels == size else float(side)
        positions += list(np.linspace(begin, end, pixels))
        begin = end
    return np.array([values[min(max(round(position), 0), side - 1)] for position in positions])


class TestCsrp:
    @pytest.mark.parametrize(
        ("sigma", "padding", "size"),
        [
            (Fraction(116, 100), 3, (32, 32)),
            (Fraction(123, 100), 5, (32, 32)),
            (Fraction(125, 100), 14, (64, 64)),
            (Fraction(116, 100), 2, (25, 14)),
            (Fraction(5, 2), 4, (9, 7)),
            (Fraction(4), 0, (5, 8)),
        ],
    )
    def test_it_is_algorithm_1_pixel_by_pixel(self, sigma, padding, size):
        images, uniform = some(4, *size), rng(1).random((4, 2))
        found = Csrp(float(sigma), padding).apply(images, Numbers(uniform))
        for i, image in enumerate(images):
            for channel in range(3):
                np.testing.assert_array_equal(
                    found[i, channel], algorithm_1(image[channel], sigma, padding, *uniform[i])
                )

    def test_known_values(self):
        image = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
        found = Csrp(1.5, 2).apply(image, Numbers([[0.5, 0.99]]))  # 6 x 6: one row of zeros above, two columns left
        assert found[0, 0].tolist() == [[0, 0, 0, 0], [0, 5, 6, 7], [0, 9, 10, 11], [0, 13, 14, 15]]

    def test_every_padding_is_as_likely(self):
        rows, columns = Csrp(1.25, 3).draw(8000, 32, 32, rng())
        for index in (rows, columns):
            black = (index < 0).sum(axis=1)
            _, counts = np.unique(index, axis=0, return_counts=True)
            assert black.max() <= 3
            assert len(counts) == 4
            assert counts.min() > 1800

    def test_rows_and_columns_are_drawn_apart(self):
        rows, columns = STRONG.draw(500, 16, 16, rng())
        pairs = {(row.tobytes(), column.tobytes()) for row, column in zip(rows, columns, strict=True)}
        assert len(pairs) == 81

    def test_padding_that_leaves_nothing(self):
        with pytest.raises(UnsupportedModel, match="less than the 18"):
            Csrp(1.16, 18).apply(some(1, 16), rng())

    @pytest.mark.parametrize(
        ("side", "sigma", "padding"), [(32, 1.16, 3), (64, 1.25, 14), (16, 1.16, 2), (28, 1.16, 3), (48, 1.205, 8)]
    )
    def test_the_usual_strength(self, side, sigma, padding):
        usual = usual_strength(side)
        assert (usual.sigma, usual.padding) == (pytest.approx(sigma), padding)

    def test_the_usual_strength_of_other_sizes(self):
        assert usual_strength(224) == Csrp(1.25, 49)
        assert usual_strength(1).padding == 1


class TestRdg:
    @pytest.mark.parametrize(
        ("grids", "limit", "size"), [(26, 0.33, (32, 32)), (4, 0.5, (32, 30)), (7, 1.0, (20, 33)), (1, 0.2, (9, 9))]
    )
    def test_it_is_a_walk_from_cell_to_cell(self, grids, limit, size):
        made = Rdg(grids, limit)
        first, numbers = made.numbers(size[0]), made.numbers(size[0]) + made.numbers(size[1])
        images, uniform = some(3, *size), rng(1).random((3, numbers))
        found = made.apply(images, Numbers(uniform))
        for i, image in enumerate(images):
            rows = distorted_axis(image.transpose(1, 0, 2), grids, limit, uniform[i, :first]).transpose(1, 0, 2)
            both = distorted_axis(rows.transpose(2, 0, 1), grids, limit, uniform[i, first:]).transpose(1, 2, 0)
            np.testing.assert_array_equal(found[i], both)

    def test_without_a_limit_cells_of_one_pixel_stay(self):
        images = some(2, 16)
        np.testing.assert_array_equal(Rdg(16, 0.0).apply(images, rng()), images)

    def test_pixels_keep_their_order(self):
        rows, columns = Rdg(26, 0.33).draw(100, 32, 32, rng())
        assert (np.diff(rows, axis=1) >= 0).all()
        assert (np.diff(columns, axis=1) >= 0).all()
        assert rows.min() >= 0


@pytest.mark.parametrize("made", [STRONG, Rdg(5, 0.4)], ids=repr)
class TestBoth:
    def test_torch_does_the_same(self, made):
        images = some(5, 20, 28)
        found = made.apply_torch(torch.from_numpy(images), rng()).numpy()
        np.testing.assert_array_equal(found, made.apply(images, rng()))
        assert made.apply(images, rng()).dtype == np.float32

    def test_gradients_flow_to_the_pixels_that_are_shown(self, made):
        images = torch.from_numpy(some(2, 12)).requires_grad_()
        weights = torch.from_numpy(some(2, 12)) + 1
        (made.apply_torch(images, rng()) * weights).sum().backward()
        rows, columns = made.draw(2, 12, 12, rng())
        expected = np.zeros((2, 3, 12, 12))
        for i, x, y in np.ndindex(2, 12, 12):
            if rows[i, x] >= 0 and columns[i, y] >= 0:
                expected[i, :, rows[i, x], columns[i, y]] += weights[i, :, x, y].numpy()
        np.testing.assert_allclose(images.grad.numpy(), expected, rtol=1e-6)

    def test_batches_do_not_matter(self, made):
        images, draws = some(7, 16), rng()
        parts = [made.apply(part, draws) for part in (images[:1], images[1:4], images[4:])]
        np.testing.assert_array_equal(np.concatenate(parts), made.apply(images, rng()))
        assert made.apply(images[:0], rng()).shape == (0, 3, 16, 16)

    def test_every_image_is_drawn_for_itself(self, made):
        found = made.apply(np.repeat(some(1, 16), 20, axis=0), rng())
        assert len(np.unique(found.reshape(20, -1), axis=0)) > 10

    def test_json(self, made):
        assert from_json(json.loads(json.dumps(made.to_json()))) == made


GOOD = {"kind": "csrp", "sigma": 1.2, "padding": 3}
HOSTILE = {
    "a list": "[]",
    "text": "sigma 3",
    "nothing": "",
    "bytes": b"\xff\xfe",
    "deep": "[" * 2000,
    "long": json.dumps(GOOD) + " " * MAX_BYTES,
    "another kind": json.dumps(GOOD | {"kind": "blur"}),
    "a kind that is a list": json.dumps(GOOD | {"kind": ["csrp"]}),
    "a key too many": json.dumps(GOOD | {"code": "x"}),
    "a key too few": json.dumps({"kind": "csrp", "sigma": 1.2}),
    "the other's keys": json.dumps(GOOD | {"kind": "rdg"}),
    "a large sigma": json.dumps(GOOD | {"sigma": 1e9}),
    "NaN": json.dumps(GOOD | {"sigma": float("nan")}),
    "infinity": json.dumps(GOOD | {"sigma": float("inf")}),
    "text for a number": json.dumps(GOOD | {"sigma": "1.2"}),
    "a large padding": json.dumps(GOOD | {"padding": 10**6}),
    "a negative padding": json.dumps(GOOD | {"padding": -1}),
    "half a pixel": json.dumps(GOOD | {"padding": 1.5}),
    "true": json.dumps(GOOD | {"padding": True}),
    "no grids": json.dumps({"kind": "rdg", "grids": 0, "limit": 0.3}),
    "cells that turn back": json.dumps({"kind": "rdg", "grids": 4, "limit": 1.5}),
}


@pytest.fixture
def folder(tmp_path):
    """Copy a victim's folder and state a random preprocessing in it."""

    def make(kind, content):
        path = tmp_path / kind
        path.mkdir()
        for file in victim(kind).iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        if isinstance(content, Csrp | Rdg):
            content.save(path)
        else:
            (path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def opened(path, **options):
    artifact = locate_one(str(path), SourceOptions()).artifact
    options = LoadOptions(**{"preprocess": KNOWN, **options})
    return adapter(artifact.adapter).load(artifact, options)


def opened_white(path, **options):
    artifact = locate_one(str(path), SourceOptions()).artifact
    return adapter(artifact.adapter).load_white(artifact, LoadOptions(preprocess=KNOWN, **options))


IMAGES = as_images(digits().pixels[:40])


class TestHostile:
    @pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
    def test_it_is_refused_in_one_line(self, folder, content):
        path = folder("onnx", content)
        for open_ in (opened, opened_white):
            with pytest.raises(CorruptModel, match=FILE) as caught:
                open_(path)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 200

    def test_images_that_it_does_not_fit(self, folder):
        model = opened(folder("onnx", Csrp(1.0, 500)))
        with pytest.raises(UnsupportedModel, match="500 pixels"):
            model.predict(IMAGES)

    def test_a_link_out_of_the_folder_is_not_followed(self, folder, tmp_path):
        path = folder("onnx", STRONG)
        (path / FILE).rename(tmp_path / "elsewhere.json")
        (path / FILE).symlink_to(tmp_path / "elsewhere.json")
        found = list(locate([str(path)], SourceOptions()))
        assert [item.target for item in found if isinstance(item, Skipped)] == [str(path / FILE)]


@pytest.mark.parametrize("kind", KINDS)
class TestEveryAdapter:
    def test_it_belongs_to_the_model(self, folder, kind):
        artifact = locate_one(str(folder(kind, STRONG)), SourceOptions()).artifact
        assert FILE in {file.path for file in artifact.files}
        assert stated(artifact) == STRONG
        assert stated(plain(artifact)) is None
        assert stated(locate_one(str(victim(kind)), SourceOptions()).artifact) is None

    def test_no_two_queries_are_alike(self, folder, kind):
        model = opened(folder(kind, STRONG))
        assert isinstance(model, Randomised)
        first, again = model.predict(IMAGES), model.predict(IMAGES)
        assert first.shape == again.shape == (len(IMAGES), 10)
        assert (first != again).any(axis=1).mean() > 0.8
        known = opened(victim(kind))
        assert (model.output, model.spec, model.classes) == (known.output, known.spec, known.classes)

    def test_a_seed_repeats_all_draws(self, folder, kind):
        path = folder(kind, STRONG)
        one, other, third = (opened(path, seed=seed) for seed in (5, 5, 6))
        first, second = one.predict(IMAGES), one.predict(IMAGES)
        np.testing.assert_array_equal(other.predict(IMAGES), first)
        np.testing.assert_array_equal(other.predict(IMAGES), second)
        assert (first != second).any()
        assert (third.predict(IMAGES) != first).any()

    def test_it_is_the_victim_behind_the_transform(self, folder, kind):
        expected = opened(victim(kind)).predict(STRONG.apply(IMAGES, rng(7)))
        path = folder(kind, STRONG)
        np.testing.assert_array_equal(opened(path, seed=7).predict(IMAGES), expected)
        white = opened_white(path, seed=7)
        np.testing.assert_allclose(white.predict(IMAGES), expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            answers = opened_white(path, seed=7).module(torch.from_numpy(IMAGES)).numpy()
        np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4)

    def test_activations_and_tensors(self, folder, kind):
        path = folder(kind, STRONG)
        white, known = opened_white(path, seed=7), opened_white(victim(kind))
        assert white.layers() == known.layers()
        layer = white.layers()[-2]
        expected = known.activations(STRONG.apply(IMAGES, rng(7)), layer)
        np.testing.assert_array_equal(white.activations(IMAGES, layer), expected)
        with torch.no_grad():
            found = opened_white(path, seed=7).activate(torch.from_numpy(IMAGES), layer).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert all(np.array_equal(value, known.tensors()[name]) for name, value in white.tensors().items())

    def test_what_is_saved_is_random_again(self, folder, kind, tmp_path):
        white = opened_white(folder(kind, STRONG), seed=7)
        adapter(kind).save(white, tmp_path / "saved")
        again = opened_white(tmp_path / "saved", seed=7)
        assert again.augmentation == STRONG
        np.testing.assert_array_equal(again.predict(IMAGES), white.predict(IMAGES))
        adapter(kind).save(white.inner, tmp_path / "saved")
        assert not isinstance(opened_white(tmp_path / "saved"), RandomisedWhite)

    def test_an_untrained_copy_of_the_architecture_is_not_random(self, folder, kind):
        artifact = locate_one(str(folder(kind, STRONG)), SourceOptions()).artifact
        made = Architecture(kind, artifact, LoadOptions(preprocess=KNOWN)).fresh(seed=0, sample=digits().pixels[:2])
        assert not isinstance(made, RandomisedWhite)


def test_an_unprepared_model_is_random_once_it_is_settled(folder):
    unprepared = opened(folder("onnx", Csrp(1.16, 2)), preprocess=None)
    assert isinstance(unprepared, Unprepared)
    assert unprepared.spec == opened(victim("onnx")).spec
    settled = settle(unprepared, make_probes(digits(), seed=0))
    assert settled.preprocess == KNOWN
    model = unprepared.with_preprocess(KNOWN)
    assert (model.predict(IMAGES) != model.predict(IMAGES)).any()


def test_a_lone_file_brings_what_its_folder_states(folder):
    path = folder("onnx", STRONG) / "model.onnx"
    found = locate_one(str(path), SourceOptions()).artifact
    assert found.target == str(path)
    assert isinstance(opened(path), Randomised)


def test_it_comes_along_from_a_hub(folder, hub):
    shutil.copytree(folder("onnx", STRONG), hub.folder / "thief" / "random")
    located = locate_one("thief/random", SourceOptions())
    assert stated(located.source.fetch(located.artifact)) == STRONG


def test_what_another_folder_states_does_not_matter(folder, tmp_path):
    folder("onnx", STRONG)
    STRONG.save(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "model.onnx").write_bytes((victim("onnx") / "model.onnx").read_bytes())
    found = {item.artifact.entry: item.artifact for item in locate([str(tmp_path)], SourceOptions())}
    assert stated(found["onnx/model.onnx"]) == STRONG
    assert stated(found["plain/model.onnx"]) is None


def test_the_images_side_of_the_tests_is_what_the_victims_take():
    assert IMAGES.shape[2:] == (SIZE, SIZE)
