"""The index on disk: sketches of many models in one SQLite file.

::

    sketches(digest, shapes, views)     by the digest of a model's files: JSON, and 4 x 256 float16, little-endian
    models(name, address, digest)       which content lies where; ``address`` is what `fp-audit scan` takes: a
                                        repository may hold several models

Every model is committed by itself: an interrupted build goes on where it was. No pickle.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fp_audit import sketches, victims
from fp_audit.database import Database, connect
from fp_audit.errors import UsageError
from fp_audit.sketches import SIZE, VIEWS, Sketch

_STORED = np.dtype("<f2")

_PAGE = 16384
_TABLES = (
    "CREATE TABLE sketches (digest TEXT PRIMARY KEY, shapes TEXT NOT NULL, views BLOB NOT NULL)",
    "CREATE TABLE models (name TEXT PRIMARY KEY, address TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID",
)


@dataclass(frozen=True)
class Place:
    """Where a model lies."""

    name: str
    """For a person; no two models have the same."""
    address: str
    """What `fp-audit scan` takes: a path, or ``org/model@commit``."""


@dataclass(frozen=True)
class Near:
    """A model of the index that is like the one asked for."""

    place: Place
    similarity: float
    """In [-1, 1]; see ``sketches``."""
    shared: float
    """Share of the asked model's matrices whose shape this one has too."""

    @property
    def similar(self) -> bool:
        """Whether the pair should be scanned."""
        return self.similarity >= sketches.SIMILAR


def default_path() -> Path:
    """Return the index that is used where none is named."""
    return victims.home() / "index.sqlite3"


class Index(Database):
    """An open index. To be used in one thread."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Open an index.

        Raises:
            UsageError: there is none, or the file is something else or of another version.
        """
        if not create and not path.is_file():
            raise UsageError(f"{path}: no such index: make one with `fp-audit index build TARGET...`")
        self._path = path
        self._views: tuple[list[Place], list[str], NDArray[np.float16]] | None = None
        try:
            self._file = connect(path, b"fpai", sketches.VERSION, _TABLES, page=_PAGE)
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path}: not an index that can be read ({error}): build it in another file") from None

    def knows(self, digest: str) -> bool:
        """Whether content of this digest has been sketched."""
        return self._file.execute("SELECT 1 FROM sketches WHERE digest = ?", (digest,)).fetchone() is not None

    def add(self, place: Place, digest: str, made: Sketch | None) -> bool:
        """Note where content lies, with its sketch unless that is known already.

        Returns:
            Whether the place is new, or holds other content than before.
        """
        asked = "SELECT 1 FROM models WHERE name = ? AND digest = ?"
        known = self._file.execute(asked, (place.name, digest)).fetchone()
        with self._file:
            if made is not None:
                row = (digest, json.dumps(dict(made.shapes)), made.views.astype(_STORED).tobytes())
                self._file.execute("INSERT OR IGNORE INTO sketches VALUES (?, ?, ?)", row)
            self._file.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", (place.name, place.address, digest))
        self._views = None
        return known is None

    def __len__(self) -> int:
        """Return the number of models."""
        count: int = self._file.execute("SELECT count(*) FROM models").fetchone()[0]
        return count

    def nearest(self, query: Sketch, count: int, *, exclude: str | None = None) -> list[Near]:
        """Return the models that are most like ``query``, the nearest first.

        Args:
            query: what to look for.
            count: at most so many.
            exclude: the name of a model that is left out: the query's own.
        """
        places, shapes, views = self._loaded()
        found = sketches.similarities(query, views)
        order = np.argsort(-found, kind="stable")[: count + 1]
        near = [Near(places[i], float(found[i]), _shared(query, shapes[i])) for i in order]
        return [item for item in near if item.place.name != exclude][:count]

    def _loaded(self) -> tuple[list[Place], list[str], NDArray[np.float16]]:
        """Read everything once: places, shapes, N x 4 x 256.

        Raises:
            UsageError: the file is damaged.
        """
        if self._views is None:
            asked = "SELECT name, address, shapes, views FROM models JOIN sketches USING (digest) ORDER BY name"
            try:
                rows = self._file.execute(asked).fetchall()
                joined = np.frombuffer(b"".join(row[3] for row in rows), _STORED)
                views = joined.astype(np.float16, copy=False).reshape(len(rows), len(VIEWS), SIZE)
            except (sqlite3.DatabaseError, TypeError, ValueError) as error:
                raise UsageError(f"{self._path}: the index is damaged ({error}): build it anew") from None
            self._views = [Place(row[0], row[1]) for row in rows], [row[2] for row in rows], views
        return self._views


def _shared(query: Sketch, shapes: str) -> float:
    theirs: dict[str, int] = json.loads(shapes)
    common = sum(min(count, theirs.get(shape, 0)) for shape, count in query.shapes.items())
    return common / max(1, sum(query.shapes.values()))
