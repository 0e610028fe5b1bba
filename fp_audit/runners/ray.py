"""Models on a Ray cluster: a task for each, placed, retried and moved off lost nodes by Ray itself.

The address of the cluster is in ``RAY_ADDRESS``; without it, Ray is started on this machine. Every node has fp-audit
installed, opens suspects in sandboxes of its own, and downloads what comes from a hub itself; models in folders must be
reachable there under the same path. Victims travel with the job. Results come back to this process, which keeps them.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from fp_audit import audit, victims
from fp_audit.audit import Job, Outcome
from fp_audit.engine import cores
from fp_audit.errors import UsageError
from fp_audit.sandbox import Sandbox
from fp_audit.targets import Located
from fp_audit.types import Skipped

RETRIES = 2
"""Times that a model is examined again after its node or process was lost."""


def run(located: Iterable[Located | Skipped], job: Job, *, jobs: int | None = None) -> Iterator[Outcome | Skipped]:
    """Examine models on all nodes of a cluster, one to a core, and yield each outcome as it comes.

    Args:
        located: from ``targets.locate``; what is ``Skipped`` already is passed on.
        job: what to do with each.
        jobs: models at a time; by default as many as the cluster has cores.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
    """
    with _connected(jobs) as ray:
        task = ray.remote(_examine).options(num_cpus=1, max_retries=RETRIES, name="fp-audit")
        shared, scan = ray.put(replace(job, load=replace(job.load, threads=job.load.threads or 1))), uuid4().hex
        most = jobs or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # a node that becomes free need not wait
        pending: dict[Any, Located] = {}
        for item in located:
            if isinstance(item, Skipped):
                yield item
                continue
            if len(pending) == most:
                yield _next(ray, pending)
            pending[task.remote(_absolute(item), shared, scan)] = item
        while pending:
            yield _next(ray, pending)


def _next(ray: Any, pending: dict[Any, Located]) -> Outcome | Skipped:  # noqa: ANN401
    """Wait for one task; one that Ray could not save is a skipped model."""
    (done, *_), _ = ray.wait(list(pending), num_returns=1)
    item = pending.pop(done)
    try:
        outcome: Outcome | Skipped = ray.get(done)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Skipped(item.artifact.target, f"the cluster lost it {RETRIES + 1} times: {lines[0]}")
    return outcome


def _absolute(item: Located) -> Located:
    """Name the folder of a local model so that it means the same in another process."""
    root = item.artifact.root
    return item if root is None else replace(item, artifact=replace(item.artifact, root=root.absolute()))


@contextmanager
def _connected(jobs: int | None) -> Iterator[Any]:
    """Give the module, connected to a cluster; one that was not connected before is left, or ended, afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray: Ray is not installed: pip install 'fp-audit[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    ours = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": jobs or cores(), "include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level="ERROR", **ours)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(f"--engine ray: no cluster can be reached: {reason}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


_HERE: dict[str, _Node] = {}
"""In a worker process: the scan that it works for."""


def _examine(item: Located, job: Job, scan: str) -> Outcome | Skipped:
    """On a node: examine one model."""
    if scan not in _HERE:
        while _HERE:
            _HERE.popitem()[1].close()
        _HERE[scan] = _Node(job)
        atexit.register(_HERE[scan].close)
    here = _HERE[scan]
    return audit.examine(item, here.job, here.sandbox)


class _Node:
    """What a worker process keeps between models: a sandbox with its warm servers, and the victims as files."""

    def __init__(self, job: Job) -> None:
        self._folder = TemporaryDirectory(prefix="fp-audit-", ignore_cleanup_errors=True)
        copies = {Path(self._folder.name) / victim.name: victim for victim in job.victims.values()}
        for path, victim in copies.items():
            victims.save(victim, path)
        self.job = replace(job, victims=copies)
        self.sandbox = Sandbox(job.limits)

    def close(self) -> None:
        """End the servers and delete the victims."""
        self.sandbox.close()
        self._folder.cleanup()
