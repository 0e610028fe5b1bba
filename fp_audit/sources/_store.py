"""Models fetched from a hub, kept on this disk as ordinary files.

::

    <home>/models/<org>--<model>/refs/<revision>         the commit that a revision meant when last listed
                                 listings/<commit>.json  names, sizes and hashes of all files of the commit,
                                                         and the models that its card names
                                 files/<commit>/...      the files that were fetched, after their check
                                 partial/<commit>/...    a download that is going on
                                 partial/<commit>.used   locked (shared) by whoever streams files of this commit

The client's own cache is read but not used for this: its files are symbolic links out of the snapshot, a
sandboxed model may read nothing but its own folder, and both ONNX libraries refuse external data behind
links, symbolic or hard. A file under ``files`` is complete from the moment it is there, because it is moved
into place only after its hash was checked. Every folder may be deleted at any time when no scan is running.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import platformdirs

from fp_audit.errors import UnsafeModel
from fp_audit.sources._names import is_inside
from fp_audit.types import File, Listing

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A full commit sha."""


def models_folder() -> Path:
    """Return the folder of fetched models: in ``FP_AUDIT_HOME``, else in the platform's cache folder."""
    home = os.environ.get("FP_AUDIT_HOME")
    return (Path(home) if home else platformdirs.user_cache_path("fp-audit")) / "models"


class Store:
    """The fetched models in one folder. Safe to use from several processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def root(self, repo: str, commit: str) -> Path:
        """Return the folder that holds the files of one commit, there or not."""
        return self._repo(repo) / "files" / commit

    def find(self, repo: str, commit: str, file: File) -> Path | None:
        """Return the local path of a file, None if it was not fetched.

        Raises:
            UnsafeModel: its name leads out of the folder.
        """
        path = _join(self.root(repo, commit), file.path)
        return path if os.path.isfile(path) and os.path.getsize(path) == file.size else None

    @contextmanager
    def staging(self, repo: str, commit: str) -> Iterator[Path]:
        """Give an empty folder to download a commit's files into, to one process at a time."""
        folder = self._repo(repo) / "partial" / commit
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def use(self, repo: str, commit: str) -> int:
        """Say that this process uses the files of a commit; return the descriptor that says so until it is closed."""
        path = self._repo(repo) / "partial" / f"{commit}.used"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return descriptor

    def discard(self, repo: str, commit: str, paths: Iterable[str], used: int) -> bool:
        """Delete some of the fetched files of a commit, and folders that this leaves empty; ``used`` is closed.

        Returns:
            Whether they were deleted: not while anybody else uses files of this commit.
        """
        root = self.root(repo, commit)
        try:
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in paths:
                _join(root, path).unlink(missing_ok=True)
                with suppress(OSError):  # other files are left
                    os.removedirs(_join(root, path).parent)
        except BlockingIOError:
            return False
        finally:
            os.close(used)
        return True

    def keep(self, staging: Path, repo: str, commit: str, file: File) -> bool:
        """Move a file out of ``staging`` into place, if it is the file that was listed; else remove it."""
        arrived = _join(staging, file.path)
        if not _is_listed(arrived, file):
            arrived.unlink()
            return False
        path = _join(self.root(repo, commit), file.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrived.replace(path)
        return True

    def remember(self, listing: Listing, revision: str) -> None:
        """Keep a listing, and what the revision means now, for work without a network."""
        kept = json.dumps({"files": [asdict(file) for file in listing.files], "declared": listing.declared})
        _write(self._repo(listing.target) / "listings" / f"{listing.revision}.json", kept)
        _write(self._repo(listing.target) / "refs" / quote(revision, safe=""), str(listing.revision))

    def recall(self, repo: str, revision: str) -> Listing | None:
        """Return the listing that was kept for a revision or a commit, None if there is none."""
        try:
            ref = self._repo(repo) / "refs" / quote(revision, safe="")
            commit = revision if COMMIT.fullmatch(revision) else ref.read_text()
            kept = json.loads((self._repo(repo) / "listings" / f"{commit}.json").read_text())
            files = tuple(File(**fields) for fields in kept["files"])
            return Listing(repo, files, root=None, revision=commit, declared=tuple(kept["declared"]))
        except (OSError, ValueError, TypeError):  # absent, or damaged, which comes to the same
            return None

    def repos(self, org: str) -> set[str]:
        """Return the repositories of an account of which a listing was kept."""
        return {f"{org}/{path.parent.name.split('--', 1)[1]}" for path in self._folder.glob(f"{org}--*/listings")}

    def _repo(self, repo: str) -> Path:
        return self._folder / repo.replace("/", "--")


def _join(root: Path, path: str) -> Path:
    if not is_inside(path):
        raise UnsafeModel(f"the file name {path!r} leads out of the model's folder")
    return root / path


def _is_listed(path: Path, file: File) -> bool:
    """Compare a file with what the listing says of it: its size and the hash that the source knows."""
    if path.is_symlink() or path.stat().st_size != file.size:
        return False
    with path.open("rb") as content:
        if file.sha256:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        if file.git_oid:
            digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
            return hashlib.file_digest(content, lambda: digest).hexdigest() == file.git_oid
    return True


def _write(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
