"""A victim in one archive: all of it comes back, and nothing that was changed on the way does."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from fp_audit import archive, exporting, victims
from fp_audit.errors import BundleError, FpAuditError, VictimError
from fp_audit.types import Fingerprint, Null
from fp_audit.victims import Victim

SECRET = np.arange(12, dtype=np.uint8).reshape(1, 1, 3, 4)


@pytest.fixture
def exported(tmp_path, monkeypatch):
    """A small victim as an archive, and an empty register to import it into."""
    made = Fingerprint("negatives", {"queries": 1}, {"queries": SECRET}, {"a": 1})
    null = Null((0.1, 0.2), ("x", "y"), accuracies=(0.5, None), parts=({}, {}))
    victim = Victim("mine", "./m", None, "onnx", None, None, {"negatives": made}, {"negatives": null}, {}, {"seed": 0})
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "owner"))
    victims.save(victim, victims.folder("mine"))
    digest = exporting.write("mine", tmp_path / "mine.zip")
    assert len(digest) == 64
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "pipeline"))
    return tmp_path / "mine.zip"


def members(path):
    with zipfile.ZipFile(path) as source:
        return {name: source.read(name) for name in source.namelist() if name != archive.MANIFEST}


def about(path):
    with zipfile.ZipFile(path) as source:
        return json.loads(source.read(archive.MANIFEST))


def repacked(path, **changed):
    """Write the archive anew with other members, digests in its manifest included."""
    archive.pack(path, {**members(path), **changed}, {k: v for k, v in about(path).items() if k != "members"})
    return path


def refused(path, kind, match):
    with pytest.raises(kind, match=match):
        exporting.read(path)
    assert victims.names() == []
    assert list((victims.home() / "victims").glob("*")) == []


def test_what_was_exported_is_imported(exported):
    victim = exporting.read(exported)
    assert victims.names() == ["mine"]
    assert (victim.fingerprints["negatives"].arrays["queries"] == SECRET).all()
    assert victim.nulls["negatives"].scores == (0.1, 0.2)
    loaded = victims.load(victims.folder("mine"))
    assert (loaded.facts, loaded.nulls) == (victim.facts, victim.nulls)
    assert victims.describe("mine")["commitment"] == about(exported)["commitment"]
    assert not (victims.folder("mine") / archive.MANIFEST).exists()


def test_nothing_is_overwritten_unless_asked(exported):
    first = exporting.read(exported)
    other = replace(first, facts={"seed": 1})
    victims.remove("mine")
    victims.save(other, victims.folder("mine"))
    with pytest.raises(VictimError, match="--replace"):
        exporting.read(exported)
    assert victims.load(victims.folder("mine")).facts == {"seed": 1}
    exporting.read(exported, replace=True)
    assert victims.load(victims.folder("mine")).facts == {"seed": 0}
    assert [path.name for path in (victims.home() / "victims").iterdir()] == ["mine"]


def test_a_changed_null_breaks_the_commitment(exported):
    data = json.loads(members(exported)["victim.json"])
    data["nulls"]["negatives"]["scores"] = [0.0, 0.0]
    refused(repacked(exported, **{"victim.json": json.dumps(data).encode()}), VictimError, "commitment")


def test_a_changed_query_breaks_its_digest(exported):
    content = bytearray(members(exported)["negatives.safetensors"])
    content[-1] ^= 1
    refused(repacked(exported, **{"negatives.safetensors": bytes(content)}), VictimError, "does not match its digest")


def test_a_whole_other_victim_is_told_by_the_commitment_alone(exported):
    data = json.loads(members(exported)["victim.json"])
    data["facts"] = {"seed": 9}
    data["commitment"] = victims.commitment(data)
    changed = repacked(exported, **{"victim.json": json.dumps(data).encode()})
    refused(changed, BundleError, "different commitments")


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.py", "..safetensors"]
)
def test_names_that_lead_elsewhere(exported, name):
    refused(repacked(exported, **{name: b"x"}), BundleError, "unexpected member")


def test_further_files(exported):
    refused(repacked(exported, **{"more.safetensors": b"x"}), BundleError, "differ over 'more.safetensors'")


@pytest.mark.parametrize("name", ["../x", "", 7, None, "a" * 65])
def test_a_name_that_is_none(exported, name):
    data = json.loads(members(exported)["victim.json"])
    data["name"] = name
    data["commitment"] = victims.commitment(data)
    refused(repacked(exported, **{"victim.json": json.dumps(data).encode()}), VictimError, "name")


def test_too_large(exported, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    refused(exported, BundleError, "too large")


def test_archives_of_another_kind(exported, tmp_path):
    archive.pack(tmp_path / "other.zip", members(exported), {"schema_version": 1})
    refused(tmp_path / "other.zip", BundleError, "another kind")
    (tmp_path / "text.zip").write_text("text")
    refused(tmp_path / "text.zip", BundleError, "not a readable zip")


def test_a_damaged_victim_is_not_exported(exported, tmp_path):
    exporting.read(exported)
    (victims.folder("mine") / "negatives.safetensors").write_bytes(b"x")
    with pytest.raises(VictimError, match="digest"):
        exporting.write("mine", tmp_path / "again.zip")
    assert not (tmp_path / "again.zip").exists()
    with pytest.raises(FpAuditError, match="no victim called 'nobody'"):
        exporting.write("nobody", tmp_path / "nobody.zip")
