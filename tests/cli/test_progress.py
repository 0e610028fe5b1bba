"""What is said while a scan runs."""

from __future__ import annotations

import pytest

from fp_audit.audit import Outcome
from fp_audit.cli import _progress
from fp_audit.types import Access, Artifact, Cost, Evidence, Skipped

NOW = 1000.0


@pytest.fixture
def clock(monkeypatch):
    times = [NOW]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: times[0])
    return times


def outcome(p, *, failure=None, examined=None):
    found = (Evidence("sac", Access.QUERIES, 0.5, p, None, 100),)
    artifact = Artifact("t", "onnx", (), "t", None)
    return Outcome(artifact, {"a": found, "b": found[:0]}, {"a": {}, "b": {}}, failure, Cost(examined=examined))


def test_models_are_counted_by_what_they_look_like_so_far(clock):
    tally = _progress.Tally(0.01)
    seen = [
        outcome(0.001),
        outcome(0.3),
        outcome(0.02),
        outcome(None),
        outcome(0.5, failure="it died"),
        Skipped("t", ""),
    ]
    for item in seen:
        tally.add(item)
    assert tally.note(6) == "6 of 6 models: 1 derived?, 2 independent?, 2 inconclusive, 1 skipped"


def test_the_time_left_is_that_of_models_that_were_examined_now(clock):
    tally = _progress.Tally(0.01)
    for _ in range(10):
        tally.add(outcome(0.3, examined="2026-11-21T00:00:00+00:00"))
    assert tally.note(20) == "10 of 20 models: 10 independent?, 10 from earlier scans"
    clock[0] += 30.0
    for _ in range(3):
        tally.add(outcome(0.3))
    assert tally.note(20) == "13 of 20 models: 13 independent?, 10 from earlier scans, 0:01:10 left"


def test_off_a_terminal_lines_are_sparse(clock, capsys):
    with _progress.shown() as progress:
        for done in range(100):
            clock[0] += 1.0
            progress("scanning", done / 100, f"{done} of 100 models")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["scanning; 0 of 100 models", "scanning 10%; 10 of 100 models"]
    assert len(lines) == 10
