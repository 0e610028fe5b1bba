"""Models on the cores of this machine: a few threads, each with one model, and as many sandboxed children as asked for.

Fetching and hashing need no child: a model or two more than there are children are in the hands of a thread, so that
the next model is on this disk when a child becomes free, and never more than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from queue import SimpleQueue
from threading import Thread
from typing import Self

from fp_audit import audit
from fp_audit.audit import Job, Outcome
from fp_audit.engine import cores
from fp_audit.runners import AHEAD
from fp_audit.sandbox import Sandbox
from fp_audit.targets import Located
from fp_audit.types import Skipped
from fp_audit.worker import prepare


def run(located: Iterable[Located | Skipped], job: Job, *, jobs: int | None = None) -> Iterator[Outcome | Skipped]:
    """Examine models, several at a time, and yield each outcome as it comes.

    Args:
        located: from ``targets.locate``; what is ``Skipped`` already is passed on.
        job: what to do with each.
        jobs: models that are open at a time; by default as many as there are cores.
    """
    stream, first = iter(located), list[Located]()
    while len(first) < (jobs or cores()) and (item := next(stream, None)) is not None:
        if isinstance(item, Skipped):
            yield item
        else:
            first.append(item)
    workers = max(1, len(first))
    job = replace(job, load=replace(job.load, threads=job.load.threads or max(1, cores() // workers)))
    with (
        Sandbox(job.limits, children=workers, prepare=prepare(job.victims)) as sandbox,
        _Hands(workers + AHEAD, job, sandbox) as hands,
    ):
        for item in chain(first, stream):
            if isinstance(item, Skipped):
                yield item
                continue
            if hands.full:
                yield hands.take()
            hands.give(item)
        while hands.busy:
            yield hands.take()


class _Hands:
    """Threads that examine what they are given.

    They are daemons, unlike those of ``concurrent.futures``: whoever interrupts a scan does not wait for downloads.
    """

    def __init__(self, count: int, job: Job, sandbox: Sandbox) -> None:
        self._count, self._job, self._sandbox = count, job, sandbox
        self._todo: SimpleQueue[Located | None] = SimpleQueue()
        self._done: SimpleQueue[Outcome | Skipped | BaseException] = SimpleQueue()
        self._threads = 0
        self.busy = 0
        """Models that were given and not yet taken back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let the threads end when they have nothing left to do."""
        for _thread in range(self._threads):
            self._todo.put(None)

    @property
    def full(self) -> bool:
        """Whether every thread has a model."""
        return self.busy == self._count

    def give(self, item: Located) -> None:
        """Have a model examined; the server that opens such models starts now, so that it imports meanwhile."""
        access = audit.lowest(item.artifact.adapter, self._job)
        if access is not None:
            self._sandbox.warm(audit.preload(item.artifact.adapter, access))
        self.busy += 1
        if self._threads < self.busy:
            self._threads += 1
            Thread(target=self._work, daemon=True).start()
        self._todo.put(item)

    def take(self) -> Outcome | Skipped:
        """Wait for the next outcome."""
        outcome = self._done.get()
        self.busy -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            try:
                self._done.put(audit.examine(item, self._job, self._sandbox))
            except BaseException as error:  # a bug: it is raised where the scan was asked for
                self._done.put(error)
