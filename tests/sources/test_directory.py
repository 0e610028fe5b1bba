"""The directory source, on real trees with everything in them that a tree can hold."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fp_audit.errors import CorruptModel, UnavailableTarget
from fp_audit.sources._base import MAX_SMALL_FILE, SourceOptions
from fp_audit.sources.directory import DirectorySource
from fp_audit.types import Artifact, File, Listing, Skipped

SHA256 = "747ffb66d9569fce70d8e9910230ed6cca8d52100286d9e86aa03ebdbb4f69d1"
COMMIT = "a" * 40


def source() -> DirectorySource:
    return DirectorySource(SourceOptions())


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def look(target: str | Path) -> tuple[Listing, dict[str, str]]:
    """Return the listing and what was skipped."""
    *skipped, listing = source().listings(str(target))
    assert isinstance(listing, Listing)
    return listing, {item.target: item.reason for item in skipped if isinstance(item, Skipped)}


def names(target: str | Path) -> list[str]:
    listing, skipped = look(target)
    assert skipped == {}
    return [file.path for file in listing.files]


def hub_cache(folder: Path) -> Path:
    """Make a snapshot as the hub's client does: links to blobs that are named by their hash."""
    repo = folder / "hub" / "models--org--m"
    snapshot = repo / "snapshots" / COMMIT
    write(repo, f"blobs/{SHA256}")
    (snapshot / "onnx").mkdir(parents=True)
    (snapshot / "m.onnx").symlink_to(f"../../blobs/{SHA256}")
    (snapshot / "onnx" / "n.onnx").symlink_to(f"../../../blobs/{SHA256}")
    return snapshot


class TestFolder:
    def test_one_listing_for_the_whole_tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, "models/a/config.json", "models/a/model.safetensors", "models/b/c/m.onnx", "models/.x/m.onnx")
        monkeypatch.chdir(tmp_path)
        assert look("models/") == look("models")
        listing, skipped = look("models/")
        assert skipped == {}
        assert listing == Listing(
            "models",
            (
                File(".x/m.onnx", 9 + 7),
                File("a/config.json", 20),
                File("a/model.safetensors", 26),
                File("b/c/m.onnx", 17),
            ),
            root=Path("models"),
        )

    @pytest.mark.parametrize(
        ("target", "name"), [(".", "."), ("./", "."), ("./models//", "./models"), ("models", "models")]
    )
    def test_the_name_is_as_typed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, name: str
    ) -> None:
        write(tmp_path, "models/m.onnx")
        monkeypatch.chdir(tmp_path)
        assert look(target)[0].target == name

    def test_weights_stand_for_their_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, "a/config.json", "a/model.safetensors", "m.safetensors")
        monkeypatch.chdir(tmp_path)
        assert look("a/model.safetensors") == look("a")
        assert look("m.safetensors") == look(".")

    def test_folders_of_tools_are_passed_over(self, tmp_path: Path) -> None:
        write(tmp_path, ".git/m.onnx", ".cache/m.onnx", "a/.venv/m.onnx", "a/m.onnx")
        assert names(tmp_path) == ["a/m.onnx"]

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        assert names(tmp_path) == []

    def test_odd_names(self, tmp_path: Path) -> None:
        odd = ["a b.onnx", "ü漢.onnx", "*?[x].onnx", "new\nline", "-x", "#1", os.fsdecode(b"\xff.onnx")]
        write(tmp_path, *odd[:-1])
        (tmp_path / odd[-1]).touch()
        assert names(tmp_path) == sorted(odd)
        listing, _ = look(tmp_path)
        assert source().read(listing, "new\nline") == b"new\nline"

    def test_sockets_fifos_and_devices_are_passed_over(self, tmp_path: Path) -> None:
        write(tmp_path, "m.onnx")
        os.mkfifo(tmp_path / "fifo.onnx")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket.onnx"))
            assert names(tmp_path) == ["m.onnx"]

    def test_what_cannot_be_read_is_said(self, tmp_path: Path) -> None:
        """In a process that has given up root's rights, if it had them."""
        write(tmp_path, "m.onnx", "closed/m.onnx", "secret.onnx")
        (tmp_path / "closed").chmod(0)
        (tmp_path / "secret.onnx").chmod(0)
        tmp_path.chmod(0o755)
        code = (
            "import os; from fp_audit.sources._base import SourceOptions;"
            "from fp_audit.sources.directory import DirectorySource;"
            "os.getuid() == 0 and os.setuid(65534);"
            "source = DirectorySource(SourceOptions());"
            "print(*source.listings('.'), *source.listings('secret.onnx'), sep='\\n')"
        )
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        (tmp_path / "closed").chmod(0o755)
        in_tree, closed, listing, alone, empty = ran.stdout.splitlines()
        assert closed == "Skipped(target='./closed', reason='this folder cannot be read: Permission denied')"
        assert in_tree == "Skipped(target='./secret.onnx', reason='this file cannot be read: permission denied')"
        assert "File(path='m.onnx'" in listing
        assert alone == "Skipped(target='secret.onnx', reason='this file cannot be read: permission denied')"
        assert "files=()" in empty

    def test_a_large_tree_is_quick(self, tmp_path: Path) -> None:
        for folder in range(50):
            (tmp_path / f"{folder}").mkdir()
            for file in range(100):
                (tmp_path / f"{folder}" / f"{file}.bin").touch()
        start = time.perf_counter()
        assert len(names(tmp_path)) == 5_000
        assert time.perf_counter() - start < 5  # .2 s here


class TestLinks:
    def test_loops_end(self, tmp_path: Path) -> None:
        write(tmp_path, "a/m.onnx")
        (tmp_path / "a" / "up").symlink_to("..")
        (tmp_path / "a" / "self").symlink_to("self")
        listing, skipped = look(tmp_path)
        assert [file.path for file in listing.files] == ["a/m.onnx"]
        assert list(skipped) == [f"{tmp_path}/a/self"]

    def test_links_inside_are_followed_and_others_are_said(self, tmp_path: Path) -> None:
        write(tmp_path, "root/weights/w", "secret", "folder/m.onnx", "rooted/w")
        root = tmp_path / "root"
        (root / "inside.onnx").symlink_to("weights/w")
        (root / "outside.onnx").symlink_to("../secret")
        (root / "absolute.onnx").symlink_to(tmp_path / "secret")
        (root / "prefix.onnx").symlink_to("../rooted/w")
        (root / "folder").symlink_to("../folder")
        (root / "broken.onnx").symlink_to("nowhere")
        listing, skipped = look(root)
        assert [file.path for file in listing.files] == ["inside.onnx", "weights/w"]
        assert {target.removeprefix(f"{root}/") for target in skipped} == {
            "outside.onnx", "absolute.onnx", "prefix.onnx", "folder", "broken.onnx"
        }  # fmt: skip
        assert skipped[f"{root}/outside.onnx"].startswith("this link leads out of the folder")
        assert skipped[f"{root}/broken.onnx"] == "this file cannot be read: No such file or directory"

    def test_a_snapshot_of_a_hub_cache(self, tmp_path: Path) -> None:
        snapshot = hub_cache(tmp_path)
        assert names(snapshot) == ["m.onnx", "onnx/n.onnx"]
        assert names(snapshot / "onnx") == ["n.onnx"]
        assert names(snapshot / "m.onnx") == ["m.onnx"]

    def test_blobs_of_another_model_are_outside(self, tmp_path: Path) -> None:
        snapshot = hub_cache(tmp_path)
        write(tmp_path, "hub/models--org--other/blobs/x")
        (snapshot / "o.onnx").symlink_to("../../../models--org--other/blobs/x")
        _, skipped = look(snapshot)
        assert list(skipped) == [f"{snapshot}/o.onnx"]

    def test_blobs_that_models_share(self, tmp_path: Path) -> None:
        snapshot = hub_cache(tmp_path)
        write(tmp_path, "hub/blobs/ab/abc")
        (snapshot / "o.onnx").symlink_to("../../../blobs/ab/abc")
        assert list(look(snapshot)[1]) == [f"{snapshot}/o.onnx"]
        write(tmp_path, "hub/blobs/.huggingface-shared-blobs")
        assert "o.onnx" in names(snapshot)

    def test_fetch_copies_links_and_cleans_up(self, tmp_path: Path) -> None:
        snapshot = hub_cache(tmp_path)
        listing, _ = look(snapshot)
        reader = source()
        fetched = reader.fetch(artifact(listing))
        assert fetched.root is not None
        assert fetched.root != snapshot
        for file in fetched.files:
            path = fetched.root / file.path
            assert not path.is_symlink()
            assert path.stat().st_nlink == 1
            assert path.read_bytes() == (snapshot / file.path).read_bytes()
        del reader
        gc.collect()
        assert not fetched.root.exists()

    def test_fetch_leaves_ordinary_files_where_they_are(self, tmp_path: Path) -> None:
        write(tmp_path, "m.onnx")
        listing, _ = look(tmp_path)
        assert source().fetch(artifact(listing)) == artifact(listing)
        assert source().missing_bytes(artifact(listing)) == 0


class TestFile:
    def test_only_the_model_and_its_data(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, "d/m.onnx", "d/m.onnx.data", "d/m.onnx_data", "d/other.onnx", "d/m.onnx.d/x")
        monkeypatch.chdir(tmp_path)
        listing, _ = look("d/m.onnx")
        assert (listing.target, listing.root) == ("d/m.onnx", Path("d"))
        assert [file.path for file in listing.files] == ["m.onnx", "m.onnx.data", "m.onnx_data"]
        monkeypatch.chdir(tmp_path / "d")
        assert look("m.onnx")[0].root == Path()

    def test_a_named_link_may_lead_anywhere_but_its_data_may_not(self, tmp_path: Path) -> None:
        write(tmp_path, "far/away", "secret")
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "m.onnx").symlink_to("../far/away")
        (tmp_path / "d" / "m.onnx.data").symlink_to("../secret")
        listing, skipped = look(tmp_path / "d" / "m.onnx")
        assert [file.path for file in listing.files] == ["m.onnx"]
        assert list(skipped) == [f"{tmp_path}/d/m.onnx.data"]

    def test_what_is_neither_file_nor_folder(self, tmp_path: Path) -> None:
        (tmp_path / "broken.onnx").symlink_to("nowhere")
        for target in ("/dev/null", str(tmp_path / "broken.onnx")):
            with pytest.raises(UnavailableTarget, match=r"neither a file nor a folder"):
                look(target)

    @pytest.mark.parametrize("target", ["nowhere", "./a/b", "/a/b/c", "m.onnx", "a/b/c", ""])
    def test_what_is_not_there(self, target: str) -> None:
        assert source().accepts(target)
        with pytest.raises(UnavailableTarget, match=r": no such file or folder"):
            look(target)


class TestRead:
    def test_content(self, tmp_path: Path) -> None:
        write(tmp_path, "a/config.json")
        assert source().read(look(tmp_path)[0], "a/config.json") == b"a/config.json"

    @pytest.mark.parametrize("path", ["nothing.json", "../secret", "/etc/hostname", "a"])
    def test_only_what_was_listed(self, tmp_path: Path, path: str) -> None:
        write(tmp_path, "secret", "root/a/config.json")
        with pytest.raises(UnavailableTarget, match=r"has no file"):
            source().read(look(tmp_path / "root")[0], path)

    def test_a_file_that_went_away(self, tmp_path: Path) -> None:
        write(tmp_path, "config.json")
        listing, _ = look(tmp_path)
        (tmp_path / "config.json").unlink()
        with pytest.raises(UnavailableTarget, match=r"cannot be read: No such file"):
            source().read(listing, "config.json")

    def test_a_file_that_is_not_small(self, tmp_path: Path) -> None:
        with (tmp_path / "config.json").open("wb") as file:
            file.truncate(MAX_SMALL_FILE + 1)
        with pytest.raises(CorruptModel, match=r"4,194,305 bytes"):
            source().read(look(tmp_path)[0], "config.json")


def test_accepts_what_exists_whatever_it_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "org/model/m.onnx")
    monkeypatch.chdir(tmp_path)
    assert source().accepts("org/model")
    assert source().accepts("org/")
    assert not source().accepts("org/mdel")
    assert not source().accepts("ogr/")


def artifact(listing: Listing) -> Artifact:
    return Artifact(listing.target, "onnx", listing.files, ".", listing.root, listing=listing.target)
