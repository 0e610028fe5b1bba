"""A small real model hub on 127.0.0.1, for the real client.

By hand: ``python tests/hub_server.py FOLDER --port 8090``, then ``HF_ENDPOINT=http://127.0.0.1:8090 fp-audit
scan ...``.

- Repositories are the folders ``FOLDER/<org>/<model>/``; a commit is a digest of a repository's content.
- ``<model>@<name>/`` beside it is one more revision: copy a model to ``<model>@old`` and change it, and it
  has a history.
- Files above ``lfs_above`` bytes are served as LFS files; with ``redirects`` from ``/lfs/<sha256>``, as the real hub
  does it from another host.
- A file ``.gated`` in a model folder gates its files, ``.private`` hides the model: both ask for
  ``Authorization: Bearer <token>``.
- ``fail`` breaks chosen requests; ``aliases`` adds files under names that a folder cannot hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import pytest
import yaml

MARKERS = {".gated", ".private"}


@dataclass(frozen=True)
class Blob:
    """One file of a repository."""

    path: str
    source: Path
    size: int
    oid: str
    etag: str
    lfs: dict[str, Any] | None


@dataclass
class Failure:
    """See ``HubServer.fail``."""

    where: str
    how: int | str
    times: int
    headers: dict[str, str]


class HubServer(ThreadingHTTPServer):
    """Serves a folder; records ``requests`` ("METHOD /path"), ``bytes_sent`` of file content and ``sent`` by path."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: Path, port: int = 0, *, page: int = 1000, lfs_above: int = 1000) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.page, self.lfs_above = folder, page, lfs_above
        self.token = "let-me-in"
        self.redirects = False
        self.aliases: dict[str, dict[str, Path]] = {}
        self.failures: list[Failure] = []
        self.requests: list[str] = []
        self.bytes_sent = 0
        self.sent: Counter[str] = Counter()
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, where: str, how: int | str, times: int = 1000, **headers: str) -> None:
        """Break the next ``times`` requests whose ``METHOD /path`` contains ``where``.

        Args:
            how: a status; ``drop`` closes the connection at once, ``cut`` in the middle of the body.
            headers: sent with the status; underscores in their names become hyphens.
        """
        self.failures.append(Failure(where, how, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def forget(self) -> None:
        """Start counting again."""
        self.requests, self.bytes_sent = [], 0
        self.sent.clear()

    def repos(self, author: str | None) -> list[str]:
        found = [folder for folder in self.folder.glob(f"{author or '*'}/*") if folder.is_dir()]
        return sorted(f"{path.parent.name}/{path.name}" for path in found if "@" not in path.name)

    def revision(self, repo: str, name: str) -> tuple[str, list[Blob]] | None:
        """Return commit and files of a branch or commit."""
        main = self.folder / repo
        for folder in (main, *sorted(main.parent.glob(f"{main.name}@*"))):
            blobs = self._blobs(repo, folder)
            content = "".join(f"{blob.path}\0{blob.oid}\n" for blob in blobs)
            commit = hashlib.sha1(content.encode(errors="surrogatepass")).hexdigest()
            if name in (commit, "main" if folder == main else folder.name.split("@", 1)[1]):
                return commit, blobs
        return None

    def _blobs(self, repo: str, folder: Path) -> list[Blob]:
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        files |= self.aliases.get(repo, {})
        return [_blob(path, files[path], self.lfs_above) for path in sorted(files) if path not in MARKERS]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


def _blob(path: str, source: Path, lfs_above: int) -> Blob:
    stat = source.stat()
    oid, sha256 = _hashes(source, stat.st_size, stat.st_mtime_ns)
    if stat.st_size <= lfs_above:
        return Blob(path, source, stat.st_size, oid, etag=oid, lfs=None)
    lfs = {"sha256": sha256, "oid": sha256, "size": stat.st_size, "pointerSize": 134}
    return Blob(path, source, stat.st_size, oid, etag=sha256, lfs=lfs)


@lru_cache(maxsize=4096)
def _hashes(path: Path, size: int, _changed: int) -> tuple[str, str]:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % size + content).hexdigest(), hashlib.sha256(content).hexdigest()


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", **headers: str) -> None:
        super().__init__(code)
        self.status = status
        self.headers = {**({"X-Error-Code": code, "X-Error-Message": code} if code else {}), **headers}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        """Be quiet; ``HubServer.requests`` is the log."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        self.query = parse_qs(url.query)
        self.cut = False
        with self.server.guard:
            self.server.requests.append(f"{self.command} {unquote(url.path)}")
        try:
            self._break_if_told(f"{self.command} {unquote(url.path)}")
            self._route([unquote(part) for part in url.path.split("/")[1:]])
        except _Refusal as refusal:
            self._send(refusal.status, b"", refusal.headers)

    def _break_if_told(self, request: str) -> None:
        with self.server.guard:
            failure = next((f for f in self.server.failures if f.times > 0 and f.where in request), None)
            if failure is None:
                return
            failure.times -= 1
        if failure.how == "drop":
            self.close_connection = True
            raise ConnectionAbortedError
        if failure.how == "cut":
            self.cut = True
        else:
            raise _Refusal(int(failure.how), **failure.headers)

    def _route(self, parts: list[str]) -> None:
        match parts:
            case ["api", "models"]:
                self._models()
            case ["api", "models", org, model]:
                self._info(f"{org}/{model}", "main")
            case ["api", "models", org, model, "revision", revision]:
                self._info(f"{org}/{model}", revision)
            case ["api", "models", org, model, "tree", revision, *folder]:
                self._tree(f"{org}/{model}", revision, "/".join(folder))
            case ["api", "models", org, model, "paths-info", revision]:
                _, blobs = self._open(f"{org}/{model}", revision)
                self._json([_entry(blob) for blob in blobs if blob.path in self.form.get("paths", [])])
            case ["lfs", org, model, revision, *path]:
                self._content(*self._blob(f"{org}/{model}", revision, "/".join(path)))
            case [org, model, "resolve", revision, *path]:
                self._file(f"{org}/{model}", revision, "/".join(path))
            case _:
                raise _Refusal(404)

    def _open(self, repo: str, revision: str, *, files: bool = False) -> tuple[str, list[Blob]]:
        """Find a revision, unless the repository is hidden or (its ``files``) gated."""
        folder = self.server.folder / repo
        known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if repo not in self.server.repos(None) or (not known and (folder / ".private").exists()):
            raise _Refusal(404 if known else 401, "RepoNotFound")
        if files and not known and (folder / ".gated").exists():
            raise _Refusal(401, "GatedRepo")
        found = self.server.revision(repo, revision)
        if found is None:
            raise _Refusal(404, "RevisionNotFound")
        return found

    def _models(self) -> None:
        repos = self.server.repos(self.query.get("author", [None])[0])
        start = int(self.query.get("cursor", ["0"])[0])
        stop = start + self.server.page
        query = urlencode({**self.query, "cursor": stop}, doseq=True)
        more = {"Link": f'<{self.server.url}/api/models?{query}>; rel="next"'} if stop < len(repos) else {}
        listed = [{"id": repo, "modelId": repo} for repo in repos[start:stop]]
        if self.query.get("expand") == ["sha"]:
            listed = [{**about, "sha": self.server.revision(about["id"], "main")[0]} for about in listed]
        self._json(listed, more)

    def _info(self, repo: str, revision: str) -> None:
        commit, blobs = self._open(repo, revision)
        full = [{"rfilename": blob.path, "size": blob.size, "blobId": blob.oid, "lfs": blob.lfs} for blob in blobs]
        siblings = full if "blobs" in self.query else [{"rfilename": blob.path} for blob in blobs]
        card = {"cardData": found} if (found := _card(self.server.folder / repo / "README.md")) else {}
        self._json({"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings, **card})

    def _tree(self, repo: str, revision: str, folder: str) -> None:
        _, blobs = self._open(repo, revision)
        prefix = f"{folder}/" if folder else ""
        deep = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries = {}
        for blob in blobs:
            if blob.path.startswith(prefix):
                first, below, _ = blob.path.removeprefix(prefix).partition("/")
                tree = {"type": "directory", "path": prefix + first, "oid": "0" * 40, "size": 0}
                entries[blob.path if deep else first] = tree if below and not deep else _entry(blob)
        self._json(list(entries.values()))

    def _file(self, repo: str, revision: str, path: str) -> None:
        commit, blob = self._blob(repo, revision, path)
        if blob.lfs and self.server.redirects:
            self._send(
                302, b"", {**_headers(commit, blob), "Location": f"{self.server.url}/lfs/{repo}/{commit}/{path}"}
            )
        else:
            self._content(commit, blob)

    def _blob(self, repo: str, revision: str, path: str) -> tuple[str, Blob]:
        commit, blobs = self._open(repo, revision, files=True)
        blob = next((blob for blob in blobs if blob.path == path), None)
        if blob is None:
            raise _Refusal(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        return commit, blob

    def _content(self, commit: str, blob: Blob) -> None:
        headers = _headers(commit, blob)
        content = blob.source.read_bytes()
        status = 200
        if asked := self.headers.get("Range"):
            first, last = _range(asked, blob.size)
            status, content = 206, content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        if self.command == "GET":
            with self.server.guard:
                self.server.bytes_sent += len(content)
                self.server.sent[unquote(urlsplit(self.path).path)] += len(content)
        self._send(status, content, headers)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = self.close_connection or self.cut
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)


def _headers(commit: str, blob: Blob) -> dict[str, str]:
    headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    return headers | ({"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)} if blob.lfs else {})


def _card(path: Path) -> Any:
    """Return the front matter of a card, as the hub parses it."""
    parts = path.read_text().split("---\n", 2) if path.is_file() else []
    return yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None


def _entry(blob: Blob) -> dict[str, Any]:
    return {"type": "file", "path": blob.path, "size": blob.size, "oid": blob.oid, "lfs": blob.lfs}


def _range(asked: str, size: int) -> tuple[int, int]:
    """Return first and last byte of ``bytes=a-b``, ``bytes=a-`` or ``bytes=-n``."""
    start, _, stop = asked.removeprefix("bytes=").partition("-")
    first = int(start) if start else max(0, size - int(stop))
    last = min(int(stop), size - 1) if start and stop else size - 1
    if first >= size:
        raise _Refusal(416, **{"Content-Range": f"bytes */{size}"})
    return first, last


@contextmanager
def serving(folder: Path, port: int = 0, **options: Any) -> Iterator[HubServer]:
    """Serve a folder until the block ends."""
    with HubServer(folder, port, **options) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty hub (``hub.folder``), with the client and fp-audit pointed at it and at empty caches."""
    (tmp_path / "hub").mkdir()
    with serving(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.setenv("FP_AUDIT_HOME", str(tmp_path / "home"))
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve FOLDER/<org>/<model>/... as a model hub on 127.0.0.1.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    with serving(options.folder, options.port) as server:
        print(f"HF_ENDPOINT={server.url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print(*server.requests, f"{server.bytes_sent:,} bytes of files", sep="\n")


if __name__ == "__main__":
    main()
