"""An index of real model files: what is found, what is not opened twice, what damaged files do."""

from __future__ import annotations

import shutil
import sqlite3

import numpy as np
import pytest
from builders import hf_folder
from safetensors.numpy import load_file, save_file

from fp_audit import indexing, victims
from fp_audit.errors import UsageError, VictimError
from fp_audit.index import Index, Place
from fp_audit.sketches import sketch
from fp_audit.sources._base import SourceOptions
from fp_audit.types import Fingerprint, Skipped
from fp_audit.victims import Victim

LOCAL = SourceOptions(offline=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``mine``, a noisy copy with other names, two strangers and a broken file."""
    root = tmp_path_factory.mktemp("indexed")
    for seed, name in enumerate(["mine", "stranger", "another"]):
        hf_folder(root / name, seed=seed)
    shutil.copytree(root / "mine", root / "noisy")
    rng = np.random.default_rng(0)
    tensors = load_file(root / "mine" / "model.safetensors")
    noisy = {
        name: value + 0.05 * value.std() * rng.normal(size=value.shape).astype(np.float32)
        if value.dtype == np.float32
        else value
        for name, value in tensors.items()
    }
    save_file(noisy, root / "noisy" / "model.safetensors", metadata={"format": "pt"})
    shutil.copytree(root / "mine", root / "broken")
    (root / "broken" / "model.safetensors").write_bytes(b"\xff" * 100)
    return root


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path / "i.sqlite3", create=True) as opened:
        yield opened


def built(models, index, *names):
    return list(indexing.build([str(models / name) for name in names], index, LOCAL, jobs=1))


def test_built_searched_and_built_again(models, index, tmp_path, monkeypatch):
    first = built(models, index, "stranger", "noisy", "broken")
    assert [item.target for item in first if isinstance(item, Skipped)] == [str(models / "broken")]
    assert sorted(place.name for place, new in (item for item in first if isinstance(item, tuple)) if new) == [
        str(models / "noisy"),
        str(models / "stranger"),
    ]
    (found,) = indexing.search([str(models / "mine")], index, LOCAL, count=5)
    assert [near.place.name for near in found.near] == [str(models / "noisy"), str(models / "stranger")]
    assert [near.similar for near in found.near] == [True, False]
    assert [near.shared for near in found.near] == [1.0, 1.0]

    shutil.copytree(models / "noisy", tmp_path / "copy")  # known content: a place is added, nothing is opened
    monkeypatch.setattr(indexing, "_open", lambda *_: pytest.fail("opened again"))
    again = list(indexing.build([str(models / "noisy"), str(tmp_path / "copy")], index, LOCAL))
    assert [new for _, new in again] == [False, True]
    assert len(index) == 3
    (place,) = (near.place for near in index.nearest(sketch_of(models / "noisy"), 1, exclude=str(models / "noisy")))
    assert place == Place(str(tmp_path / "copy"), str(tmp_path / "copy"))


def sketch_of(folder):
    return sketch(load_file(folder / "model.safetensors").values())


def test_what_is_in_the_index_is_no_neighbour_of_itself(models, index):
    built(models, index, "mine", "stranger")
    (found,) = indexing.search([str(models / "mine")], index, LOCAL, count=5)
    assert [near.place.name for near in found.near] == [str(models / "stranger")]


def test_an_interrupted_build_goes_on(models, tmp_path):
    path = tmp_path / "i.sqlite3"
    with Index(path, create=True) as index:
        next(item for item in indexing.build([str(models / "mine"), str(models / "noisy")], index, LOCAL, jobs=1))
    with Index(path) as index:
        assert len(index) == 1
        again = built(models, index, "mine", "noisy")
        assert sorted(new for _, new in again) == [False, True]


def test_victims_need_no_model(models, index, tmp_path, monkeypatch):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
    tensors = {f"t{i}": value for i, value in enumerate(load_file(models / "mine" / "model.safetensors").values())}
    weights = Fingerprint("weights", {}, {name: value for name, value in tensors.items() if value.ndim > 1}, {})
    base = Victim("mine", "x", None, "huggingface", None, None, {"weights": weights}, {})
    victims.save(base, victims.folder("mine"))
    victims.save(Victim("bare", "x", None, "huggingface", None, None, {}, {}), victims.folder("bare"))
    built(models, index, "noisy", "another")
    skipped, found = indexing.search_victims((), index, count=1)
    assert (skipped.target, "without the method weights" in skipped.reason) == ("bare", True)
    assert (found.name, found.near[0].place.name, found.near[0].similar) == ("mine", str(models / "noisy"), True)
    with pytest.raises(VictimError, match="nobody"):
        list(indexing.search_victims(("nobody",), index, count=1))


def test_a_repository_is_known_by_its_hashes(models, index, hub):
    shutil.copytree(models / "noisy", hub.folder / "org" / "noisy")
    ((place, new),) = indexing.build(["org/"], index, SourceOptions())
    assert new
    assert place.name == place.address
    assert place.name.startswith("org/noisy@")
    hub.forget()
    assert [new for _, new in indexing.build(["org/noisy"], index, SourceOptions())] == [False]
    assert not [request for request in hub.requests if "model.safetensors" in request]


def test_files_that_are_no_index(tmp_path, models):
    with pytest.raises(UsageError, match="no such index"):
        Index(tmp_path / "none")
    (tmp_path / "text").write_text("text" * 1000)
    with pytest.raises(UsageError, match="not an index"):
        Index(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE x (y)")
    with pytest.raises(UsageError, match="another version"):
        Index(tmp_path / "other")


def test_a_damaged_entry(tmp_path, models, index):
    index.add(Place("a", "a"), "d", sketch_of(models / "mine"))
    index.add(Place("b", "b"), "e", sketch_of(models / "noisy"))
    index._file.execute("UPDATE sketches SET views = x'00' WHERE digest = 'd'")
    with pytest.raises(UsageError, match="damaged"):
        index.nearest(sketch_of(models / "mine"), 1)
