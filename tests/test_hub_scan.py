"""The same models behind a real small hub: the same verdicts, only the needed bytes, no request when offline."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from fp_audit import Finding, ScanOptions, Skipped, scan
from fp_audit.cli import cli
from fp_audit.types import Access

if TYPE_CHECKING:
    from hub_server import HubServer

MODELS = {
    "int8": "thief/int8",
    "renamed": "thief/renamed",
    "stranger": "other/onnx",
}


@pytest.fixture
def published(registered, hub: HubServer, tmp_path):
    """The models as repositories of ``org``, with files that nobody needs; the register copied to this home."""
    home = tmp_path / "home"
    shutil.copytree(_register(), home / "victims", dirs_exist_ok=True)
    for name, folder in MODELS.items():
        shutil.copytree(registered.models / folder, hub.folder / "org" / name)
        (hub.folder / "org" / name / "README.md").write_text("# a model")
        (hub.folder / "org" / name / "training_log.bin").write_bytes(bytes(200_000))
    return hub


_REGISTER = []


@pytest.fixture(autouse=True, scope="module")
def remembered_register(registered):
    """``hub`` points FP_AUDIT_HOME elsewhere: remember where the victims lie."""
    from fp_audit import victims

    _REGISTER[:] = [victims.home() / "victims"]


def _register():
    return _REGISTER[0]


def by_target(results):
    return {item.target: item.verdict if isinstance(item, Finding) else item.reason for item in results}


def downloads(hub):
    return [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]


def test_an_account_has_the_verdicts_of_the_folder_and_offline_needs_no_request(published: HubServer, registered):
    local = by_target(scan([str(registered.models / folder) for folder in MODELS.values()], "owner"))
    published.forget()
    first = list(scan("org/", "owner"))
    assert by_target(first) == {
        f"org/{name}": local[str(registered.models / folder)] for name, folder in MODELS.items()
    }
    assert by_target(first)["org/renamed"] == "identical"
    assert by_target(first)["org/int8"] == "derived"
    assert all(len(item.revision) == 40 for item in first)
    assert not [request for request in downloads(published) if "README" in request or "training_log" in request]
    sizes = sum((registered.models / MODELS[name] / "model.onnx").stat().st_size for name in ("int8", "stranger"))
    assert sizes <= published.bytes_sent <= sizes + 20_000  # and the configurations

    published.forget()
    again = list(scan("org/", "owner", ScanOptions(offline=True)))
    assert published.requests == []
    assert [(f.target, f.verdict, f.p_value, f.revision) for f in again] == [
        (f.target, f.verdict, f.p_value, f.revision) for f in first
    ]


def test_a_copy_is_found_from_the_listing(published: HubServer):
    (finding,) = scan("org/renamed", "owner")
    assert finding.verdict == "identical"
    assert not [request for request in downloads(published) if "safetensors" in request]
    assert published.bytes_sent < 10_000
    assert (finding.cost.requests, finding.cost.bytes_read) == (2, published.bytes_sent)  # listing and config.json
    assert finding.cost.bytes_avoided > 100_000


def test_a_revision_is_pinned(published: HubServer, registered):
    shutil.copytree(registered.models / "other" / "onnx", published.folder / "org" / "int8@old")
    old, new = scan(["org/int8@old", "org/int8"], "owner", ScanOptions(depth=Access.WEIGHTS))
    assert old.revision != new.revision
    assert new.verdict == "derived"
    assert old.verdict != "derived"


def test_offline_without_a_first_scan(published: HubServer):
    (skipped,) = scan("org/int8", "owner", ScanOptions(offline=True))
    assert isinstance(skipped, Skipped)
    assert "offline" in skipped.reason
    assert published.requests == []


def test_a_limit_on_bytes(published: HubServer):
    (skipped,) = scan("org/int8", "owner", ScanOptions(max_bytes=100))
    assert "--max-bytes" in skipped.reason
    assert published.bytes_sent == 0


def test_a_gated_model_is_skipped_and_the_others_are_not(published: HubServer):
    (published.folder / "org" / "int8" / ".gated").touch()
    found = by_target(scan("org/", "owner", ScanOptions(depth=Access.IDENTITY)))
    assert len(found) == 3
    found = by_target(scan(["org/int8", "org/renamed"], "owner", ScanOptions(depth=Access.WEIGHTS)))
    assert found["org/renamed"] == "identical"
    assert "gated" in found["org/int8"]


def test_a_download_that_breaks_is_skipped(published: HubServer):
    published.fail("model.onnx", 403)
    (skipped,) = scan("org/stranger", "owner", ScanOptions(depth=Access.WEIGHTS))
    assert isinstance(skipped, Skipped)
    assert skipped.target == "org/stranger"


def test_an_account_that_is_not_there(published: HubServer):
    (skipped,) = scan("nobody/", "owner")
    assert isinstance(skipped, Skipped)


def test_a_dry_run_downloads_no_weights(published: HubServer, registered):
    result = CliRunner().invoke(cli, ["scan", "org/", "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    assert not [request for request in downloads(published) if "config.json" not in request]
    size = (registered.models / MODELS["int8"] / "model.onnx").stat().st_size
    assert f"org/int8  onnx  {size:,} bytes to download" in result.stdout
    assert "3 models" in result.stdout
