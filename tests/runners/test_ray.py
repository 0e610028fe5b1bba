"""The same scan on a local cluster of two worker nodes, each with one core."""

from __future__ import annotations

import os
import shutil

import pytest

from fp_audit import ScanOptions, Skipped, scan
from fp_audit.errors import UsageError
from fp_audit.types import Access

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed")


@pytest.fixture
def cluster(home, monkeypatch):
    """Two worker nodes; the head runs nothing."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()


@needs_ray
def test_a_cluster_finds_what_this_machine_finds(cluster, registered, tmp_path):
    for name, model in {"a": registered.int8, "b": registered.stranger, "c": registered.int8}.items():
        (tmp_path / "many" / name).mkdir(parents=True)
        shutil.copy(model, tmp_path / "many" / name)
    (tmp_path / "many" / "text.onnx").write_text("text")
    here = list(scan(str(tmp_path / "many"), "owner", ScanOptions(depth=Access.WEIGHTS, jobs=1)))
    there = list(scan(str(tmp_path / "many"), "owner", ScanOptions(depth=Access.WEIGHTS, engine="ray")))
    assert [plain(item) for item in there] == [plain(item) for item in here]
    assert {item.verdict for item in there if not isinstance(item, Skipped)} >= {"derived"}
    assert not ray.is_initialized()
    kept = list(scan(str(tmp_path / "many"), "owner", ScanOptions(depth=Access.WEIGHTS, resume=True)))
    assert [plain(item) for item in kept] == [plain(item) for item in there]
    assert {item.cost.examined is not None for item in kept if not isinstance(item, Skipped)} == {True}


def plain(item):
    """Leave out what depends on the machine: time, and the last digits, which depend on the number of threads."""
    if isinstance(item, Skipped):
        return item
    evidence = [(each.method, each.access, round(each.score, 4)) for each in item.evidence]
    return item.target, item.verdict, item.p_value, item.q_value, item.reason, evidence, item.cost.queries


@needs_ray
def test_a_cluster_that_is_not_there(home, registered, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UsageError, match="no cluster can be reached"):
        list(scan(str(registered.int8), "owner", ScanOptions(engine="ray")))


@pytest.mark.skipif(ray is not None, reason="Ray is installed")
def test_without_ray_there_is_one_clear_line(home, registered):
    with pytest.raises(UsageError, match=r"^--engine ray: .*pip install 'fp-audit\[ray\]'$"):
        list(scan(str(registered.int8), "owner", ScanOptions(engine="ray")))


def test_an_engine_that_does_not_exist():
    assert "RAY_ADDRESS" not in os.environ
    with pytest.raises(UsageError, match="expected one of local, ray"):
        ScanOptions(engine="steam")
