"""Models on this disk: a model folder, a folder of models however deep, or one model file."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fp_audit import augmentation
from fp_audit.errors import UnavailableTarget
from fp_audit.sources._base import MAX_SMALL_FILE, Source, SourceOptions, check_small
from fp_audit.sources._names import is_local
from fp_audit.types import Artifact, File, Listing, Skipped

IGNORED = frozenset({".cache", ".git", ".hg", ".svn", ".venv", "__pycache__"})
"""Folders of tools, which are not searched. Other hidden folders are: a model may be hidden in one."""


class DirectorySource(Source):
    """A path. The whole tree is one listing; adapters find the models in it.

    A ``.safetensors`` file says too little to be a model: it stands for its folder.
    """

    name = "directory"
    summary = "a model folder, a folder of models (searched recursively) or one model file"
    order = 20

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        self._copies: dict[str, tempfile.TemporaryDirectory[str]] = {}
        """Folder -> copies of linked files; what is not released goes with the process."""

    def accepts(self, target: str) -> bool:
        """See ``Source.accepts``. A path that does not exist is accepted too, to say so."""
        return is_local(target)

    def listings(self, target: str) -> Iterator[Listing | Skipped]:
        """See ``Source.listings``."""
        if target.endswith(".safetensors") and os.path.isfile(target):
            target = os.path.dirname(target) or "."
        if os.path.isdir(target):
            name = base = target.rstrip("/") or "/"
            root, found = Path(target), _walk(target)
        elif os.path.isfile(target):
            name, base = target, os.path.dirname(target)
            root, found = Path(target).parent, _beside(Path(target))
        elif os.path.lexists(target):
            raise UnavailableTarget(f"{target}: neither a file nor a folder, or a link that leads nowhere")
        else:
            raise UnavailableTarget(f"{target}: no such file or folder")
        files = []
        for item in found:
            if isinstance(item, File):
                files.append(item)
            else:
                yield Skipped(os.path.join(base, item.path) if item.path else base, item.reason)
        yield Listing(name, tuple(sorted(files, key=lambda file: file.path)), root)

    def read(self, listing: Listing, path: str) -> bytes:
        """See ``Source.read``."""
        if listing.root is None or path not in listing.by_path:
            raise UnavailableTarget(f"{listing.target} has no file {path!r}")
        try:
            with (listing.root / path).open("rb") as file:
                content = file.read(MAX_SMALL_FILE + 1)
                check_small(path, max(len(content), os.fstat(file.fileno()).st_size))
        except OSError as error:
            raise UnavailableTarget(f"{listing.target}: {path!r} cannot be read: {error.strerror}") from error
        return content

    def fetch(self, artifact: Artifact) -> Artifact:
        """See ``Source.fetch``.

        Files that are links (a snapshot in a hub cache has nothing else) are copied to a temporary folder:
        the sandbox may read nothing but the model's folder, and ONNX refuses external data behind links.
        """
        root = artifact.root
        if root is None or not any((root / file.path).is_symlink() for file in artifact.files):
            return artifact
        try:
            copies = tempfile.TemporaryDirectory(prefix="fp-audit-", ignore_cleanup_errors=True)
            folder = Path(copies.name)
            self._copies[copies.name] = copies
            for file in artifact.files:
                (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / file.path, folder / file.path)
        except OSError as error:
            raise UnavailableTarget(
                f"{artifact.target}: its files are links and cannot be copied to "
                f"{tempfile.gettempdir()} ({error.strerror}): let TMPDIR name a folder with room"
            ) from error
        return replace(artifact, root=folder)

    def release(self, artifact: Artifact) -> None:
        """See ``Source.release``: copies of linked files."""
        copies = self._copies.pop(str(artifact.root), None)
        if copies is not None:
            copies.cleanup()

    def missing_bytes(self, artifact: Artifact) -> int:
        """See ``Source.missing_bytes``: nothing, it is all here."""
        return 0


@dataclass(frozen=True)
class _Refused:
    """Something in the tree that could not be looked at."""

    path: str
    reason: str


def _walk(root: str) -> Iterator[File | _Refused]:
    """Visit every file below a folder, without following links to folders."""
    allowed = _allowed_roots(root)
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if not entry.is_dir(follow_symlinks=False):
                        yield from _look(entry, path, allowed)
                    elif entry.name not in IGNORED:
                        folders.append(path)
        except OSError as error:
            yield _Refused(folder, f"this folder cannot be read: {error.strerror}")


def _beside(model: Path) -> Iterator[File | _Refused]:
    """Visit a lone model, the data files beside it whose names begin with its name, and ``augmentation.json``.

    The model itself may be a link to anywhere, because it was named by the user; the data files may not.
    """
    allowed = (*_allowed_roots(str(model.parent)), os.path.realpath(model))
    try:
        with os.scandir(model.parent) as entries:
            for entry in entries:
                if entry.name.startswith((model.name, augmentation.FILE)) and not entry.is_dir(follow_symlinks=False):
                    yield from _look(entry, entry.name, allowed)
    except OSError as error:
        yield _Refused(model.name, f"its folder cannot be read: {error.strerror}")


def _look(entry: os.DirEntry[str], path: str, allowed: tuple[str, ...]) -> Iterator[File | _Refused]:
    """Take an ordinary file, refuse with a reason what a person would miss, and pass over the rest."""
    try:
        found = entry.stat()
    except OSError as error:
        yield _Refused(path, f"this file cannot be read: {error.strerror}")
        return
    if entry.is_symlink() and not _is_within(os.path.realpath(entry.path), allowed):
        yield _Refused(path, "this link leads out of the folder; only links inside it are followed")
    elif stat.S_ISREG(found.st_mode) and not os.access(entry.path, os.R_OK):
        yield _Refused(path, "this file cannot be read: permission denied")
    elif stat.S_ISREG(found.st_mode):
        yield File(path, found.st_size)


def _is_within(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def _allowed_roots(root: str) -> tuple[str, ...]:
    """Return where links may lead: into the folder; from a snapshot of a hub cache, also into its blobs."""
    real = os.path.realpath(root)
    for folder in Path(real).parents:
        if folder.name == "snapshots" and folder.parent.name.startswith("models--"):
            cache = folder.parent.parent
            shared = (cache / "blobs" / ".huggingface-shared-blobs").is_file()
            blobs = (folder.parent / "blobs", *([cache / "blobs"] if shared else []))
            return (real, *map(str, blobs))
    return (real,)
