"""Models on the Hugging Face Hub, or on any server that speaks its protocol (``HF_ENDPOINT``).

A repository is listed with one request, which also pins it: everything later asks for that commit. Small files take
one request each; of large ones parts can be read (see ``_ranged``) before anything is downloaded. What was
listed and fetched is kept (see ``_store``), so that ``--offline`` finds the same names, sizes, hashes and
files again; a model that only the client's own cache has is found there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fp_audit.declared import bases
from fp_audit.errors import UnavailableTarget
from fp_audit.headers import Readable
from fp_audit.sources import _cache, _client
from fp_audit.sources._base import MAX_SMALL_FILE, Source, SourceOptions, check_small
from fp_audit.sources._names import is_inside, is_local
from fp_audit.sources._ranged import MAX_BYTES, MAX_REQUESTS, WHOLE, Allowance, RangedFile, Tally
from fp_audit.sources._store import COMMIT, Store, models_folder
from fp_audit.types import Artifact, File, Listing, Skipped

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_NAME = r"(?![\w.-]*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?"
_ACCOUNT = re.compile(rf"({_NAME})/", re.ASCII)
_MODEL = re.compile(rf"({_NAME}/{_NAME}(?<!\.git))(?:@(.+))?", re.ASCII)
_DEFAULT_REVISION = "main"


class HubSource(Source):
    """``org/model``, ``org/model@revision`` or ``org/`` for all models of an account."""

    name = "hub"
    summary = "a model on the Hugging Face Hub (org/model[@revision]) or all models of an account (org/)"
    order = 30

    def __init__(self, options: SourceOptions) -> None:
        super().__init__(options)
        self._brought: dict[tuple[str, str], list[str]] = {}
        """Repository and commit -> files that were downloaded here, or copied from the client's cache."""
        self._used: dict[tuple[str, str, str], int] = {}
        """Fetched model -> descriptor that keeps other processes from deleting its files."""
        self._tallies: dict[tuple[str, str], Tally] = {}

    def accepts(self, target: str) -> bool:
        """See ``Source.accepts``. ``modles/foo`` without such a folder is taken for a hub id."""
        return not is_local(target)

    def listings(self, target: str) -> Iterator[Listing | Skipped]:
        """See ``Source.listings``."""
        if account := _ACCOUNT.fullmatch(target):
            yield from self._account(account[1])
        elif model := _MODEL.fullmatch(target):
            yield from self._model(model[1], model[2])
        else:
            raise UnavailableTarget(
                f"{target}: no such file or folder, and no hub id either (org/model[@revision] or org/, "
                "in letters, digits, '-', '_' and '.')"
            )

    def read(self, listing: Listing, path: str) -> bytes:
        """See ``Source.read``."""
        file = listing.by_path.get(path)
        if file is None:
            raise UnavailableTarget(f"{listing.target} has no file {path!r}")
        check_small(path, file.size)
        root = self._obtain(listing.target, str(listing.revision), (file,))
        with _client.explained(listing.target):
            return (root / path).read_bytes()

    def fetch(self, artifact: Artifact) -> Artifact:
        """See ``Source.fetch``."""
        if _listed(artifact) not in self._used:
            with _client.explained(artifact.target):
                self._used[_listed(artifact)] = self._store.use(*_address(artifact))
        needed, allowed = self.missing_bytes(artifact), self.options.max_bytes
        if allowed is not None and needed > allowed:
            raise UnavailableTarget(f"{artifact.target}: {needed:,} bytes to download, --max-bytes allows {allowed:,}")
        return replace(artifact, root=self._obtain(*_address(artifact), artifact.files))

    def release(self, artifact: Artifact) -> None:
        """See ``Source.release``: when streaming, the files that this source downloaded, unless they are in use."""
        address = _address(artifact)
        used = self._used.pop(_listed(artifact), None)
        if self.options.stream and address in self._brought:
            self._store.discard(*address, self._brought[address], self._store.use(*address) if used is None else used)
        elif used is not None:
            os.close(used)

    def missing_bytes(self, artifact: Artifact) -> int:
        """See ``Source.missing_bytes``."""
        return sum(file.size for file in self._missing(artifact))

    def missing_requests(self, artifact: Artifact) -> int:
        """See ``Source.missing_requests``."""
        return sum(1 if file.size <= MAX_SMALL_FILE else _client.DOWNLOAD for file in self._missing(artifact))

    def in_parts(self, artifact: Artifact) -> Tally:
        """See ``Source.in_parts``. Under ``max_bytes`` they may take what a download leaves, if that is allowed."""
        missing, allowed = self.missing_bytes(artifact), self.options.max_bytes
        if missing <= WHOLE or self._offline:
            return Tally()
        most = min(missing // 2, MAX_BYTES)
        if allowed is not None:
            most = min(most, allowed - missing if missing <= allowed else allowed)
        return Tally(MAX_REQUESTS, most)

    def parts(self, artifact: Artifact) -> Mapping[str, Readable] | None:
        """See ``Source.parts``."""
        most = self.in_parts(artifact)
        if not most.requests:
            return None
        (repo, commit), tally = _address(artifact), self.spent(artifact)
        allowance = Allowance(most.requests, most.bytes)
        return {
            file.path: RangedFile(file.size, _client.Part(repo, file.path, commit, file.size, tally).read, allowance)
            for file in artifact.files
        }

    def spent(self, artifact: Artifact) -> Tally:
        """See ``Source.spent``. One listing of an account names up to 1,000 models; it is nobody's account."""
        return self._tally(*_address(artifact))

    def _tally(self, repo: str, commit: str) -> Tally:
        return self._tallies.setdefault((repo, commit), Tally())

    def _missing(self, artifact: Artifact) -> list[File]:
        """List the files that are not on this machine."""
        repo, commit = _address(artifact)
        missing = (file for file in artifact.files if self._store.find(repo, commit, file) is None)
        return [file for file in missing if _cache.find(repo, commit, file.path) is None]

    @property
    def _store(self) -> Store:
        return Store(models_folder())

    @property
    def _offline(self) -> bool:
        return self.options.offline or _client.is_offline()

    def _account(self, org: str) -> Iterator[Listing | Skipped]:
        """List every model of an account; one that cannot be listed does not stop the others."""
        offline = self._offline
        repos = self._store.repos(org) | _cache.repos(org) if offline else set(_client.commits_of(org))
        if not repos:
            where = "this machine (offline)" if offline else "the hub"
            raise UnavailableTarget(f"{org}/: no such account on {where}, or no model in it that you may see")
        for repo in sorted(repos):
            try:
                if not _MODEL.fullmatch(repo):
                    raise UnavailableTarget("this is not a hub id: org/model was expected")
                found = list(self._model(repo, None))
            except UnavailableTarget as error:
                found = [Skipped(repo, str(error))]
            yield from found

    def _model(self, repo: str, revision: str | None) -> Iterator[Listing | Skipped]:
        """List one repository."""
        if self._offline:
            yield self._recall(repo, revision or _DEFAULT_REVISION)
            return
        tally = Tally()
        info = _client.model_info(repo, revision, tally)
        if not COMMIT.fullmatch(info.sha or ""):
            raise UnavailableTarget(f"{repo}: the hub did not say which commit it listed, got {info.sha!r}")
        files = [_file(repo, sibling) for sibling in info.siblings or ()]
        inside = tuple(sorted((file for file in files if is_inside(file.path)), key=lambda file: file.path))
        outside = [file.path for file in files if not is_inside(file.path)]
        listing = Listing(repo, inside, root=None, revision=info.sha, declared=bases(info.card_data))
        self._tallies[repo, str(info.sha)] = tally
        with contextlib.suppress(OSError):  # a disk that cannot be written is no reason not to list
            self._store.remember(listing, revision or _DEFAULT_REVISION)
        if outside:
            yield Skipped(repo, f"{len(outside)} file(s) left out, the names lead elsewhere: {outside[0]!r}")
        yield listing

    def _recall(self, repo: str, revision: str) -> Listing:
        listing = self._store.recall(repo, revision) or _cache.recall(repo, revision)
        if listing is None:
            raise UnavailableTarget(f"{repo}@{revision}: not on this machine (offline): scan it once without --offline")
        return listing

    def _obtain(self, repo: str, commit: str, files: tuple[File, ...]) -> Path:
        """Bring the files that are missing and return the folder that holds them all."""
        store = self._store
        if any(store.find(repo, commit, file) is None for file in files):
            with _client.explained(repo), store.staging(repo, commit) as staging:
                for file in files:
                    if store.find(repo, commit, file) is None:  # another process may have brought it meanwhile
                        self._bring(staging, repo, commit, file)
                        self._brought.setdefault((repo, commit), []).append(file.path)
        return store.root(repo, commit)

    def _bring(self, staging: Path, repo: str, commit: str, file: File) -> None:
        """Copy one file from the client's cache or download it, and check that it is what was listed."""
        cached = _cache.find(repo, commit, file.path)
        if cached is not None:
            (staging / file.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(cached, staging / file.path)
            if self._store.keep(staging, repo, commit, file):
                return
        if self._offline:
            raise UnavailableTarget(
                f"{repo}: {file.path!r} is not on this machine (offline): scan it once without --offline"
            )
        tally = self._tally(repo, commit)
        if file.size <= MAX_SMALL_FILE:
            content = _client.Part(repo, file.path, commit, file.size, tally).read(0, file.size)
            with _client.explained(f"{repo}: {file.path!r}"):
                (staging / file.path).parent.mkdir(parents=True, exist_ok=True)
                (staging / file.path).write_bytes(content)
        else:
            _client.download(repo, file.path, commit, staging, tally)
        if not self._store.keep(staging, repo, commit, file):
            raise UnavailableTarget(
                f"{repo}: {file.path!r} differs in size or hash from what the hub listed for {commit[:12]}"
            )


def _address(artifact: Artifact) -> tuple[str, str]:
    """Return repository and commit of an artifact that came from a hub."""
    if artifact.listing is None or artifact.revision is None:
        raise UnavailableTarget(f"{artifact.target} does not come from a hub: it has no repository and commit")
    return artifact.listing, artifact.revision


def _listed(artifact: Artifact) -> tuple[str, str, str]:
    """Tell fetched models apart, two of one repository included."""
    return (*_address(artifact), artifact.entry)


def _file(repo: str, sibling: RepoSibling) -> File:
    if not isinstance(sibling.size, int) or sibling.size < 0:
        raise UnavailableTarget(f"{repo}: the hub does not tell the size of {sibling.rfilename!r}: check HF_ENDPOINT")
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    return File(sibling.rfilename, sibling.size, sha256=sha256, git_oid=sibling.blob_id)
