"""The register of victims: what is written comes back to the bit, complete or not at all."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from builders import pixels

from fp_audit import victims
from fp_audit.alignment import Probes
from fp_audit.errors import VictimError
from fp_audit.preprocess import Preprocess
from fp_audit.types import Fingerprint, Null
from fp_audit.victims import Victim

RNG = np.random.default_rng(0)
ARRAYS = {
    "queries": pixels(3, 4),
    "logits": RNG.normal(size=(3, 5)).astype(np.float32)[:, ::-1],
    "labels": np.array([1, 2, 3]),
    "half": RNG.normal(size=(2, 2)).astype(np.float16),
    "double": np.array([np.nan, -0.0, np.inf, 5e-324]),
}
VICTIM = Victim(
    name="digits",
    source="org/digits",
    revision="abc",
    adapter="onnx",
    probes=Probes(pixels(4, 6, channels=1), np.array([0, 1, 1, 0]), ("nought", "één"), 2, 0.9375),
    preprocess=Preprocess(resize=(4, 5), mean=(0.1, 0.2, 0.3), std=(0.4,), bgr=True),
    fingerprints={
        "negatives": Fingerprint("negatives", {"queries": 3, "seed": 7}, ARRAYS, {"mistakes": 3}),
        "identity": Fingerprint("identity", {"seed": 7}, {}, {"files": [{"size": 3, "sha256": "ab", "git_oid": None}]}),
    },
    nulls={"negatives": Null((0.1, 1 / 3), ("a", "b"), 0.25, related=True), "sac": Null((), ())},
    hidden={"labels": {"negatives": Null((0.2, 0.3), ("a", "b"))}, "topk": {}},
    facts={"seed": 7, "unicode": "ß"},
)
BARE = replace(VICTIM, revision=None, probes=None, preprocess=None, fingerprints={}, nulls={}, hidden={}, facts={})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def where():
    victims.save(VICTIM, victims.folder("digits"))
    return victims.folder("digits")


def same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def test_a_victim_comes_back_to_the_bit(where):
    back = victims.load(where)
    for field in fields(Victim):
        if field.name not in ("probes", "fingerprints"):
            assert getattr(back, field.name) == getattr(VICTIM, field.name), field.name
    same(back.probes.pixels, VICTIM.probes.pixels)
    same(back.probes.labels, VICTIM.probes.labels)
    assert (back.probes.classes, back.probes.count, back.probes.accuracy) == (("nought", "één"), 2, 0.9375)
    assert list(back.fingerprints) == list(VICTIM.fingerprints)
    for method, wanted in VICTIM.fingerprints.items():
        found = back.fingerprints[method]
        assert (found.method, found.options, found.facts) == (method, wanted.options, wanted.facts)
        assert set(found.arrays) == set(wanted.arrays)
        for name, array in wanted.arrays.items():
            same(found.arrays[name], array)


def test_a_bare_victim_comes_back():
    victims.save(BARE, victims.folder("digits"))
    assert victims.load(victims.folder("digits")) == BARE


def test_nothing_on_disk_is_a_pickle(where):
    assert {file.suffix for file in where.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("methods", [(), ("identity",), ("negatives",), ("negatives", "identity"), ("other",)])
def test_only_the_wanted_methods_are_read(where, methods):
    for method in {"negatives", "identity"} - set(methods):
        (where / f"{method}.safetensors").write_bytes(b"damaged")
    assert set(victims.load(where, methods).fingerprints) == set(methods) & {"negatives", "identity"}


@pytest.mark.parametrize("file", ["probes.safetensors", "negatives.safetensors", "identity.safetensors"])
def test_a_damaged_array_is_noticed(where, file):
    content = bytearray((where / file).read_bytes())
    content[-1] ^= 1
    (where / file).write_bytes(content)
    with pytest.raises(VictimError, match=f"{file} does not match its digest; register the victim again"):
        victims.load(where)


def test_a_missing_file_is_noticed(where):
    (where / "negatives.safetensors").unlink()
    with pytest.raises(VictimError):
        victims.load(where)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"x"', "{}", '{"schema_version": 1}', "\x00"])
def test_damaged_json_is_noticed(where, text):
    (where / "victim.json").write_text(text)
    with pytest.raises(VictimError) as error:
        victims.load(where)
    assert "\n" not in str(error.value)


def test_json_that_is_no_text_is_noticed(where):
    (where / "victim.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(VictimError, match="damaged"):
        victims.load(where)


def change(where, key, value):
    path = where / "victim.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("digests", {}), ("preprocess", {"colour": 1}), ("nulls", {"a": {"scores": 3}}), ("fingerprints", {"a": {}})],
)
def test_a_damaged_entry_is_noticed(where, key, value):
    change(where, key, value)
    with pytest.raises(VictimError, match="damaged"):
        victims.load(where)


@pytest.mark.parametrize(("key", "value"), [("fingerprints", ["x"]), ("nulls", ["x"]), ("preprocess", "x")])
def test_an_entry_of_another_kind_is_noticed(where, key, value):
    change(where, key, value)
    with pytest.raises(VictimError, match="damaged"):
        victims.load(where)


def test_another_schema_is_named(where):
    change(where, "schema_version", 99)
    with pytest.raises(VictimError, match=r"schema 99.*register it again"):
        victims.load(where)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "a/b", "/etc", "a\\b", ".hidden", "-x", "a\n", "a b", "ä", "x" * 65, "\x1b[31m"]
)
def test_names_that_leave_the_register_are_refused(name):
    for use in (victims.check_name, victims.folder, victims.describe, victims.remove):
        with pytest.raises(VictimError, match="cannot name a victim"):
            use(name)
    with pytest.raises(VictimError):
        victims.load_named((name,))


@pytest.mark.parametrize("name", ["a", "a..b", "mnist-lenet_2.1", "x" * 64])
def test_other_names_are_taken(name):
    assert victims.check_name(name) == name
    assert victims.folder(name) == victims.home() / "victims" / name


def test_an_existing_victim_is_not_overwritten(where):
    before = {file.name: file.read_bytes() for file in where.iterdir()}
    with pytest.raises(VictimError, match="a victim called 'digits' exists"):
        victims.save(BARE, where)
    assert {file.name: file.read_bytes() for file in where.iterdir()} == before
    assert [path.name for path in where.parent.iterdir()] == ["digits"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_save_leaves_nothing(monkeypatch, error):
    original, calls = victims._write_arrays, []

    def interrupted(path, arrays):
        calls.append(path)
        if len(calls) == 2:
            raise error
        return original(path, arrays)

    monkeypatch.setattr(victims, "_write_arrays", interrupted)
    with pytest.raises(error):
        victims.save(VICTIM, victims.folder("digits"))
    assert list((victims.home() / "victims").iterdir()) == []
    assert victims.names() == []


def test_a_save_that_was_killed_is_no_victim(where):
    (where.parent / ".other.123").mkdir()
    (where.parent / ".other.123" / "victim.json").write_text("{}")
    (where.parent / "empty").mkdir()
    assert victims.names() == ["digits"]


def test_numbers_that_json_does_not_know_are_not_written():
    with pytest.raises(ValueError, match="JSON"):
        victims.save(replace(VICTIM, facts={"x": float("nan")}), victims.folder("digits"))
    assert list((victims.home() / "victims").iterdir()) == []


def test_an_unknown_victim_is_refused_with_the_known_ones(where):
    assert where.exists()
    with pytest.raises(VictimError, match="no victim called 'other'; registered are: digits"):
        victims.load_named(("other",))
    with pytest.raises(VictimError, match="no victim called 'other'"):
        victims.remove("other")


def test_an_empty_register_says_how_to_fill_it():
    with pytest.raises(VictimError, match="fp-audit register"):
        victims.load_named(())


def test_victims_are_listed_described_and_removed(where):
    victims.save(replace(BARE, name="bare"), victims.folder("bare"))
    assert victims.names() == ["bare", "digits"]
    assert [v.name for v in victims.load_named(())] == ["bare", "digits"]
    assert [v.name for v in victims.load_named(("digits",))] == ["digits"]
    about = victims.describe("digits")
    assert about["fingerprints"]["negatives"] == {"options": {"queries": 3, "seed": 7}, "facts": {"mistakes": 3}}
    victims.remove("digits")
    assert victims.names() == ["bare"]
    assert not where.exists()


def test_a_damaged_victim_can_be_removed(where):
    (where / "victim.json").write_text("{")
    victims.remove("digits")
    assert not where.exists()


def test_a_kept_fingerprint_comes_back(home):
    kept = VICTIM.fingerprints["negatives"]
    where = home / "cache" / "one"
    assert victims.load_fingerprint(where) is None
    victims.save_fingerprint(kept, where)
    victims.save_fingerprint(replace(kept, facts={"second": 1}), where)
    back = victims.load_fingerprint(where)
    assert (back.method, back.options, back.facts) == (kept.method, kept.options, kept.facts)
    for name, array in kept.arrays.items():
        same(back.arrays[name], array)
    assert [path.name for path in where.parent.iterdir()] == ["one"]


@pytest.mark.parametrize("file", ["fingerprint.json", "arrays.safetensors"])
def test_a_damaged_kept_fingerprint_is_none(home, file):
    where = home / "one"
    victims.save_fingerprint(VICTIM.fingerprints["negatives"], where)
    (where / file).write_bytes(b"{}")
    assert victims.load_fingerprint(where) is None
    (where / file).unlink()
    assert victims.load_fingerprint(where) is None


def test_home_is_where_the_environment_says(monkeypatch, tmp_path):
    assert victims.home() == tmp_path
    monkeypatch.delenv("FP_AUDIT_HOME")
    assert victims.home().name == "fp-audit"
