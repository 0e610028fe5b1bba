"""Identity against hashlib and git's own blob id."""

import hashlib
import sys

import pytest

from fp_audit.errors import NotApplicable
from fp_audit.fingerprints.identity import Identity
from fp_audit.subject import Subject
from fp_audit.types import File


def folder(path, **files):
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    listed = tuple(File(f.name, f.stat().st_size) for f in sorted(path.iterdir()))
    return Subject(files=listed, root=path)


@pytest.fixture
def kept(tmp_path):
    victim = folder(tmp_path / "victim", a__safetensors=b"12345678", b__bin=b"abcd", config__json=b"{}")
    return Identity().generate(victim, None, seed=0)


def test_golden_value(kept):
    first = kept.facts["files"][0]
    assert first == {
        "size": 8,
        "sha256": "ef797c8118f02dfb649607dd5d3f8c7623048c9c063d532cc95c5ed7a898a64f",
        "git_oid": hashlib.sha1(b"blob 8\x0012345678").hexdigest(),
    }
    assert [entry["size"] for entry in kept.facts["files"]] == [8, 4]


def test_a_renamed_copy_is_identical(kept, tmp_path):
    suspect = folder(tmp_path / "s", pytorch_model__bin=b"12345678", z__onnx=b"abcd", config__json=b"other")
    score = Identity().compare(kept, suspect)
    assert (score.value, score.identical, score.p_value) == (1.0, True, sys.float_info.min)
    assert score.detail == {"equal_files": ["pytorch_model.bin", "z.onnx"], "weight_files": 2}


def test_one_equal_file_of_two_counts_by_its_bytes(kept, tmp_path):
    score = Identity().compare(kept, folder(tmp_path / "s", a__bin=b"12345678", b__bin=b"abcdefgh12345678"))
    assert (score.value, score.identical) == (pytest.approx(1 / 3), False)
    assert score.p_value == sys.float_info.min
    assert "33%" in Identity.explain(score.value, score.detail, None)


def test_equal_sizes_are_no_evidence(kept, tmp_path):
    score = Identity().compare(kept, folder(tmp_path / "s", a__safetensors=b"87654321", b__bin=b"dcba"))
    assert (score.value, score.p_value, score.identical) == (0.0, None, False)


def test_equal_configurations_are_no_evidence(kept, tmp_path):
    score = Identity().compare(kept, folder(tmp_path / "s", a__safetensors=b"1", config__json=b"{}", abcd__txt=b"abcd"))
    assert (score.value, score.p_value) == (0.0, None)


@pytest.mark.parametrize("kind", ["sha256", "git_oid"])
def test_hashes_of_a_hub_are_enough(kept, kind):
    known = kept.facts["files"][0][kind]
    assert Identity().compare(kept, Subject(files=(File("x.bin", 8, **{kind: known}),))).identical
    other = Subject(files=(File("x.bin", 8, **{kind: known[::-1]}), File("y.bin", 4)))
    assert Identity().compare(kept, other).p_value is None


def test_files_of_other_sizes_are_not_read(kept, tmp_path):
    suspect = folder(tmp_path / "s", a__safetensors=b"123")
    (tmp_path / "s" / "a.safetensors").unlink()
    assert Identity().compare(kept, suspect).value == 0


def test_empty_weight_files_are_no_evidence(tmp_path):
    kept = Identity().generate(folder(tmp_path / "v", a__bin=b"", b__bin=b"1"), None, seed=0)
    with pytest.raises(NotApplicable, match="no weight files"):
        Identity().compare(kept, folder(tmp_path / "s", a__bin=b"", config__json=b"{}"))
