"""A file on a hub, read in parts: only what is asked for, each part once, and never more than was allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fp_audit.errors import UnavailableTarget

WHOLE = 2**19
"""Models of up to this many bytes are downloaded as a whole: that costs no more than looking into them does."""
MAX_REQUESTS = 64
"""Most reads of parts for one model."""
MAX_BYTES = 2**23
"""Most bytes that are read in parts for one model; never more than half of it."""


@dataclass
class Tally:
    """What was asked of a hub on account of one repository."""

    requests: int = 0
    """Redirects and repeated ones included."""
    bytes: int = 0
    """Of files; answers of the API are not counted."""


@dataclass
class Allowance:
    """What may still be read in parts for one model."""

    requests: int
    bytes: int

    def take(self, count: int) -> None:
        """Spend one request of ``count`` bytes.

        Raises:
            UnavailableTarget: that would be too much.
        """
        if self.requests < 1 or self.bytes < count:
            raise UnavailableTarget("reading it in parts takes more than a download would")
        self.requests -= 1
        self.bytes -= count


class RangedFile:
    """See ``headers.Readable``. What was fetched is kept."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes], allowance: Allowance) -> None:
        self._size, self._fetch, self._allowance = size, fetch, allowance
        self._blocks: list[tuple[int, bytes]] = []
        self._fetched = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self._size

    @property
    def fetched(self) -> int:
        """Bytes that were fetched so far."""
        return self._fetched

    def read(self, begin: int, end: int, ahead: int = 0) -> bytes:
        """See ``Readable.read``. At most one request.

        Raises:
            UnavailableTarget: the hub cannot be reached or refuses, or the allowance is used up.
        """
        known = self._known(begin, end)
        if len(known) < end - begin:
            start, stop = begin + len(known), min(self._size, max(end, begin + ahead))
            self._allowance.take(stop - start)
            block = known + self._fetch(start, stop)
            self._fetched += stop - start
            self._blocks.append((begin, block))
            known = block[: end - begin]
        return known

    def holds(self, begin: int, end: int) -> bool:
        """Whether these bytes were fetched already."""
        return len(self._known(begin, end)) == end - begin

    def _known(self, begin: int, end: int) -> bytes:
        """Return as much from ``begin`` on as was fetched in one piece."""
        pieces = (
            block[begin - start : end - start] for start, block in self._blocks if start <= begin < start + len(block)
        )
        return max(pieces, key=len, default=b"")
