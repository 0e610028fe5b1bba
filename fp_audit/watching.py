"""Watching accounts of a hub: what is new there is scanned as it comes, and told.

A commit is examined once for each set of victims (and again when another victim is registered). What could not be
judged at all, because a network was down or a model could not be opened, is tried three times in later rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from fp_audit import victims
from fp_audit.errors import UnavailableTarget, UsageError
from fp_audit.outbox import Outbox
from fp_audit.reports._base import Report
from fp_audit.reports.json import Json
from fp_audit.reports.jsonl import JsonLines
from fp_audit.scanning import ScanOptions, scan
from fp_audit.sources import _client
from fp_audit.sources._ranged import Tally
from fp_audit.types import Finding, Skipped

TOGETHER = 20
"""Models that are scanned, and judged, together; what was seen is noted after each lot."""


@dataclass(frozen=True)
class Plan:
    """What is watched, and who is told."""

    accounts: tuple[str, ...]
    """Names of accounts, ``org`` or ``org/``."""
    victim: tuple[str, ...] = ()
    """Names in the register; all of them by default."""
    scan: ScanOptions = field(default_factory=ScanOptions)
    report: Path | None = None
    """JSON lines are appended to it."""
    post: str | None = None
    """Each lot's report, as the format ``json`` has it, is posted to this URL."""

    def __post_init__(self) -> None:
        for account in self.accounts:
            if not account.strip("/") or "/" in account.strip("/"):
                raise UsageError(f"{account!r}: expected the name of an account, such as org")

    def watches(self, repo: str) -> bool:
        """Whether a model is in one of the accounts; a hub does not tell ``Org`` from ``org``."""
        owner = repo.partition("/")[0].lower()
        return owner in {account.strip("/").lower() for account in self.accounts}


def listed(plan: Plan) -> Iterator[tuple[str, str] | Skipped]:
    """List (model, commit) of all accounts; an account that cannot be listed is ``Skipped``."""
    for account in plan.accounts:
        name = account.strip("/")
        try:
            for repo, commit in sorted(_client.commits_of(name).items()):
                yield (repo, commit) if commit else present(repo)
        except UnavailableTarget as error:
            yield Skipped(f"{name}/", str(error))


def present(repo: str) -> tuple[str, str] | Skipped:
    """Ask for the commit of one model."""
    try:
        commit = _client.model_info(repo, None, Tally()).sha
    except UnavailableTarget as error:
        return Skipped(repo, str(error))
    return (repo, commit) if commit else Skipped(repo, "the hub does not tell its commit")


def examine(plan: Plan, models: Iterable[tuple[str, str]], outbox: Outbox) -> Iterator[Report]:
    """Scan the models that are new, lot by lot; each lot is told and noted before the next.

    What is told: every finding; what was skipped, once. Lines of ``plan.report`` may come twice after a crash, what is
    posted comes with a key to tell (``Idempotency-Key``).

    Raises:
        UsageError: there is no such victim, or none at all.
    """
    scope = _scope(plan)
    fresh = [(repo, commit) for repo, commit in dict.fromkeys(models) if outbox.is_new(repo, scope, commit)]
    for lot in (fresh[start : start + TOGETHER] for start in range(0, len(fresh), TOGETHER)):
        results = list(scan([f"{repo}@{commit}" for repo, commit in lot], plan.victim, plan.scan))
        judged = {_repo(item.target) for item in results if isinstance(item, Finding)}
        known = {repo for repo, commit in lot if outbox.tries(repo, scope, commit)}
        report = _report(plan, [item for item in results if _is_news(item, known)])
        told = bool(report.findings or report.skipped)
        if told and plan.report is not None:
            with plan.report.open("a", encoding="utf-8") as stream:
                stream.write(JsonLines().render(report))
        examined = {(repo, commit): repo in judged for repo, commit in lot}
        outbox.note(scope, examined, plan.post, Json().render(report) if told else None)
        yield report


def _is_news(item: Finding | Skipped, known: set[str]) -> bool:
    """Whether something is to be told: what is skipped, only when its commit is tried for the first time."""
    return isinstance(item, Finding) or _repo(item.target) not in known


def _report(plan: Plan, results: Sequence[Finding | Skipped]) -> Report:
    findings = tuple(item for item in results if isinstance(item, Finding))
    skipped = tuple(item for item in results if isinstance(item, Skipped))
    names = plan.victim or tuple(victims.names())
    return Report(names, findings, skipped, plan.scan.alpha, plan.scan.depth)


def _repo(target: str) -> str:
    """Return the repository of ``org/model``, ``org/model@commit`` or ``org/model/folder/file``."""
    return "/".join(target.partition("@")[0].split("/")[:2])


def _scope(plan: Plan) -> str:
    """Return a digest of what models are compared with: the victims as committed to, and the depth."""
    known = [
        f"{victim.name} {victims.describe(victim.name).get('commitment')}" for victim in victims.load_named(plan.victim)
    ]
    return sha256("\n".join([str(plan.scan.depth), *sorted(known)]).encode()).hexdigest()
