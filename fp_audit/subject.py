"""A model under examination, opened only as far as it is asked for and only as far as it is allowed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from fp_audit.errors import AccessError, UnavailableTarget
from fp_audit.model import Adapter, BlackBox, Finite, LoadOptions, Unprepared, WhiteBox, memoised
from fp_audit.preprocess import Preprocess
from fp_audit.types import Access, Artifact, File

_Offer = TypeVar("_Offer")


class Subject:
    """A victim or a suspect as a method sees it: files, tensors, answers, gradients, each behind its access.

    Nothing is opened before it is asked for; what was opened is kept. ``limited`` gives a view with less access
    that shares what is open.
    """

    def __init__(
        self,
        *,
        files: tuple[File, ...] | None = None,
        root: Path | None = None,
        tensors: Callable[[], Mapping[str, NDArray[Any]]] | None = None,
        black_box: Callable[[], BlackBox | Unprepared] | None = None,
        white_box: Callable[[Preprocess | None], WhiteBox] | None = None,
        preprocess: Preprocess | None = None,
        base: Callable[[], Mapping[str, NDArray[Any]]] | None = None,
        aligned: bool = True,
        access: Access = Access.GRADIENTS,
    ) -> None:
        self._files, self._root = files, root
        self._tensors, self._black_box, self._white_box = tensors, black_box, white_box
        self._preprocess, self._base, self._aligned, self._access = preprocess, base, aligned, access

    @classmethod
    def of_artifact(cls, artifact: Artifact, adapter: Adapter, options: LoadOptions) -> Self:
        """View an artifact through its adapter. It must be fetched before anything but ``files`` is asked for."""
        return cls(
            files=artifact.files,
            root=artifact.root,
            tensors=cache(lambda: adapter.tensors(artifact)),
            black_box=cache(lambda: adapter.load(artifact, options)),
            white_box=cache(lambda preprocess: adapter.load_white(artifact, replace(options, preprocess=preprocess)))
            if Access.GRADIENTS in adapter.gives
            else None,
            preprocess=options.preprocess,
        )

    @classmethod
    def of_model(cls, model: BlackBox, white: WhiteBox | None = None) -> Self:
        """View a model that is already in memory: it can be asked and, given ``white``, differentiated."""
        return cls(black_box=lambda: model, white_box=(lambda _: white) if white else None)

    def limited(self, access: Access) -> Subject:
        """Return a view of the same model that allows ``access`` and less."""
        return self._copy(access=min(access, self._access))

    def seen_as(self, model: BlackBox) -> Subject:
        """Return a view whose ``black_box`` is ``model``: the same model behind a wrapper."""
        return self._copy(black_box=lambda: model)

    def remembering(self) -> Subject:
        """Return a view whose model is asked each distinct batch once, by however many who compare it."""
        offered = self._black_box
        return self._copy(black_box=cache(lambda: memoised(offered()))) if offered else self

    def unaligned(self) -> Subject:
        """Return a view that says that its classes are not the victim's."""
        return self._copy(aligned=False)

    def aligned(self) -> bool:
        """Whether ``black_box`` answers in the victim's class order; asked by methods with ``unaligned_gain``."""
        return self._aligned

    def prepared(self, preprocess: Preprocess) -> Subject:
        """Return a view whose ``white_box`` is fed through ``preprocess``, found out since the model was opened."""
        return self._copy(preprocess=preprocess)

    def with_base(self, base: Subject) -> Subject:
        """Return a view that knows the model which this one and the victim may both have been made from."""
        return self._copy(base=base.tensors)

    def _copy(self, **changes: Any) -> Subject:  # noqa: ANN401
        state = {name.removeprefix("_"): value for name, value in vars(self).items()}
        return Subject(**{**state, **changes})

    def files(self) -> tuple[File, ...]:
        """Return the model's files; a digest may be missing, see ``hashed``."""
        return self._granted(Access.IDENTITY, self._files)

    def hashed(self, file: File) -> File:
        """Return ``file`` with its sha256 and git id, read from disk where the listing did not know them.

        Raises:
            UnavailableTarget: it cannot be read.
        """
        if file.sha256 is not None or self._root is None:
            return file
        try:
            digests = file_digests(self._root / file.path)
        except OSError as error:
            raise UnavailableTarget(f"{file.path!r} cannot be read: {error.strerror or error}") from error
        return replace(file, sha256=digests["sha256"], git_oid=digests["git_oid"])

    def shared(self, base: Artifact) -> tuple[str, ...]:
        """Name the files that equal one of another model, whose digests are known."""
        sizes = {file.size for file in base.files}
        known = {digest for file in base.files for digest in digests(file)}
        return tuple(file.path for file in self.files() if file.size in sizes and digests(self.hashed(file)) & known)

    def tensors(self) -> Mapping[str, NDArray[Any]]:
        """Return all tensors by name, dequantised."""
        return self._granted(Access.WEIGHTS, self._tensors)()

    def base(self) -> Mapping[str, NDArray[Any]] | None:
        """Return the tensors of what this model and the victim may both have been made from; None if it is unknown."""
        return self._granted(Access.WEIGHTS, self._base)() if self._base else None

    def opened(self) -> BlackBox | Unprepared:
        """Return the model as its adapter opened it: it may not yet be ready to be asked."""
        return self._granted(Access.QUERIES, self._black_box)()

    def black_box(self) -> BlackBox:
        """Return the model to be asked.

        Raises:
            AccessError: its preprocessing has not been settled (see ``alignment.settle`` and ``seen_as``).
        """
        model = self.opened()
        if isinstance(model, Unprepared):
            raise AccessError("the model's preprocessing is not known yet")
        return Finite(model)

    def white_box(self) -> WhiteBox:
        """Return the model to be differentiated."""
        return self._granted(Access.GRADIENTS, self._white_box)(self._preprocess)

    def can_be_differentiated(self) -> bool:
        """Whether ``white_box`` was granted and is offered; asking opens nothing."""
        return self._access >= Access.GRADIENTS and self._white_box is not None

    def _granted(self, needed: Access, offered: _Offer | None) -> _Offer:
        if needed > self._access:
            raise AccessError(f"{needed} access was asked for, and only {self._access} was declared")
        if offered is None:
            raise AccessError(f"the model does not offer {needed} access")
        return offered


def digests(file: File) -> set[str]:
    """Return what is known of a file's content: its sha256, its git id, both or nothing."""
    return {digest for digest in (file.sha256, file.git_oid) if digest}


def file_digests(path: Path) -> dict[str, str]:
    """Hash a file the two ways hubs do: ``sha256`` of the content (LFS) and ``git_oid``, the git blob id."""
    sha256, git = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    git.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            sha256.update(block)
            git.update(block)
    return {"sha256": sha256.hexdigest(), "git_oid": git.hexdigest()}
