"""The hub source: the real client against a real small hub (``tests/hub_server.py``)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fp_audit.errors import CorruptModel, UnavailableTarget, UnsafeModel
from fp_audit.sources._base import MAX_SMALL_FILE, SourceOptions
from fp_audit.sources.hub import HubSource
from fp_audit.types import Artifact, File, Listing, Skipped

if TYPE_CHECKING:
    from hub_server import HubServer

pytest_plugins = ("hub_server",)

CONFIG = b'{"architectures": ["ResNetForImageClassification"]}'
WEIGHTS = bytes(range(256)) * 200


def source(*, offline: bool = False, max_bytes: int | None = None) -> HubSource:
    return HubSource(SourceOptions(offline=offline, max_bytes=max_bytes))


def publish(hub: HubServer, repo: str, files: dict[str, bytes] | None = None) -> Path:
    folder = hub.folder / repo
    for name, content in (files or {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"# m"}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def listed(target: str, **options: bool) -> Listing:
    (listing,) = source(**options).listings(target)
    assert isinstance(listing, Listing)
    return listing


def artifact(listing: Listing, *names: str) -> Artifact:
    files = tuple(file for file in listing.files if file.path in names)
    assert len(files) == len(names)
    return Artifact(listing.target, "any", files, ".", root=None, revision=listing.revision, listing=listing.target)


class TestListing:
    def test_names_sizes_and_hashes_with_one_request(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        listing = listed("thief/m")
        assert listing.target == "thief/m"
        assert listing.root is None
        assert [(file.path, file.size) for file in listing.files] == [
            ("README.md", 3),
            ("config.json", len(CONFIG)),
            ("model.safetensors", len(WEIGHTS)),
        ]
        _, config, weights = listing.files
        assert config.git_oid == "dc1091438c3e674ed3adc32bda4ee295d16301f3"  # git hash-object
        assert weights.sha256 == "747ffb66d9569fce70d8e9910230ed6cca8d52100286d9e86aa03ebdbb4f69d1"  # sha256sum
        assert re.fullmatch("[0-9a-f]{40}", listing.revision or "")
        assert hub.requests == ["GET /api/models/thief/m"]

    def test_a_revision_is_pinned_to_its_commit(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        publish(hub, "thief/m@old", {"config.json": b"{}"})
        listing = listed("thief/m@old")
        assert listing.target == "thief/m"
        assert [file.path for file in listing.files] == ["config.json"]
        assert listed(f"thief/m@{listing.revision}") == listing
        assert listing.revision != listed("thief/m").revision

    def test_an_account_over_several_pages(self, hub: HubServer) -> None:
        hub.page = 2
        for number in range(5):
            publish(hub, f"thief/m{number}")
        publish(hub, "other/m")
        found = list(source().listings("thief/"))
        assert [item.target for item in found] == [f"thief/m{number}" for number in range(5)]
        assert hub.requests.count("GET /api/models") == 3
        assert len(hub.requests) == 3 + 5

    def test_a_broken_model_does_not_stop_an_account(self, hub: HubServer) -> None:
        for name in "abc":
            publish(hub, f"thief/{name}")
        hub.fail("/models/thief/b", 403)
        first, second, third = source().listings("thief/")
        assert isinstance(first, Listing)
        assert isinstance(second, Skipped)
        assert second.target == "thief/b"
        assert "token" in second.reason
        assert isinstance(third, Listing)

    def test_an_unknown_account(self, hub: HubServer) -> None:
        publish(hub, "other/m")
        with pytest.raises(UnavailableTarget, match=r"nobody/: no such account"):
            list(source().listings("nobody/"))

    def test_hostile_names_are_left_out_and_said(self, hub: HubServer, tmp_path: Path) -> None:
        publish(hub, "thief/m")
        evil = tmp_path / "evil"
        evil.write_bytes(b"evil")
        names = ("../../evil", "/etc/evil", "a/../../evil", "a//b", "./evil", "nul\0", "\ud800")
        hub.aliases["thief/m"] = dict.fromkeys(names, evil)
        skipped, listing = source().listings("thief/m")
        assert isinstance(skipped, Skipped)
        assert skipped.reason.startswith("7 file(s) left out")
        assert isinstance(listing, Listing)
        assert [file.path for file in listing.files] == ["README.md", "config.json", "model.safetensors"]

    @pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a/../../evil"])
    def test_hostile_names_in_an_artifact_are_refused(self, hub: HubServer, name: str) -> None:
        publish(hub, "thief/m")
        listing = listed("thief/m")
        hostile = Artifact("thief/m", "any", (File(name, 4),), ".", None, listing.revision, listing="thief/m")
        with pytest.raises(UnsafeModel, match=r"leads out"):
            source().fetch(hostile)

    def test_nothing_is_told_to_the_hub(self, hub: HubServer) -> None:
        """In a fresh process, as a user runs it: the client asks for nothing else, and shows no bars."""
        publish(hub, "thief/m")
        code = (
            "from fp_audit.sources.hub import HubSource; from fp_audit.sources._base import SourceOptions;"
            "s = HubSource(SourceOptions()); l, = s.listings('thief/m'); s.read(l, 'model.safetensors')"
        )
        unset = ("HF_HUB_DISABLE_TELEMETRY", "PYTEST_CURRENT_TEST")
        environment = {name: value for name, value in os.environ.items() if name not in unset}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ran.stderr == ""
        path = f"/thief/m/resolve/{listed('thief/m').revision}/model.safetensors"
        assert hub.requests[:-1] == ["GET /api/models/thief/m", f"GET {path}"]


class TestDownloading:
    def test_read_takes_one_request_once(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        listing = listed("thief/m")
        hub.forget()
        assert source().read(listing, "config.json") == CONFIG
        assert len(hub.requests) == 1
        assert hub.bytes_sent == len(CONFIG)
        assert source().read(listing, "config.json") == CONFIG
        assert len(hub.requests) == 1

    def test_only_what_is_needed(self, hub: HubServer) -> None:
        publish(hub, "thief/m", {"a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS * 2, "config.json": CONFIG})
        wanted = artifact(listed("thief/m"), "a.safetensors", "config.json")
        assert source().missing_bytes(wanted) == len(WEIGHTS) + len(CONFIG)
        hub.forget()
        fetched = source().fetch(wanted)
        assert hub.bytes_sent == len(WEIGHTS) + len(CONFIG)
        assert len(hub.requests) == 2
        assert source().missing_bytes(wanted) == 0
        assert files_of(fetched.path) == {"a.safetensors": WEIGHTS, "config.json": CONFIG}

    def test_files_are_neither_symbolic_nor_hard_links(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        root = source().fetch(artifact(listed("thief/m"), "model.safetensors")).root
        assert root is not None
        found = root / "model.safetensors"
        assert not found.is_symlink()
        assert found.stat().st_nlink == 1

    @pytest.mark.parametrize(
        "name",
        [
            "sub/dir/m.onnx",
            "a b.onnx",
            "ü漢.onnx",
            "*?[x].onnx",
            "100%25#1.onnx",
            "-x.onnx",
            "a'\"b.onnx",
            "new\nline",
        ],
    )
    def test_odd_file_names(self, hub: HubServer, name: str) -> None:
        publish(hub, "thief/m", {name: WEIGHTS, "decoy.onnx": b"decoy"})
        fetched = source().fetch(artifact(listed("thief/m"), name))
        assert files_of(fetched.path) == {name: WEIGHTS}

    def test_max_bytes_is_checked_before_downloading(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        wanted = artifact(listed("thief/m"), "model.safetensors")
        hub.forget()
        with pytest.raises(UnavailableTarget, match=r"51,200 bytes to download, --max-bytes allows 51,199"):
            source(max_bytes=51199).fetch(wanted)
        assert hub.requests == []
        source(max_bytes=51200).fetch(wanted)
        source(max_bytes=0).fetch(wanted)

    def test_read_refuses_what_is_not_small(self, hub: HubServer) -> None:
        publish(hub, "thief/m", {"config.json": bytes(MAX_SMALL_FILE + 1)})
        listing = listed("thief/m")
        with pytest.raises(CorruptModel, match=r"config.json has"):
            source().read(listing, "config.json")
        with pytest.raises(UnavailableTarget, match=r"has no file 'nothing.json'"):
            source().read(listing, "nothing.json")
        assert hub.bytes_sent == 0

    def test_what_other_programs_downloaded_is_used(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        download_with_the_client(hub, "thief/m")
        wanted = artifact(listed("thief/m"), "model.safetensors", "config.json")
        hub.forget()
        assert source().missing_bytes(wanted) == 0
        assert files_of(source().fetch(wanted).path) == {"model.safetensors": WEIGHTS, "config.json": CONFIG}
        assert hub.requests == []

    def test_a_damaged_cache_is_not_believed(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        snapshot = download_with_the_client(hub, "thief/m")
        (snapshot / "model.safetensors").resolve().write_bytes(bytes(len(WEIGHTS)))
        fetched = source().fetch(artifact(listed("thief/m"), "model.safetensors"))
        assert files_of(fetched.path) == {"model.safetensors": WEIGHTS}

    def test_two_at_once(self, hub: HubServer) -> None:
        publish(hub, "thief/m", {f"{name}.safetensors": WEIGHTS for name in "abcd"})
        wanted = artifact(listed("thief/m"), *(f"{name}.safetensors" for name in "abcd"))
        roots: list[Path | None] = []
        threads = [threading.Thread(target=lambda: roots.append(source().fetch(wanted).root)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(roots)) == 1
        assert hub.bytes_sent == 4 * len(WEIGHTS)

    def test_nothing_is_left_of_a_failed_download(
        self, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(hub, "thief/m")
        wanted = artifact(listed("thief/m"), "config.json", "model.safetensors")
        monkeypatch.setattr("fp_audit.sources._client.PAUSES", (0.0, 0.0))
        hub.fail("GET /thief/m/resolve", 500, times=3)
        with pytest.raises(UnavailableTarget, match=r"error \(500\)"):
            source().fetch(wanted)
        left = {f"{wanted.revision}.lock": b"", f"{wanted.revision}.used": b""}
        assert files_of(tmp_path / "home/models/thief--m/partial") == left
        assert files_of(source().fetch(wanted).path)["model.safetensors"] == WEIGHTS


class TestPinning:
    def test_the_listed_commit_is_fetched_after_a_change(self, hub: HubServer) -> None:
        folder = publish(hub, "thief/m")
        wanted = artifact(listed("thief/m"), "model.safetensors")
        shutil.copytree(folder, folder.with_name("m@old"))
        (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
        assert files_of(source().fetch(wanted).path) == {"model.safetensors": WEIGHTS}
        assert listed("thief/m").revision != wanted.revision

    def test_a_commit_that_is_gone(self, hub: HubServer) -> None:
        folder = publish(hub, "thief/m")
        wanted = artifact(listed("thief/m"), "model.safetensors")
        (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
        with pytest.raises(UnavailableTarget, match=r"no such revision"):
            source().fetch(wanted)

    def test_content_that_is_not_what_was_listed(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        listing = listed("thief/m")
        swapped = File("model.safetensors", len(WEIGHTS), sha256="0" * 64)
        wanted = Artifact("thief/m", "any", (swapped,), ".", None, listing.revision, listing="thief/m")
        with pytest.raises(UnavailableTarget, match=r"differs in size or hash"):
            source().fetch(wanted)


class TestOffline:
    def test_a_second_run_makes_no_request(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        publish(hub, "thief/n")
        online = listed("thief/m")
        source().read(online, "config.json")
        fetched = source().fetch(artifact(online, "model.safetensors"))
        hub.forget()
        assert listed("thief/m", offline=True) == online
        assert listed(f"thief/m@{online.revision}", offline=True) == online
        assert source(offline=True).read(online, "config.json") == CONFIG
        assert source(offline=True).fetch(artifact(online, "model.safetensors")) == fetched
        assert [item.target for item in source(offline=True).listings("thief/")] == ["thief/m"]
        assert hub.requests == []

    def test_what_is_not_here(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        online = listed("thief/m")
        hub.forget()
        with pytest.raises(UnavailableTarget, match=r"'model.safetensors' is not on this machine \(offline\): scan it"):
            source(offline=True).fetch(artifact(online, "model.safetensors"))
        with pytest.raises(UnavailableTarget, match=r"thief/other@main: not on this machine"):
            listed("thief/other", offline=True)
        with pytest.raises(UnavailableTarget, match=r"thief/m@../../main: not on this machine"):
            listed("thief/m@../../main", offline=True)
        with pytest.raises(UnavailableTarget, match=r"other/: no such account on this machine"):
            list(source(offline=True).listings("other/"))
        assert hub.requests == []

    def test_the_clients_own_switch(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        listed("thief/m")
        hub.forget()
        code = (
            "from fp_audit.sources.hub import HubSource; from fp_audit.sources._base import SourceOptions;"
            "print(*HubSource(SourceOptions()).listings('thief/m'))"
        )
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert "File(path='config.json'" in ran.stdout
        assert hub.requests == []

    def test_what_other_programs_downloaded(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        download_with_the_client(hub, "thief/m")
        online = listed("thief/m")
        shutil.rmtree(os.environ["FP_AUDIT_HOME"])
        hub.forget()
        offline = listed("thief/m", offline=True)
        assert offline.revision == online.revision
        assert [(f.path, f.size, f.sha256) for f in offline.files] == [(f.path, f.size, f.sha256) for f in online.files]
        assert source(offline=True).read(offline, "config.json") == CONFIG
        assert [item.target for item in source(offline=True).listings("thief/")] == ["thief/m"]
        assert hub.requests == []

    def test_a_damaged_store_counts_as_empty(self, hub: HubServer, tmp_path: Path) -> None:
        publish(hub, "thief/m")
        listed("thief/m")
        (kept,) = (tmp_path / "home").rglob("*.json")
        kept.write_text("{")
        with pytest.raises(UnavailableTarget, match=r"not on this machine"):
            listed("thief/m", offline=True)


class TestErrors:
    def test_not_found(self, hub: HubServer) -> None:
        with pytest.raises(UnavailableTarget, match=r"modles/foo: no such model on http.*no such local path either"):
            listed("modles/foo")

    def test_revision_not_found(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        with pytest.raises(UnavailableTarget, match=r"thief/m@v9: the hub has no such revision"):
            listed("thief/m@v9")

    def test_private(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(hub, "thief/m", {".private": b"", "config.json": CONFIG})
        with pytest.raises(UnavailableTarget, match=r"if it is private, it needs a token"):
            listed("thief/m")
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert len(listed("thief/m").files) == 1

    def test_gated(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        publish(hub, "thief/m", {".gated": b"", "config.json": CONFIG})
        listing = listed("thief/m")
        with pytest.raises(UnavailableTarget, match=r"gated, needs access: accept its terms on the hub, then log in"):
            source().read(listing, "config.json")
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert source().read(listing, "config.json") == CONFIG
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert hub.token.encode() not in kept

    def test_file_gone(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        listing = listed("thief/m")
        gone = Artifact("m", "any", (File("gone.onnx", 3),), ".", None, listing.revision, listing="thief/m")
        with pytest.raises(UnavailableTarget, match=r"'gone.onnx': the hub has no such file"):
            source().fetch(gone)

    def test_a_name_that_is_too_long_for_the_disk(self, hub: HubServer, tmp_path: Path) -> None:
        publish(hub, "thief/m")
        hub.aliases["thief/m"] = {"x" * 300: hub.folder / "thief/m/config.json"}
        with pytest.raises(UnavailableTarget, match=r"cannot be kept on this disk: File name too long"):
            source().fetch(artifact(listed("thief/m"), "x" * 300))

    def test_no_network(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(UnavailableTarget, match=r"cannot reach http://127.0.0.1:9 \(ConnectError\): .*--offline"):
            listed("thief/m")

    def test_not_a_hub(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        publish(hub, "thief/m", {"page.html": b"<html>"})
        page = f"{hub.url}/thief/m/resolve/main/page.html?"
        monkeypatch.setenv("HF_ENDPOINT", page)
        with pytest.raises(UnavailableTarget, match=r"did not answer as a hub does"):
            listed("thief/m")

    def test_rate_limit_is_waited_for(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        hub.fail("/models/thief/m", 429, times=2, RateLimit='"api";r=0;t=0')
        assert listed("thief/m").files
        assert len(hub.requests) == 3

    def test_rate_limit_that_does_not_end(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        hub.fail("/models/thief/m", 429, Retry_After="0")
        with pytest.raises(UnavailableTarget, match=r"rate limit is used up \(429\): try again in 5 minutes"):
            listed("thief/m")
        assert len(hub.requests) == 5

    def test_rate_limit_that_is_too_long(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        hub.fail("/models/thief/m", 429, Retry_After="86400")
        with pytest.raises(UnavailableTarget, match=r"rate limit"):
            listed("thief/m")
        assert len(hub.requests) == 1

    def test_a_dropped_connection_is_tried_again(self, hub: HubServer) -> None:
        publish(hub, "thief/m")
        hub.fail("/models/thief/m", "drop", times=1)
        listing = listed("thief/m")
        hub.fail("GET /thief/m/resolve", "cut", times=1)
        assert files_of(source().fetch(artifact(listing, "model.safetensors")).path) == {"model.safetensors": WEIGHTS}

    def test_disk_full(self, hub: HubServer, tmp_path: Path) -> None:
        """A real full disk: a file system of 256 kB in a name space of our own."""
        publish(hub, "thief/m", {"model.safetensors": bytes(2**20)})
        home = tmp_path / "small"
        home.mkdir()
        code = (
            "from fp_audit.sources.hub import HubSource; from fp_audit.sources._base import SourceOptions;"
            "s = HubSource(SourceOptions()); l, = s.listings('thief/m'); s.read(l, 'model.safetensors')"
        )
        script = f'mount -t tmpfs -o size=256k none "{home}" || exit 77; exec "$0" -c "$1"'
        ran = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, sys.executable, code],
            env={**os.environ, "FP_AUDIT_HOME": str(home)},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode == 77 or ran.stderr.startswith("unshare:"):
            pytest.skip(f"no name spaces here: {ran.stderr.strip()[-100:]}")
        assert "UnavailableTarget: thief/m: 'model.safetensors': the disk is full: make room" in ran.stderr

    @pytest.mark.parametrize("target", ["a--b/c", "a/b..c", "a b/c", "-a/b", "a/b.git", "a/b@", "ü/b"])
    def test_not_a_hub_id(self, hub: HubServer, target: str) -> None:
        assert source().accepts(target)
        with pytest.raises(UnavailableTarget, match=r"no such file or folder, and no hub id either"):
            list(source().listings(target))
        assert hub.requests == []


@pytest.mark.parametrize("target", ["org/model", "org/model@v1", "org/model@refs/pr/1", "org/", "modles/foo"])
def test_accepts(target: str) -> None:
    assert source().accepts(target)


@pytest.mark.parametrize(
    "target",
    [
        "-",
        "m.onnx",
        "org/m.onnx",
        "./a/b",
        "../a",
        "/a/b",
        "a",
        "a/b/c",
        r"C:\m",
        "C:/m",
        "~/m",
        "l.txt",
        "tests/sources",
    ],
)
def test_does_not_accept(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert not source().accepts(target)


def test_importing_is_cheap() -> None:
    code = (
        "import sys, fp_audit.sources.hub as hub; hub.HubSource(None).accepts('a/b');"
        "assert 'huggingface_hub' not in sys.modules and 'httpx2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def download_with_the_client(hub: HubServer, repo: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, endpoint=hub.url, cache_dir=os.environ["HF_HUB_CACHE"]))
