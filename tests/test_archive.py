"""Archives that state their digests: the same bytes each time, and nothing from elsewhere is taken on trust."""

from __future__ import annotations

import json
import re
import stat
import zipfile
from hashlib import sha256

import pytest

from fp_audit import archive
from fp_audit.errors import BundleError

ALLOWED = re.compile(r"[a-z]+/?[a-z]*\.(txt|json)")
MEMBERS = {"b.txt": b"second" * 1000, "a/a.txt": b"first"}


@pytest.fixture
def packed(tmp_path):
    archive.pack(tmp_path / "packed.zip", MEMBERS, {"about": 1})
    return tmp_path / "packed.zip"


@pytest.fixture
def into(tmp_path):
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def rezipped(path, members, manifest=None):
    """Write an archive by hand; the manifest is that of ``members`` unless given."""
    listed = {name: {"sha256": sha256(content).hexdigest(), "size": len(content)} for name, content in members}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members:
            target.writestr(name, content)
        target.writestr("manifest.json", json.dumps({"members": listed}) if manifest is None else manifest)
    return path


def test_what_was_packed_is_unpacked(packed, into):
    manifest = archive.unpack(packed, into, ALLOWED)
    assert manifest["about"] == 1
    assert manifest["members"]["a/a.txt"] == {"sha256": sha256(b"first").hexdigest(), "size": 5}
    assert {name: (into / name).read_bytes() for name in MEMBERS} == MEMBERS


def test_the_same_content_makes_the_same_bytes(packed, tmp_path):
    (tmp_path / "file").write_bytes(MEMBERS["b.txt"])
    again = {"a/a.txt": b"first", "b.txt": tmp_path / "file"}
    digest = archive.pack(tmp_path / "again.zip", again, {"about": 1})
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert digest == sha256(packed.read_bytes()).hexdigest()
    with zipfile.ZipFile(packed) as found:
        assert {entry.date_time[0] for entry in found.infolist()} == {1980}
        assert all(stat.S_IMODE(entry.external_attr >> 16) == 0o644 for entry in found.infolist())


def test_a_failure_leaves_the_older_archive(packed, tmp_path):
    before = packed.read_bytes()
    with pytest.raises(FileNotFoundError):
        archive.pack(packed, {"a.txt": tmp_path / "nothing"}, {})
    assert packed.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["packed.zip"]


@pytest.mark.parametrize("name", ["../x.txt", "/etc/x.txt", "a/../../x.txt", "c:\\x.txt", "x.exe", "a.txt\n", "a/"])
def test_names_that_no_archive_of_ours_has(name, tmp_path, into):
    path = rezipped(tmp_path / "evil.zip", [("a.txt", b"1"), (name, b"evil")])
    with pytest.raises(BundleError, match="unexpected member"):
        archive.unpack(path, into, ALLOWED)
    assert not (tmp_path / "x.txt").exists()
    assert not list(into.iterdir())


def test_what_is_no_archive(tmp_path, into):
    (tmp_path / "text.zip").write_text("text")
    (tmp_path / "empty.zip").write_bytes(b"")
    for name in ("text.zip", "empty.zip"):
        with pytest.raises(BundleError, match="not a readable zip archive"):
            archive.unpack(tmp_path / name, into, ALLOWED)
    with pytest.raises(BundleError, match="No such file"):
        archive.unpack(tmp_path / "nothing.zip", into, ALLOWED)
    with pytest.raises(BundleError, match="directory"):
        archive.unpack(into, into, ALLOWED)


def test_every_truncation_is_refused(packed, tmp_path, into):
    content = packed.read_bytes()
    for length in range(0, len(content), 29):
        (tmp_path / "short.zip").write_bytes(content[:length])
        with pytest.raises(BundleError):
            archive.unpack(tmp_path / "short.zip", into, ALLOWED)


def test_every_changed_byte_is_refused_or_changes_nothing(packed, tmp_path, into):
    content = packed.read_bytes()
    for at in range(0, len(content), 7):
        (tmp_path / "changed.zip").write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        try:
            archive.unpack(tmp_path / "changed.zip", into, ALLOWED)
        except BundleError:
            continue
        assert {name: (into / name).read_bytes() for name in MEMBERS} == MEMBERS


def test_two_members_of_one_name(tmp_path, into):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = rezipped(tmp_path / "two.zip", [("a.txt", b"1"), ("a.txt", b"2")])
    with pytest.raises(BundleError, match="two members of one name"):
        archive.unpack(path, into, ALLOWED)


@pytest.mark.parametrize(("limit", "least"), [("MAX_BYTES", 100), ("MAX_MEMBERS", 2)])
def test_archives_that_are_too_large(packed, into, monkeypatch, limit, least):
    monkeypatch.setattr(archive, limit, least)
    with pytest.raises(BundleError, match="too large"):
        archive.unpack(packed, into, ALLOWED)


def test_a_member_that_is_larger_than_it_says(tmp_path, into, monkeypatch):
    bomb = rezipped(tmp_path / "bomb.zip", [("a.txt", bytes(10**7))])
    content, size = bomb.read_bytes(), (10**7).to_bytes(4, "little")
    assert content.count(size) == 2
    bomb.write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    with pytest.raises(BundleError):
        archive.unpack(bomb, into, ALLOWED)
    assert sum(path.stat().st_size for path in into.rglob("*")) <= 1000


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        ("", "manifest.json: malformed JSON"),
        ("{", "malformed JSON"),
        ("[]", "expected a JSON object"),
        ('{"members": NaN}', "NaN is no number"),
        ("[" * 100_000, "malformed JSON"),
        (b"\xff\xfe", "malformed JSON"),
        ("{}", "does not list the members"),
        ('{"members": {}}', "unexpected member 'a.txt'"),
        ('{"members": {"a.txt": 1}}', "a.txt does not match its sha256"),
        ('{"members": {"a.txt": {"sha256": "00"}}}', "a.txt does not match its sha256"),
    ],
)
def test_manifests_that_are_none(tmp_path, into, manifest, says):
    path = rezipped(tmp_path / "odd.zip", [("a.txt", b"1")], manifest)
    with pytest.raises(BundleError, match=re.escape(says)):
        archive.unpack(path, into, ALLOWED)


def test_a_member_is_missing(tmp_path, into):
    listed = {"members": {"b.txt": {"sha256": "00"}, "a.txt": {"sha256": sha256(b"1").hexdigest()}}}
    path = rezipped(tmp_path / "less.zip", [("a.txt", b"1")], json.dumps(listed))
    with pytest.raises(BundleError, match=r"'b.txt' is missing"):
        archive.unpack(path, into, ALLOWED)


def test_no_manifest(tmp_path, into):
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as target:
        target.writestr("a.txt", b"1")
    with pytest.raises(BundleError, match=r"manifest.json is missing"):
        archive.unpack(tmp_path / "none.zip", into, ALLOWED)


def test_json_that_is_too_large(packed, into, monkeypatch):
    monkeypatch.setattr(archive, "MAX_JSON", 10)
    with pytest.raises(BundleError, match="bytes of JSON"):
        archive.unpack(packed, into, ALLOWED)
