"""The same models behind a real small hub: the same verdicts, only the needed bytes, no request when offline."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from fp_audit import Finding, ScanOptions, Skipped, scan
from fp_audit.cli import cli
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import locate_one
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


def weights(home):
    return [path for path in (home / "models").rglob("*") if path.suffix in (".onnx", ".safetensors")]


def test_a_stream_deletes_what_it_downloaded_and_nothing_else(published: HubServer, tmp_path):
    home = tmp_path / "home"
    list(scan("org/int8", "owner", ScanOptions(depth=Access.WEIGHTS)))
    (kept,) = weights(home)
    found = list(scan("org/", "owner", ScanOptions(depth=Access.WEIGHTS, stream=True, jobs=1)))
    assert len(found) == 3
    assert not [item for item in found if isinstance(item, Skipped)]
    assert weights(home) == [kept]
    again = list(scan("org/", "owner", ScanOptions(depth=Access.WEIGHTS, stream=True, resume=True)))
    assert [item.verdict for item in again] == [item.verdict for item in found]


def test_a_resumed_stream_downloads_no_weights_again(published: HubServer):
    options = ScanOptions(depth=Access.WEIGHTS, stream=True, resume=True)
    first = list(scan("org/", "owner", options))
    published.forget()
    again = list(scan("org/", "owner", options))
    assert not [request for request in downloads(published) if "config.json" not in request]
    assert [(item.target, item.verdict, item.evidence) for item in again] == [
        (item.target, item.verdict, item.evidence) for item in first
    ]
    assert all(item.cost.examined for item in again)


def test_a_file_that_another_scan_uses_is_left(published: HubServer, tmp_path):
    options = SourceOptions(stream=True)
    ours, other = (locate_one("org/int8", options) for _ in range(2))
    mine = ours.source.fetch(ours.artifact)
    theirs = other.source.fetch(other.artifact)
    ours.source.release(mine)
    assert theirs.path.exists()
    other.source.release(theirs)
    assert theirs.path.exists()  # the other source did not download it


def test_a_download_that_fails_for_a_while_is_tried_again(published: HubServer, monkeypatch):
    monkeypatch.setattr("fp_audit.sources._client.PAUSES", (0.0, 0.0, 0.0))
    published.fail("/org/stranger/resolve", 503, times=3)
    (finding,) = scan("org/stranger", "owner", ScanOptions(depth=Access.WEIGHTS))
    assert isinstance(finding, Finding)


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
