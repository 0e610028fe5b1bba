"""What a source must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from fp_audit.errors import CorruptModel
from fp_audit.headers import Readable
from fp_audit.sources._ranged import Tally
from fp_audit.types import Artifact, Listing, Skipped

MAX_SMALL_FILE = 4 * 2**20
"""Largest file that ``read`` returns, bytes: configurations are far smaller."""


@dataclass(frozen=True)
class SourceOptions:
    """What the caller allows a source to do."""

    offline: bool = False
    """Use only what is on this machine; make no request."""
    max_bytes: int | None = None
    """Refuse to download more than this for one model."""
    stream: bool = False
    """Delete what was downloaded for a model when it has been examined."""


class Source(ABC):
    """Finds listings for a target as the user typed it, and makes their files local. Subclasses are final."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``--help`` and the README."""
    order: ClassVar[int]
    """Sources are asked in this order; the first that accepts a target resolves it."""

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    @abstractmethod
    def accepts(self, target: str) -> bool:
        """Tell from the text of the target (and the local disk) whether it is this source's."""

    def expand(self, target: str) -> Iterator[str]:
        """Yield the targets that ``target`` stands for: itself, unless it is a list of others."""
        yield target

    @abstractmethod
    def listings(self, target: str) -> Iterator[Listing | Skipped]:
        """List what the target names, without opening a model.

        Raises:
            UnavailableTarget: the target as a whole cannot be listed.
        """

    @abstractmethod
    def read(self, listing: Listing, path: str) -> bytes:
        """Return one small file of a listing.

        Raises:
            UnavailableTarget: it is missing or cannot be fetched.
            CorruptModel: it is larger than ``MAX_SMALL_FILE``.
        """

    @abstractmethod
    def fetch(self, artifact: Artifact) -> Artifact:
        """Make the artifact's files local and return it with ``root`` set. Downloads nothing but ``artifact.files``.

        Raises:
            UnavailableTarget: the network, the hub or ``max_bytes`` does not allow it.
        """

    def release(self, artifact: Artifact) -> None:
        """Give up what ``fetch`` keeps for this artifact alone: it has been examined. By default that is nothing.

        Args:
            artifact: as ``fetch`` returned it, or as it was listed where it was not fetched.
        """
        del artifact

    @abstractmethod
    def missing_bytes(self, artifact: Artifact) -> int:
        """Return how many bytes ``fetch`` would have to download."""

    def missing_requests(self, artifact: Artifact) -> int:
        """Return how many requests ``fetch`` would make at least: none, for what is on this machine."""
        del artifact
        return 0

    def in_parts(self, artifact: Artifact) -> Tally:
        """Return the most requests and bytes that reading in ``parts`` may take: none where that is not offered."""
        del artifact
        return Tally()

    def parts(self, artifact: Artifact) -> Mapping[str, Readable] | None:
        """Return the artifact's files, by path, to be read in parts; None where a download costs no more than that."""
        del artifact
        return None

    def spent(self, artifact: Artifact) -> Tally:
        """Return what was asked of a hub so far on account of the artifact, the listing of its repository included."""
        del artifact
        return Tally()


def check_small(path: str, size: int) -> None:
    """Refuse to read a "small" file that is not small."""
    if size > MAX_SMALL_FILE:
        raise CorruptModel(f"{path} has {size:,} bytes; a configuration of at most {MAX_SMALL_FILE:,} was expected")
