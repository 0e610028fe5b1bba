"""What a project settles once: defaults for ``fp-audit scan``, findings that are let pass, and those known already.

``fp-audit.toml`` in the working directory, else the table ``[tool.fp-audit]`` of its ``pyproject.toml``::

    depth = "weights"               # any option of fp-audit scan
    fail-on = "suspected"

    [[ignore]]                      # [[tool.fp-audit.ignore]] in pyproject.toml
    target = "org/model"            # as reports name it
    victim = "mine"                 # optional: every victim
    until = 2027-01-31              # optional: counts again from the next day on
    reason = "licensed"

What is ignored stays in every report with its reason; it does not count for the exit code.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, Self, TypeAlias

from fp_audit import __version__
from fp_audit.errors import UsageError
from fp_audit.subject import file_digests
from fp_audit.types import Artifact, Finding, Verdict

SCHEMA_VERSION = 1

IN_BASELINE = "in the baseline"
"""Why a finding of the baseline is ignored."""

HARMLESS = (Verdict.INDEPENDENT, Verdict.INCONCLUSIVE)
"""Verdicts that accuse nobody: a baseline has no use for them."""

Address: TypeAlias = tuple[str, str | None]
"""Target and revision of a model."""


@dataclass(frozen=True)
class Ignore:
    """Findings that are let pass."""

    target: str
    reason: str
    victim: str | None = None
    """None for every victim."""
    until: date | None = None
    """The last day; None for ever."""

    def matches(self, finding: Finding) -> bool:
        """Whether this is about the finding, expired or not."""
        return finding.target == self.target and self.victim in (None, finding.victim)

    def expired(self, today: date) -> bool:
        """Whether its last day is over."""
        return self.until is not None and today > self.until


@dataclass(frozen=True)
class Policy:
    """The content of a policy file."""

    where: str = ""
    """The file, for messages."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Defaults for options, by their long names without the dashes; unchecked."""
    ignore: tuple[Ignore, ...] = ()

    def applied(self, findings: Iterable[Finding], today: date) -> tuple[Finding, ...]:
        """Mark the findings that are let pass."""
        return tuple(self._marked(finding, today) for finding in findings)

    def _marked(self, finding: Finding, today: date) -> Finding:
        valid = (entry for entry in self.ignore if entry.matches(finding) and not entry.expired(today))
        entry = next(valid, None)
        if entry is None:
            return finding
        return replace(finding, ignored=entry.reason + (f", until {entry.until}" if entry.until else ""))

    def expired(self, findings: Collection[Finding], today: date) -> list[Ignore]:
        """Return the entries that would let something pass, had they not expired."""
        old = [entry for entry in self.ignore if entry.expired(today)]
        return [entry for entry in old if any(entry.matches(finding) and not finding.ignored for finding in findings)]


def read(folder: Path) -> Policy:
    """Read the policy file of a folder; ``fp-audit.toml`` is taken before ``pyproject.toml``, whole.

    Raises:
        UsageError: it is not TOML, or an ignore entry is wrong.
    """
    own = _table(folder / "fp-audit.toml")
    if own is not None:
        return parse(own, "fp-audit.toml")
    project = _table(folder / "pyproject.toml") or {}
    tool = project.get("tool", {})
    table = tool.get("fp-audit", {}) if isinstance(tool, dict) else {}
    return parse(table, "pyproject.toml: tool.fp-audit")


def _table(path: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # tomllib.TOMLDecodeError and UnicodeDecodeError
        raise UsageError(f"{path.name}: not valid TOML: {error}") from None


def parse(table: Any, where: str) -> Policy:  # noqa: ANN401
    """Check the ignore entries of a policy; its options are left to the one who knows them.

    Raises:
        UsageError: an ignore entry is wrong.
    """
    if not isinstance(table, dict):
        raise UsageError(f"{where}: found {table!r}, expected a table")
    entries = table.get("ignore", [])
    if not isinstance(entries, list):
        raise UsageError(f"{where}: ignore: expected [[...ignore]] entries")
    options = {key: value for key, value in table.items() if key != "ignore"}
    ignore = tuple(_ignore(entry, f"{where}: ignore entry {place}") for place, entry in enumerate(entries, 1))
    return Policy(where, options, ignore)


_KINDS: Mapping[str, tuple[type, str]] = {
    "target": (str, "text"),
    "victim": (str, "text"),
    "reason": (str, "text"),
    "until": (date, "a date such as 2027-01-31, without quotes"),
}


def _ignore(entry: Any, where: str) -> Ignore:  # noqa: ANN401
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: found {entry!r}, expected a table with target and reason")
    for key, value in entry.items():
        if key not in _KINDS:
            raise UsageError(f"{where}: unknown key {key!r}: expected one of {', '.join(_KINDS)}")
        kind, wanted = _KINDS[key]
        if type(value) is not kind:
            raise UsageError(f"{where}: {key} = {value!r}: expected {wanted}")
    for key in ("target", "reason"):
        if not entry.get(key, "").strip():
            raise UsageError(f"{where}: {key} is missing: every entry says which target it lets pass, and why")
    return Ignore(**entry)


@dataclass(frozen=True, order=True)
class Known:
    """A finding as a baseline remembers it. Other files, another verdict or another victim make it a new one."""

    target: str
    victim: str
    verdict: str
    digest: str


@dataclass(frozen=True)
class Baseline:
    """What was found before: only what is new fails."""

    entries: frozenset[Known]

    @classmethod
    def of(cls, findings: Iterable[Finding], digests: Mapping[Address, str | None]) -> Self:
        """Remember the findings that accuse a model; those whose content is unknown are left out."""
        entries = (_known(item, digests) for item in findings if item.verdict not in HARMLESS)
        return cls(frozenset(entry for entry in entries if entry is not None))

    def applied(self, findings: Iterable[Finding], digests: Mapping[Address, str | None]) -> tuple[Finding, ...]:
        """Mark the findings that are remembered."""
        return tuple(
            replace(item, ignored=item.ignored or IN_BASELINE) if _known(item, digests) in self.entries else item
            for item in findings
        )


def _known(finding: Finding, digests: Mapping[Address, str | None]) -> Known | None:
    content = digests.get((finding.target, finding.revision))
    return Known(finding.target, finding.victim, str(finding.verdict), content) if content else None


def contents(artifacts: Iterable[Artifact]) -> dict[Address, str | None]:
    """Return for each model the hex sha256 over the digests of its files, in the order of their names.

    Files that the listing gives no digest of are hashed; None where they are not on this machine.
    """
    return {(artifact.target, artifact.revision): _content(artifact) for artifact in artifacts}


def _content(artifact: Artifact) -> str | None:
    files = sorted(artifact.files, key=lambda file: file.path)
    digests = [file.sha256 or file.git_oid or _hashed(artifact.root, file.path) for file in files]
    return None if None in digests else hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _hashed(root: Path | None, path: str) -> str | None:
    return file_digests(root / path)["sha256"] if root is not None else None


def read_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises:
        UsageError: it does not exist, or is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise UsageError(f"{path}: found schema_version {content['schema_version']}, expected {SCHEMA_VERSION}")
        return Baseline(frozenset(Known(**entry) for entry in content["findings"]))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: write it with --update-baseline") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no baseline of fp-audit ({error}): write it with --update-baseline") from None


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline, whole or not at all."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "fp-audit", "version": __version__},
        "findings": [asdict(entry) for entry in sorted(baseline.entries)],
    }
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
