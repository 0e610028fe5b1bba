"""Results on disk: what is found again, and what happens to a file that is damaged, full or shared."""

from __future__ import annotations

import logging
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fp_audit import results
from fp_audit.answers import Answers
from fp_audit.audit import Job, Outcome
from fp_audit.errors import UsageError
from fp_audit.model import LoadOptions
from fp_audit.preprocess import NAMED
from fp_audit.types import Access, Artifact, Cost, Evidence, File

FILES = (File("m/config.json", 7, git_oid="b" * 40), File("m/model.safetensors", 9, sha256="a" * 64))
LISTED = Artifact("org/m", "huggingface", FILES, "m", None, "c" * 40, "org/m")
JOB = Job({}, digests=True)


def outcome(artifact=LISTED, **changes) -> Outcome:
    said = Answers("logits", ("cat", "dog"), {"1" * 32: np.array([0.1, -2.5], np.float32)})
    found = Evidence(
        "sac", Access.QUERIES, 0.93, 1e-300, {"n": 8, "mean": 0.1}, 100, "says so", {"x": [1, None]}, {"p": 0.5}
    )
    made = Outcome(artifact, {"mine": (found,)}, {"mine": {"ipguard": "why"}}, None, Cost(5, 100, 0.25), {"mine": said})
    return replace(made, **changes)


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path))
    return tmp_path / results.FILE


def keep(found: Outcome, listed: Artifact = LISTED, job: Job = JOB) -> None:
    with results.opened(job, recalling=False) as kept:
        kept.note(listed, found, results.pack(found))


def recall(listed: Artifact = LISTED, job: Job = JOB) -> Outcome | None:
    with results.opened(job, recalling=True) as kept:
        return kept.recall(listed)


def test_an_outcome_comes_back_as_it_was():
    found = outcome()
    back = results.unpack(results.pack(found))
    assert replace(back, answers={}) == replace(found, answers={})
    assert back.answers["mine"].to_json() == found.answers["mine"].to_json()


def test_a_listing_alone_finds_what_was_fetched_before():
    fetched = replace(LISTED, root=Path("/somewhere"), files=tuple(replace(file, sha256="d" * 64) for file in FILES))
    keep(outcome(fetched))
    elsewhere = replace(LISTED, target="org/copy", revision="e" * 40, listing="org/copy")
    back = recall(elsewhere)
    assert back is not None
    assert (back.artifact.target, back.artifact.revision, back.artifact.root) == ("org/copy", "e" * 40, None)
    assert back.artifact.files == fetched.files
    assert back.cost.examined is not None
    assert replace(back.cost, examined=None) == outcome().cost


@pytest.mark.parametrize(
    "other",
    [
        {"files": (FILES[0], replace(FILES[1], sha256="f" * 64))},
        {"files": FILES[1:]},
        {"files": (FILES[0], replace(FILES[1], path="m/other.safetensors"))},
        {"files": (FILES[0], replace(FILES[1], sha256=None))},
        {"adapter": "timm"},
        {"entry": "."},
    ],
)
def test_another_model_is_not_found(other):
    keep(outcome())
    assert recall(replace(LISTED, **other)) is None


@pytest.mark.parametrize(
    "other",
    [
        {"depth": Access.WEIGHTS},
        {"alpha": 0.05},
        {"repeats": 1},
        {"record": True},
        {"exhaustive": True},
        {"load": LoadOptions(device="cuda")},
        {"load": LoadOptions(preprocess=NAMED["imagenet"])},
    ],
)
def test_another_job_finds_nothing(other):
    keep(outcome())
    assert recall(job=replace(JOB, **other)) is None


@pytest.mark.parametrize(
    "name", ["fp_audit.results.__version__", "fp_audit.results.versions", "fp_audit.plugins.versions"]
)
def test_another_version_finds_nothing(name, monkeypatch):
    keep(outcome())
    monkeypatch.setattr(name, "0.0.1" if "__" in name else lambda: {"torch": "0.0.1"})
    assert recall() is None


def test_limits_and_threads_do_not_change_a_result():
    keep(outcome())
    assert recall(job=replace(JOB, load=LoadOptions(threads=7))) is not None


def test_what_broke_off_is_not_kept():
    keep(outcome(failure="it died"))
    assert recall() is None


def test_a_file_on_this_disk_is_hashed_before_it_is_recognised(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"model")
    local = Artifact("m.onnx", "onnx", (File("m.onnx", 5),), "m.onnx", tmp_path)
    keep(outcome(results.hashed(local)), local)
    assert recall(local) is not None
    (tmp_path / "m.onnx").write_bytes(b"other")
    assert recall(local) is None
    (tmp_path / "m.onnx").unlink()
    assert recall(local) is None


def test_a_damaged_row_is_examined_again(path):
    keep(outcome())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE outcomes SET outcome = substr(outcome, 1, 40)")
    assert recall() is None


def test_without_digests_nothing_is_kept(path):
    keep(outcome(), job=replace(JOB, digests=False))
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to hold a header" * 50, b"SQLite format 3\0" + b"\1" * 4000]
)
def test_a_file_that_is_no_database(path, content):
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^{path} .*move it away") as error:
        keep(outcome())
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


def test_a_database_of_another_program(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(UsageError, match="move it away"):
        recall()


def test_a_full_disk_costs_no_result(path, caplog):
    with results.opened(JOB, recalling=False) as kept, caplog.at_level(logging.WARNING):
        kept._connection.execute("PRAGMA max_page_count = 4")
        for number in range(300):
            files = (replace(FILES[1], sha256=f"{number:064x}"),)
            kept.note(replace(LISTED, files=files), outcome(), np.random.default_rng(number).bytes(2000))
    assert [record.message for record in caplog.records if "full" in record.message] == [caplog.records[0].message]
    assert len(caplog.records) == 1


def test_a_home_that_cannot_be_written(path, caplog):
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        keep(outcome())
    assert "cannot be used" in caplog.text


def test_two_scans_at_once_keep_everything(path):
    def many(start):
        with results.opened(JOB, recalling=False) as kept:
            for number in range(start, start + 100):
                found = outcome(replace(LISTED, files=(replace(FILES[1], sha256=f"{number:064x}"),)))
                kept.note(found.artifact, found, results.pack(found))

    threads = [threading.Thread(target=many, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM outcomes").fetchone() == (300,)
