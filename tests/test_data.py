"""Labelled images from every kind of file; whatever is wrong with one is a single line."""

import io

import numpy as np
import pytest
from builders import pixels
from PIL import Image

from fp_audit.data import Labelled, load, summary
from fp_audit.errors import DataError

PIXELS, LABELS = pixels(12, (4, 5)), np.arange(12) % 3
GREY = pixels(12, (4, 5), channels=1)


def png(picture, mode=None):
    image = Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0), mode)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def npz(path, **arrays):
    np.savez(path / "d.npz", **arrays)
    return str(path / "d.npz")


def parquet(path, *, image="image", label="label", pictures=PIXELS, labels=LABELS):
    import pyarrow as pa
    from pyarrow import parquet as pq

    cells = [p if p is None or isinstance(p, bytes) else png(p) for p in pictures]
    table = {image: [{"bytes": c, "path": None} if c is not None else None for c in cells], label: labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return str(path)


def refused(text, match, **more):
    with pytest.raises(DataError, match=match) as error:
        load(text, **more)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("images", ["images", "image", "x", "x_train", "data"])
@pytest.mark.parametrize("labels", ["labels", "y", "y_train", "target"])
def test_npz_goes_by_many_names(tmp_path, images, labels):
    found = load(npz(tmp_path, **{images: PIXELS, labels: LABELS}))
    np.testing.assert_array_equal(found.pixels, PIXELS)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert (found.pixels.dtype, found.labels.dtype) == (np.uint8, np.int64)
    assert (found.classes, found.name, len(found)) == (None, "d.npz", 12)


@pytest.mark.parametrize("names", [("images_train", "labels_train"), ("x_train", "y_train")])
def test_npz_with_splits(tmp_path, names):
    images, labels = names
    arrays = {images: PIXELS, labels: LABELS, "images_test": PIXELS[:3], "labels_test": LABELS[:3]}
    path = npz(tmp_path, **arrays, classes=np.array(["a", "b", "c"]))
    assert len(load(f"{path}:train")) == 12
    test = load(f"{path}:test")
    assert (len(test), test.name, test.classes) == (3, "d.npz:test", ("a", "b", "c"))
    refused(f"{path}:valid", "expected an array called images_valid or x_valid")


@pytest.mark.parametrize(
    "images",
    [
        PIXELS.transpose(0, 2, 3, 1),
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32).transpose(0, 2, 3, 1),
        np.asfortranarray(PIXELS),
    ],
)
def test_npz_of_other_layouts_and_types(tmp_path, images):
    found = load(npz(tmp_path, images=images, labels=LABELS.astype(np.uint8)[:, None]))
    np.testing.assert_array_equal(found.pixels, PIXELS)
    np.testing.assert_array_equal(found.labels, LABELS)


@pytest.mark.parametrize("images", [GREY[:, 0], GREY, GREY.transpose(0, 2, 3, 1), GREY[:, 0] / 255])
def test_npz_of_grey_images(tmp_path, images):
    np.testing.assert_array_equal(load(npz(tmp_path, images=images, labels=LABELS)).pixels, GREY)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (PIXELS[:, :2], LABELS, "expected N x H x W"),
        (PIXELS[0, 0], LABELS[:4], "expected N x H x W"),
        (PIXELS.astype(np.int64), LABELS, "expected uint8, or floats"),
        (PIXELS.astype(float), LABELS, "expected uint8, or floats"),
        (PIXELS / -255, LABELS, "expected uint8, or floats"),
        (PIXELS, LABELS[:5], "for 12 images"),
        (PIXELS, LABELS / 2, "expected integers"),
        (PIXELS, LABELS - 1, "expected class indices 0 to"),
        (PIXELS, LABELS.astype(str), "expected integers"),
        (PIXELS[:0], LABELS[:0], "no images found"),
    ],
)
def test_npz_of_wrong_arrays_is_refused(tmp_path, images, labels, match):
    refused(npz(tmp_path, images=images, labels=labels), match)


def test_npz_without_labels_is_refused(tmp_path):
    refused(npz(tmp_path, images=PIXELS), "holds images; expected an array called labels")
    refused(npz(tmp_path), "holds nothing")


def test_pickled_objects_are_refused(tmp_path):
    objects = np.array([{"evil": print}], dtype=object)
    refused(npz(tmp_path, images=objects, labels=LABELS), "plain arrays")
    np.save(tmp_path / "d.npz.npy", objects)
    (tmp_path / "d.npz.npy").rename(tmp_path / "d.npz")
    refused(str(tmp_path / "d.npz"), "plain arrays")


def test_npz_that_is_none(tmp_path):
    refused(str(tmp_path / "none.npz"), "no such file")
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 and so on")
    refused(str(tmp_path / "d.npz"), "plain arrays")
    (tmp_path / "d.npz").write_text("a text")
    refused(str(tmp_path / "d.npz"), "plain arrays")


def empty(path):
    path.write_bytes(b"")


def lone_array(path):
    with path.open("wb") as stream:
        np.save(stream, PIXELS)


def garbled(path):
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 99, (12, 1, 9, 9), np.uint8), labels=LABELS)
    content = bytearray(path.read_bytes())
    content[120:300] = b"\xff" * 180
    path.write_bytes(content)


def scalar(path):
    np.savez(path, images=np.uint8(3), labels=LABELS)


def not_numbers(path):
    np.savez(path, images=np.where(PIXELS > 9, PIXELS / 255, np.nan), labels=LABELS)


def too_few_names(path):
    np.savez(path, images=PIXELS, labels=LABELS, classes=np.array(["a", "b"]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("spoil", [empty, lone_array, garbled, scalar, not_numbers, too_few_names])
def test_npz_that_is_spoilt_is_refused_in_one_line(tmp_path, spoil):
    spoil(tmp_path / "d.npz")
    refused(str(tmp_path / "d.npz"), "d.npz")


def test_columns_go_by_other_names(tmp_path):
    found = load(parquet(tmp_path / "test.parquet", image="img", label="fine_label", pictures=GREY))
    np.testing.assert_array_equal(found.pixels, GREY)
    assert found.name.endswith(":test")


def test_a_parquet_file(tmp_path):
    found = load(parquet(tmp_path / "train-00000-of-00001.parquet"))
    np.testing.assert_array_equal(found.pixels, PIXELS)
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.name.endswith(":train")


@pytest.mark.parametrize("under", ["", "data"])
def test_a_parquet_folder_with_splits(tmp_path, under):
    for i in (0, 1):
        part = slice(6 * i, 6 * i + 6)
        shard = tmp_path / under / f"train-0000{i}-of-00002.parquet"
        parquet(shard, pictures=PIXELS[part], labels=LABELS[part])
    parquet(tmp_path / under / "test.parquet", pictures=GREY[:4], labels=LABELS[:4])
    train, test = load(str(tmp_path)), load(f"{tmp_path}:test")
    np.testing.assert_array_equal(train.pixels, PIXELS)
    np.testing.assert_array_equal(test.pixels, GREY[:4])
    assert train.name == f"{tmp_path.name}:train"
    refused(f"{tmp_path}:dev", r"has no split 'dev'; expected one of .*train")


def test_an_image_folder(tmp_path):
    for i, picture in enumerate(PIXELS):
        (tmp_path / "abc"[i % 3]).mkdir(exist_ok=True)
        (tmp_path / "abc"[i % 3] / f"{i:02}.png").write_bytes(png(picture))
    found = load(str(tmp_path))
    assert found.classes == ("a", "b", "c")
    for image, label in zip(found.pixels, found.labels, strict=True):
        assert LABELS[np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))[0]] == label
    assert len(found) == 12


def test_grey_and_coloured_images_become_coloured(tmp_path):
    found = load(parquet(tmp_path / "train.parquet", pictures=[GREY[0], PIXELS[1]], labels=[0, 1]))
    np.testing.assert_array_equal(found.pixels, [GREY[0].repeat(3, axis=0), PIXELS[1]])


def test_images_of_different_sizes(tmp_path):
    path = parquet(tmp_path / "train.parquet", pictures=[pixels(1, (6, 9))[0], PIXELS[1]], labels=[0, 1])
    refused(path, "2 different sizes")
    assert load(path, size=(3, 7)).pixels.shape == (2, 3, 3, 7)


def test_images_of_one_size_are_left_at_it(tmp_path):
    np.testing.assert_array_equal(load(parquet(tmp_path / "train.parquet"), size=(9, 9)).pixels, PIXELS)


def test_missing_columns_are_named(tmp_path):
    refused(parquet(tmp_path / "a.parquet", image="foto"), "has the columns foto, label; expected one called image")
    refused(parquet(tmp_path / "b.parquet", label="class"), "has the columns image, class; expected one called label")


def test_too_many_pixels_are_sampled(tmp_path):
    path = parquet(tmp_path / "train.parquet")
    limit = 5 * PIXELS[0].nbytes
    found, again, other = (load(path, max_bytes=limit, seed=seed) for seed in (0, 0, 1))
    assert len(found) == 5
    assert found.digest == again.digest != other.digest
    for image, label in zip(found.pixels, found.labels, strict=True):
        assert LABELS[np.flatnonzero((image == PIXELS).all(axis=(1, 2, 3)))[0]] == label
    assert len(load(path, max_bytes=1)) == 1
    assert len(load(path, max_bytes=12 * PIXELS[0].nbytes)) == 12


BROKEN = b"\x89PNG and then nothing"


@pytest.mark.parametrize(
    ("pictures", "labels"),
    [
        ([PIXELS[0], BROKEN], [0, 1]),
        ([BROKEN, PIXELS[0]], [0, 1]),
        ([None, PIXELS[0]], [0, 1]),
        ([PIXELS[0], None], [0, 1]),
        ([PIXELS[0], PIXELS[1]], ["ant", "bee"]),
        ([PIXELS[0], PIXELS[1]], [0, None]),
        ([PIXELS[0], PIXELS[1]], [0, -1]),
    ],
    ids=["broken-image", "broken-first", "no-first", "no-image", "text-label", "no-label", "negative-label"],
)
def test_rows_that_cannot_be_read_are_refused(tmp_path, pictures, labels):
    refused(parquet(tmp_path / "train.parquet", pictures=pictures, labels=labels), "train")


def test_a_column_of_numbers_is_no_column_of_images(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table({"image": [1, 2], "label": [0, 1]}), tmp_path / "train.parquet")
    refused(str(tmp_path / "train.parquet"), "train")


def test_paths_that_hold_no_data(tmp_path):
    refused(str(tmp_path), "neither .parquet files nor images")
    refused(str(tmp_path / "none"), "no such file or folder")
    refused("./none.parquet", "no such file or folder")
    (tmp_path / "a.csv").write_text("x")
    refused(str(tmp_path / "a.csv"), "was expected")
    (tmp_path / "train.parquet").write_text("x")
    refused(str(tmp_path / "train.parquet"), "cannot be read as a data set")


def test_take_digest_and_summary():
    data = Labelled(PIXELS, LABELS, ("a", "b", "c"), "toy")
    part = data.take(np.array([5, 1]))
    np.testing.assert_array_equal(part.pixels, PIXELS[[5, 1]])
    assert part.labels.tolist() == [2, 1]
    assert part.digest != data.take(np.array([1, 5])).digest
    assert data.digest == Labelled(PIXELS.copy(), LABELS.astype(np.int32), None, "other").digest
    wanted = {"name": "toy", "digest": data.digest, "images": 12, "shape": [3, 4, 5], "classes": ["a", "b", "c"]}
    assert summary(data) == wanted
