"""Folders whose only weights are pickles: opening one can run code, so nothing but their hashes is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NoReturn

from numpy.typing import NDArray

from fp_audit.errors import UnsafeModel
from fp_audit.model import WEIGHTS, Adapter, BlackBox, LoadOptions, Read, Unprepared, WhiteBox, target_of
from fp_audit.types import Access, Artifact, Listing, Skipped
from fp_audit_adapters._files import folders

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


class PicklesAdapter(Adapter):
    """Claims what no other adapter may open, so that a copy of a victim's file is found by its hash all the same."""

    name: ClassVar[str] = "pickles"
    summary: ClassVar[str] = "folders with nothing but pickle weights (.bin, .pt, ...): compared by hash, never opened"
    preload: ClassVar[Mapping[Access, tuple[str, ...]]] = {}
    gives: ClassVar[frozenset[Access]] = frozenset({Access.IDENTITY})

    def claim(self, listing: Listing, read: Read) -> Iterator[Artifact | Skipped]:
        """Claim every folder that holds pickles and no weights of another kind."""
        del read
        for folder in folders(listing):
            pickles = tuple(file for name, file in folder.files.items() if name.endswith(PICKLES))
            if pickles and not any(name.lower().endswith(WEIGHTS) for name in folder.files):
                target = target_of(listing, folder.path, alone=False)
                yield Artifact(target, self.name, pickles, folder.path, listing.root, listing.revision, listing.target)

    def lacking(self, artifact: Artifact) -> str:
        """See ``Adapter.lacking``."""
        names = ", ".join(sorted(PurePosixPath(file.path).name for file in artifact.files)[:3])
        return f"only pickle weights ({names}): opening them can run code, so they are never read"

    def tensors(self, artifact: Artifact) -> dict[str, NDArray[Any]]:
        """See ``Adapter.tensors``: refused."""
        self._refuse(artifact)

    def _load(self, artifact: Artifact, options: LoadOptions) -> BlackBox | Unprepared:
        """See ``Adapter.load``: refused."""
        del options
        self._refuse(artifact)

    def _load_white(self, artifact: Artifact, options: LoadOptions) -> WhiteBox:
        """See ``Adapter.load_white``: refused."""
        del options
        self._refuse(artifact)

    def _save(self, model: WhiteBox, folder: Path) -> None:
        """See ``Adapter.save``: refused."""
        del model
        raise UnsafeModel(f"{folder}: models are never written as pickles")

    def _refuse(self, artifact: Artifact) -> NoReturn:
        raise UnsafeModel(f"{artifact.target}: {self.lacking(artifact)}")
