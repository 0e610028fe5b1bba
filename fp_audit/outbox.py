"""What a watch has seen and what it still has to tell, in one SQLite file: neither is lost in a restart.

::

    seen(repo, scope, revision, tries, done)    last commit that was examined, by what it was compared with
    outbox(id, url, body, tries, due)           reports that no server has taken yet
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from fp_audit import victims
from fp_audit.database import Database, connect
from fp_audit.errors import UsageError

TRIES = 3
"""Times that a commit is tried of which nothing could be judged: a network may be down, a model may be unreadable."""
LONGEST_PAUSE = 3600.0
"""Seconds between two attempts to deliver; the pauses begin with 1 s and double."""
TIMEOUT = 30.0
"""Seconds that a server may take."""

_VERSION = 1
_TABLES = (
    """CREATE TABLE seen (repo TEXT, scope TEXT, revision TEXT NOT NULL, tries INTEGER NOT NULL,
    done INTEGER NOT NULL, PRIMARY KEY (repo, scope)) WITHOUT ROWID""",
    """CREATE TABLE outbox (id INTEGER PRIMARY KEY, url TEXT NOT NULL, body TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0)""",
)


@dataclass(frozen=True)
class Delivery:
    """One attempt to hand a report over."""

    host: str
    """Of the server; the rest of its address may hold a password."""
    failure: str | None
    """Why it was not taken; it is tried again later. None if it was."""


class Outbox(Database):
    """The open file. To be used in one thread; several watches may share it."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, by default ``watch.sqlite3`` in ``FP_AUDIT_HOME``.

        Raises:
            UsageError: it is something else.
        """
        path = path or victims.home() / "watch.sqlite3"
        try:
            self._file = connect(path, b"fpaw", _VERSION, _TABLES)
        except sqlite3.DatabaseError as error:
            raise UsageError(f"{path}: not the state of a watch ({error}): move it away") from None

    def is_new(self, repo: str, scope: str, revision: str) -> bool:
        """Whether this commit is still to be examined."""
        asked = "SELECT 1 FROM seen WHERE repo = ? AND scope = ? AND revision = ? AND (done OR tries >= ?)"
        return self._file.execute(asked, (repo, scope, revision, TRIES)).fetchone() is None

    def tries(self, repo: str, scope: str, revision: str) -> int:
        """Return how often a commit has been examined."""
        asked = "SELECT tries FROM seen WHERE repo = ? AND scope = ? AND revision = ?"
        row = self._file.execute(asked, (repo, scope, revision)).fetchone()
        return row[0] if row else 0

    def note(self, scope: str, examined: Mapping[tuple[str, str], bool], url: str | None, body: str | None) -> None:
        """Note what was examined and, in the same step, what is to be told of it.

        Args:
            scope: what it was compared with.
            examined: (repository, commit) -> whether anything could be judged.
            url: where to tell; None for nowhere.
            body: JSON; None if there is nothing to tell.
        """
        rows = [
            (repo, scope, revision, self.tries(repo, scope, revision) + 1, done)
            for (repo, revision), done in examined.items()
        ]
        with self._file:
            self._file.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", rows)
            if url is not None and body is not None:
                self._file.execute("INSERT INTO outbox (url, body) VALUES (?, ?)", (url, body))

    def deliver(self, *, all_: bool = False) -> list[Delivery]:
        """Try to hand over the reports that are due (or all), oldest first; what is taken is forgotten.

        After a failure the others for the same address wait with it.
        """
        now = time.time()
        asked = "SELECT id, url, body, tries FROM outbox WHERE due <= ? ORDER BY id"
        done: list[Delivery] = []
        down: set[str] = set()
        for key, url, body, tries in self._file.execute(asked, (now if not all_ else float("inf"),)).fetchall():
            failure = "not reached" if url in down else _post(url, body)
            with self._file:
                if failure is None:
                    self._file.execute("DELETE FROM outbox WHERE id = ?", (key,))
                else:
                    down.add(url)
                    pause = min(LONGEST_PAUSE, 2.0 ** min(tries, 20))
                    moved = "UPDATE outbox SET tries = tries + 1, due = ? WHERE id = ?"
                    self._file.execute(moved, (time.time() + pause, key))
            done.append(Delivery(urlsplit(url).hostname or "?", failure))
        return done

    def waiting(self) -> int:
        """Return the number of reports that no server has taken yet."""
        count: int = self._file.execute("SELECT count(*) FROM outbox").fetchone()[0]
        return count

    def pause(self) -> float | None:
        """Return the seconds until something is due to be delivered; None if nothing waits."""
        (due,) = self._file.execute("SELECT min(due) FROM outbox").fetchone()
        return None if due is None else max(0.0, due - time.time())


def check_url(url: str) -> str:
    """Return ``url`` if reports can be posted to it.

    Raises:
        UsageError: they cannot.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError("--post: expected a URL such as https://host/path")
    return url


def _post(url: str, body: str) -> str | None:
    """Hand one report over, and say why that failed, if it did. Redirections are not followed."""
    import httpx2

    headers = {"Content-Type": "application/json", "Idempotency-Key": sha256(body.encode()).hexdigest()}
    try:
        answer = httpx2.post(url, content=body.encode(), headers=headers, timeout=TIMEOUT, follow_redirects=False)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return type(error).__name__
    return None if answer.is_success else f"answered with {answer.status_code}"
