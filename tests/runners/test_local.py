"""Who is examined when: models are taken as there is room for them, and fetched while others are open."""

from __future__ import annotations

import threading
import time

import pytest

from fp_audit.audit import Job, Outcome
from fp_audit.errors import UnavailableTarget
from fp_audit.runners import AHEAD, local
from fp_audit.sandbox import Sandbox
from fp_audit.sources._base import Source, SourceOptions
from fp_audit.targets import Located
from fp_audit.types import Artifact, File, Skipped


class Shelf(Source):
    """Models that are not there; says who is fetched and who was given back."""

    name, summary, order = "shelf", "for tests", 0
    accepts = listings = read = missing_bytes = None

    def __init__(self) -> None:
        super().__init__(SourceOptions())
        self.fetched, self.released = [], []

    def fetch(self, artifact):
        self.fetched.append(artifact.target)
        raise UnavailableTarget("it is not there")

    def release(self, artifact):
        self.released.append(artifact.target)


Shelf.__abstractmethods__ = frozenset()


def models(shelf, count):
    files = (File("model.onnx", 9, sha256="0" * 64),)
    return [Located(Artifact(str(i), "onnx", files, "model.onnx", None, "r", "l"), shelf) for i in range(count)]


@pytest.fixture
def job(registered):
    from fp_audit import victims

    folder = victims.folder("owner")
    return Job({folder: victims.load(folder)})


def test_models_are_taken_as_there_is_room_for_them(job):
    taken = []

    def located():
        for item in models(Shelf(), 50):
            taken.append(item)
            yield item

    outcomes = local.run(located(), job, jobs=1)
    next(outcomes)
    assert len(taken) <= 1 + AHEAD + 1
    assert len(list(outcomes)) == 49


def test_what_is_skipped_is_passed_on_and_a_failure_is_a_skipped_model(job):
    shelf = Shelf()
    first, second, third = models(shelf, 3)
    gone = Skipped("x", "why")
    outcomes = list(local.run([gone, gone, gone, first, gone, second, third], job, jobs=2))
    assert outcomes.count(gone) == 4
    assert {item.reason for item in outcomes if item != gone} == {"it is not there"}
    assert sorted(shelf.released) == sorted(shelf.fetched) == ["0", "1", "2"]


def test_a_bug_is_not_swallowed(job, monkeypatch):
    monkeypatch.setattr("fp_audit.audit.examine", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(local.run(models(Shelf(), 3), job, jobs=1))


def test_threads_end_with_the_scan(job):
    before = threading.active_count()
    outcomes = local.run(models(Shelf(), 20), job, jobs=2)
    next(outcomes)
    outcomes.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_more_children_live_than_were_asked_for():
    started = []
    with Sandbox(children=1) as sandbox:
        first = sandbox.child("fp_audit.sandbox._probe:attempts", ())
        thread = threading.Thread(
            target=lambda: started.append(sandbox.child("fp_audit.sandbox._probe:attempts", ())), daemon=True
        )
        thread.start()
        thread.join(0.3)
        assert not started
        first.close()
        thread.join(20)
        assert len(started) == 1
        assert not isinstance(started[0], Outcome)


def test_a_closed_sandbox_starts_nothing():
    from fp_audit.errors import SandboxCrash

    sandbox = Sandbox()
    sandbox.close()
    with pytest.raises(SandboxCrash, match="closed"):
        sandbox.child("fp_audit.sandbox._probe:attempts", ())
