"""The listing source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fp_audit.errors import UnavailableTarget
from fp_audit.sources._base import MAX_SMALL_FILE, SourceOptions
from fp_audit.sources.listing import ListingSource


def source() -> ListingSource:
    return ListingSource(SourceOptions())


def expand(path: Path | str, content: str | bytes) -> list[str]:
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(source().expand(str(path)))


def test_lines_comments_blanks_and_line_ends(tmp_path: Path) -> None:
    content = "\ufeff# suspects\r\n\r\n  org/a  \r\norg/b@v1 # why\n\t\norg/c#x\rorg/\norg/m@refs/pr/1"
    assert expand(tmp_path / "l.txt", content) == ["org/a", "org/b@v1", "org/c#x", "org/", "org/m@refs/pr/1"]


def test_paths_are_relative_to_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lists" / "here" / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    content = "here/m\n./here\n../up\nm.onnx\na/b/c\n/abs/m\norg/m\n"
    assert expand("lists/l.txt", content) == [
        "lists/here/m", "lists/here", "lists/../up", "lists/m.onnx", "lists/a/b/c", "/abs/m", "org/m"
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path / "lists")
    assert expand("l.txt", "here/m\n./here\n") == ["here/m", "./here"]


def test_duplicates_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand("l.txt", "org/a\n./d/m\norg/a\nd/../d/m/\norg/a@v1\n") == ["org/a", "./d/m", "org/a@v1"]


def test_lists_in_lists_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner.txt").write_text("org/b\nm.onnx\norg/a\n")
    assert expand("l.txt", "org/a\nsub/inner.txt\norg/c\n") == ["org/a", "org/b", "sub/m.onnx", "org/c"]


def test_a_list_that_names_itself_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "other.txt").write_text("l.txt\norg/b\nloop/l.txt\n")
    assert expand("l.txt", "l.txt\nloop/l.txt\norg/a\nother.txt\n") == ["org/a", "org/b"]


def test_a_long_chain_of_lists(tmp_path: Path) -> None:
    for number in range(1200):
        (tmp_path / f"{number}.txt").write_text(f"{number + 1}.txt\n")
    (tmp_path / "1200.txt").write_text("org/end\n")
    assert list(source().expand(str(tmp_path / "0.txt"))) == ["org/end"]


def test_a_broken_list_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand("l.txt", "org/a\nmissing.txt\norg/b\n") == ["org/a", "missing.txt", "org/b"]
    with pytest.raises(UnavailableTarget, match=r"missing.txt: this list cannot be read: No such file"):
        list(source().listings("missing.txt"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x04\x95", "not a text file in UTF-8"),
        (b"org/a\n\0", "not a text file in UTF-8"),
        ("org/a\n".encode("utf-16"), "not a text file in UTF-8"),
        (b"", "the list is empty"),
        (b"# nothing\n\n", "the list is empty"),
        (b"org/a\n" * (MAX_SMALL_FILE // 6 + 1), "too long for a list"),
    ],
)
def test_what_is_not_a_list(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "l.txt"
    assert expand(path, content) == [str(path)]
    with pytest.raises(UnavailableTarget, match=f"^{path}: {reason}"):
        list(source().listings(str(path)))


@pytest.mark.parametrize(("content", "said"), [(b"org/a\r\nm.onnx\n", "org/a m.onnx"), (b"\xff", "not a text file")])
def test_standard_input(tmp_path: Path, content: bytes, said: str) -> None:
    code = (
        "from fp_audit.sources.listing import ListingSource; from fp_audit.sources._base import SourceOptions;"
        "s = ListingSource(SourceOptions()); t = list(s.expand('-')); print(*t); t == ['-'] and list(s.listings('-'))"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, cwd=tmp_path, check=False)
    assert said in (ran.stdout + ran.stderr).decode()


def test_accepts(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert source().accepts("-")
    assert source().accepts("missing.txt")
    assert not source().accepts(str(tmp_path / "folder.txt"))
    assert not source().accepts("m.onnx")
    assert not source().accepts("org/model")


def test_it_holds_no_files(tmp_path: Path) -> None:
    path = tmp_path / "l.txt"
    expand(path, "org/a\n")
    assert list(source().listings(str(path))) == []
