"""The SQLite files of this package: each states what it is and of which version; no other file is touched."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""


def connect(
    path: Path, what: bytes, version: int, tables: Sequence[str], *, page: int = 4096, ahead: bool = False
) -> sqlite3.Connection:
    """Open a file, or make it. Of several processes that begin together one makes the tables.

    Args:
        path: its folder is made if it is missing.
        what: four letters that mark the kind of file (SQLite's ``application_id``).
        version: of its tables (``user_version``).
        tables: one statement each.
        page: bytes of a page of a new file.
        ahead: whether a new file has a write-ahead log: many small writes, readers that do not wait.

    Raises:
        OSError, sqlite3.OperationalError: it cannot be used now.
        sqlite3.DatabaseError: it is something else, of another version or damaged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA page_size = {page}")
        if ahead and _is_new(connection):
            _write_ahead(connection)
        connection.execute("BEGIN IMMEDIATE")
        if _is_new(connection):
            for statement in tables:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {int.from_bytes(what)}")
            connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
        found = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
        if found != (int.from_bytes(what), version):
            raise sqlite3.DatabaseError("something else, or of another version of fp-audit")
    except BaseException:
        connection.close()
        raise
    connection.isolation_level = "DEFERRED"
    return connection


def _is_new(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the log on; for this alone SQLite does not wait for others by itself."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


class Database:
    """An open file, to be used in one thread; it is closed when a ``with`` block ends."""

    _file: sqlite3.Connection

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
