"""The client's own cache, read only: what other programs (or people) have downloaded before.

::

    <cache>/models--<org>--<model>/refs/<revision>            a commit
                                   snapshots/<commit>/<path>  a link to ../../blobs/<sha256 or git id>
"""

from __future__ import annotations

import os
from pathlib import Path

from fp_audit.sources import _client
from fp_audit.sources._names import is_inside
from fp_audit.sources._store import COMMIT
from fp_audit.types import File, Listing


def find(repo: str, commit: str, path: str) -> Path | None:
    """Return where the cache has a file of a commit, None if it has not."""
    found = _folder(repo) / "snapshots" / commit / path
    return found if is_inside(path) and os.path.isfile(found) else None


def recall(repo: str, revision: str) -> Listing | None:
    """List those files of a revision that the cache has, None if it has none."""
    if not is_inside(revision):
        return None
    ref = _folder(repo) / "refs" / revision
    try:
        commit = revision if COMMIT.fullmatch(revision) else ref.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    root = _folder(repo) / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or not root.is_dir():
        return None
    paths = sorted(Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    files = tuple(_file(root, path) for path in paths if os.path.isfile(path))
    return Listing(repo, files, root=None, revision=commit)


def repos(org: str) -> set[str]:
    """Return the repositories of an account of which the cache has files."""
    folders = _client.cache_folder().glob(f"models--{org}--*/snapshots")
    return {f"{org}/{folder.parent.name.split('--', 2)[2]}" for folder in folders}


def _folder(repo: str) -> Path:
    return _client.cache_folder() / f"models--{repo.replace('/', '--')}"


def _file(root: Path, path: Path) -> File:
    """Read the hash from the name of the blob that a snapshot's entry links to."""
    blob = path.readlink().name if path.is_symlink() else ""
    return File(
        path.relative_to(root).as_posix(),
        path.stat().st_size,
        sha256=blob if len(blob) == 64 else None,
        git_oid=blob if len(blob) == 40 else None,
    )
