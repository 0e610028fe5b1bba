"""What the SQLite files of this package share: they are closed when a ``with`` block ends."""

from __future__ import annotations

import sqlite3
from types import TracebackType
from typing import Self


class Database:
    """An open file. To be used in one thread."""

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
