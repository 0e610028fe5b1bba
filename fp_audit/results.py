"""What scans found out about models, kept on this disk in one SQLite file: ``FP_AUDIT_HOME/results.sqlite``.

An interrupted scan loses nothing and, resumed, repeats nothing; a later scan of the same content need not open a model
again. A result is taken over only where the caller asked for it (``--resume``) and everything that it depends on is the
same: the digests of the model's files, the victims' commitments, the versions of fp-audit, of the libraries and of
plug-ins, and every option that changes a result. The key is a digest of all that; what is stored is the outcome of
``audit.examine``. Files on this disk are hashed each time, their dates are not believed; those of a hub are known by
the hashes of its listing. Skipped models and examinations that broke off are not kept: they are tried again.

The file may be deleted whenever no scan runs. Several scans may use it at once (write-ahead log).
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp_audit import __version__, database, plugins, victims
from fp_audit.answers import Answers
from fp_audit.audit import Job, Outcome, hashed
from fp_audit.engine import versions
from fp_audit.errors import UnavailableTarget, UsageError
from fp_audit.types import Access, Artifact, Cost, Evidence, File

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

FILE = "results.sqlite"
_SCHEMA_VERSION = 1
_TABLE = "CREATE TABLE outcomes (key TEXT PRIMARY KEY, examined TEXT NOT NULL, outcome BLOB NOT NULL) WITHOUT ROWID"


class Results:
    """The results of one kind of scan: one set of victims, options and versions."""

    def __init__(self, connection: sqlite3.Connection | None, context: str = "", *, recalling: bool = False) -> None:
        self._connection, self._context, self._recalling = connection, context, recalling

    def recall(self, artifact: Artifact) -> Outcome | None:
        """Return what an earlier scan found out about a model, as it is listed now; None if it must be examined."""
        key = self._key(artifact) if self._recalling and self._connection else None
        if key is None or self._connection is None:
            return None
        row = self._connection.execute("SELECT examined, outcome FROM outcomes WHERE key = ?", (key,)).fetchone()
        try:
            found = unpack(row[1]) if row else None
        except (AttributeError, KeyError, TypeError, ValueError, zlib.error):
            return None
        if found is None:
            return None
        here = replace(artifact, files=found.artifact.files)
        return replace(found, artifact=here, cost=replace(found.cost, examined=row[0]))

    def note(self, listed: Artifact, outcome: Outcome, packed: bytes) -> None:
        """Keep an outcome. A disk that is full costs the next scan time, and not this one its result.

        Args:
            listed: the model as it was listed.
            outcome: what was found out; its artifact holds the digests that were taken before the model was opened.
            packed: the outcome as ``pack`` has it.
        """
        if self._connection is None or outcome.failure is not None:
            return
        key = self._key(listed if listed.root is None else outcome.artifact)
        if key is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._connection.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?)", (key, now, packed))
        except sqlite3.Error as error:
            logger.warning("results are not kept any more (%s): --resume will not know what comes now", error)
            self._connection = None

    def _key(self, artifact: Artifact) -> str | None:
        """Return what a result is found by; None where the content of a file is not known."""
        try:
            files = (artifact if artifact.root is None else hashed(artifact)).files
        except UnavailableTarget:
            return None
        contents = [[file.path, file.size, file.sha256 or file.git_oid] for file in files]
        if any(content[2] is None for content in contents):
            return None
        return digest([self._context, artifact.adapter, artifact.entry, sorted(contents)])


@contextmanager
def opened(job: Job, *, recalling: bool) -> Iterator[Results]:
    """Open the results of scans that do this job.

    Args:
        job: with all that a result depends on besides the model; without digests of files nothing is kept.
        recalling: whether earlier results are taken over; new ones are kept in any case.

    Raises:
        UsageError: the file is damaged, or is not ours.
    """
    path = victims.home() / FILE
    connection = None
    try:
        connection = _connect(path) if job.digests else None
    except (OSError, sqlite3.OperationalError) as error:
        logger.warning("%s cannot be used (%s): an interruption will lose what was found", path, error)
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{path} is damaged or no SQLite file ({error}): move it away, or delete it") from None
    if connection is None:
        yield Results(None)
        return
    with closing(connection):
        yield Results(connection, context(job), recalling=recalling)


def _connect(path: Path) -> sqlite3.Connection:
    connection = database.connect(path, b"fpar", _SCHEMA_VERSION, [_TABLE], ahead=True)
    connection.isolation_level = None  # each result is kept as it comes
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def context(job: Job) -> str:
    """Return the digest of all that a result depends on besides the model.

    Limits are not part of it: a model that broke one has no result.
    """
    committed = {victim.name: victims.committed(folder) for folder, victim in job.victims.items()}
    options = {
        "depth": int(job.depth),
        "alpha": job.alpha,
        "device": job.load.device,
        "preprocess": job.load.preprocess and job.load.preprocess.to_json(),
        "exhaustive": job.exhaustive,
        "record": job.record,
        "repeats": job.repeats,
        "base": job.base and sorted([file.path, file.sha256] for file in job.base.files),
    }
    return digest([__version__, versions(), plugins.versions(), committed, options])


def digest(facts: Any) -> str:  # noqa: ANN401
    """Return the hex sha256 of JSON values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def pack(outcome: Outcome) -> bytes:
    """Turn an outcome into compressed JSON, one or two kB; where the model's files lie is left out."""
    answers = {victim: said.to_json() for victim, said in outcome.answers.items()}
    whole = asdict(replace(outcome, answers={}))
    whole |= {"artifact": {**whole["artifact"], "root": None}, "answers": answers}
    return zlib.compress(json.dumps(whole).encode())


def unpack(packed: bytes) -> Outcome:
    """Restore an outcome.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, zlib.error: it is damaged.
    """
    data: Mapping[str, Any] = json.loads(zlib.decompress(packed))
    stored = data["artifact"]
    declared = None if stored["declared"] is None else tuple(stored["declared"])
    artifact = Artifact(**{**stored, "files": tuple(File(**file) for file in stored["files"]), "declared": declared})
    evidence = {
        victim: tuple(Evidence(**{**item, "access": Access(item["access"])}) for item in items)
        for victim, items in data["evidence"].items()
    }
    return Outcome(
        **{
            **data,
            "artifact": artifact,
            "evidence": evidence,
            "cost": Cost(**data["cost"]),
            "answers": {victim: Answers.from_json(said) for victim, said in data["answers"].items()},
        }
    )
