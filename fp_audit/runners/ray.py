"""Models on a Ray cluster: a task for each, placed, retried and moved off lost nodes by Ray itself.

The address of the cluster is in ``RAY_ADDRESS``; without it, Ray is started on this machine. Every node has fp-audit
installed and the victims registered (in ``FP_AUDIT_HOME`` of the caller, else in its own): fingerprints, which are
confidential, do not travel, and their commitments are compared. It opens suspects in sandboxes of its own, and
downloads what comes from a hub itself; models in folders must be reachable there under the same path. Results come back
to this process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from fp_audit import audit, victims
from fp_audit.audit import Job, Outcome
from fp_audit.engine import cores
from fp_audit.errors import UsageError, VictimError
from fp_audit.sandbox import Sandbox
from fp_audit.targets import Located
from fp_audit.types import Skipped
from fp_audit.worker import prepare

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
        settings = {"num_cpus": 1, "max_retries": RETRIES, "name": "fp-audit", "runtime_env": {"env_vars": _home()}}
        task = ray.remote(_examine).options(**settings)
        committed = {victim.name: victims.committed(folder) for folder, victim in job.victims.items()}
        here = replace(job, victims={}, load=replace(job.load, threads=job.load.threads or 1))
        shared = ray.put(_Order(uuid4().hex, here, committed))
        most = jobs or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))  # a node that becomes free need not wait
        pending: dict[Any, Located] = {}
        for item in located:
            if isinstance(item, Skipped):
                yield item
                continue
            if len(pending) == most:
                yield _next(ray, pending)
            pending[task.remote(_absolute(item), shared)] = item
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
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UsageError):
            raise UsageError(f"--engine ray: on a node: {error.cause}") from None
        raise
    return outcome


def _home() -> dict[str, str]:
    """Return the environment that nodes need beyond their own."""
    return {"FP_AUDIT_HOME": str(victims.home())} if "FP_AUDIT_HOME" in os.environ else {}


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
        _knock(os.environ.get("RAY_ADDRESS", ""))
        ray.init(log_to_driver=False, logging_level="ERROR", **ours)
    except (OSError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(f"--engine ray: no cluster can be reached: {reason}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Find out at once whether anybody listens at ``host:port``: Ray itself would try for ten minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10.0).close()


@dataclass(frozen=True)
class _Order:
    """What travels to the nodes, once."""

    scan: str
    """Name of the scan."""
    job: Job
    """Without victims."""
    committed: Mapping[str, str]
    """Name of each victim -> its commitment."""


_HERE: dict[str, tuple[Job, Sandbox]] = {}
"""In a worker process: the scan that it works for, and the sandbox with its warm servers."""


def _examine(item: Located, order: _Order) -> Outcome | Skipped:
    """On a node: examine one model."""
    if order.scan not in _HERE:
        while _HERE:
            _HERE.popitem()[1][1].close()
        job = _settled(order)
        _HERE[order.scan] = job, Sandbox(job.limits, prepare=prepare(job.victims))
    return audit.examine(item, *_HERE[order.scan])


def _settled(order: _Order) -> Job:
    """Return the job with the victims of this node.

    Raises:
        VictimError: one is not registered here, or is another one.
    """
    folders = [victims.folder(name) for name in order.committed]
    for folder in folders:
        if victims.committed(folder) != order.committed[folder.name]:
            raise VictimError(f"{folder.name} is not the victim that is scanned for: import it here")
    return replace(order.job, victims={folder: victims.load(folder) for folder in folders})
