"""Lists of targets: a text file or the standard input, one target a line."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from fp_audit.errors import UnavailableTarget
from fp_audit.sources._base import MAX_SMALL_FILE, Source
from fp_audit.sources._names import is_local, looks_local
from fp_audit.types import Artifact, Listing, Skipped

_NEWLINE = re.compile(r"\r\n|\r|\n")
_COMMENT = re.compile(r"(?:^|\s)#.*")


class ListingSource(Source):
    """``list.txt`` or ``-``. It holds no models: ``expand`` names the targets that other sources resolve.

    Blank lines and comments (``#`` at the start or after a space) are left out. Local paths are relative to
    the list's folder. A list may name further lists.
    """

    name = "listing"
    summary = "a text file with one target a line (list.txt), or - for the standard input"
    order = 10

    def accepts(self, target: str) -> bool:
        """See ``Source.accepts``."""
        return target == "-" or (target.endswith(".txt") and not os.path.isdir(target))

    def expand(self, target: str) -> Iterator[str]:
        """Yield the targets of a list, and of the lists in it, in order and each once.

        A list that cannot be used is yielded itself; ``listings`` says what is wrong with it.
        """
        waiting, seen = deque([target]), set[str]()
        while waiting:
            item = waiting.popleft()
            key = self._key(item)
            if key in seen:
                continue
            seen.add(key)
            if not self.accepts(item):
                yield item
                continue
            try:
                waiting.extendleft(reversed(self._lines(item)))
            except UnavailableTarget:
                yield item

    def listings(self, target: str) -> Iterator[Listing | Skipped]:
        """See ``Source.listings``: nothing, or the reason why this is not a list."""
        self._lines(target)
        yield from ()

    def read(self, listing: Listing, path: str) -> bytes:
        """See ``Source.read``."""
        raise UnavailableTarget(f"{listing.target} is a list: it holds no files")

    def fetch(self, artifact: Artifact) -> Artifact:
        """See ``Source.fetch``."""
        raise UnavailableTarget(f"{artifact.target} is a list: it holds no files")

    def missing_bytes(self, artifact: Artifact) -> int:
        """See ``Source.missing_bytes``."""
        return 0

    def _key(self, item: str) -> str:
        """Return what makes two targets the same: the real file for lists, so that loops end."""
        if item == "-" or not is_local(item):
            return item
        return os.path.realpath(item) if self.accepts(item) else os.path.abspath(item)

    def _lines(self, target: str) -> list[str]:
        """Return the targets in a list.

        Raises:
            UnavailableTarget: it is missing, binary, far too long or empty.
        """
        name = "the standard input" if target == "-" else target
        content = self._standard_input if target == "-" else _read(target)
        if len(content) > MAX_SMALL_FILE:
            raise UnavailableTarget(f"{name}: too long for a list, at most {MAX_SMALL_FILE:,} bytes were expected")
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise UnavailableTarget(f"{name}: not a text file in UTF-8; a list with one target a line was expected")
        lines = (_COMMENT.sub("", line).strip() for line in _NEWLINE.split(text))
        targets = [_from(os.path.dirname(target), line) for line in lines if line]
        if not targets:
            raise UnavailableTarget(f"{name}: the list is empty; one target a line was expected")
        return targets

    @cached_property
    def _standard_input(self) -> bytes:
        return sys.stdin.buffer.read(MAX_SMALL_FILE + 1)


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_SMALL_FILE + 1)
    except OSError as error:
        raise UnavailableTarget(f"{path}: this list cannot be read: {error.strerror}") from error


def _from(folder: str, line: str) -> str:
    """Put the list's folder in front of a line that is a path."""
    path = os.path.join(folder, line.removeprefix("./"))
    return path if folder and line != "-" and (os.path.lexists(path) or looks_local(line)) else line
