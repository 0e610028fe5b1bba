"""``fp-audit watch``."""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fp_audit.cli import EXIT_FOUND, EXIT_INCOMPLETE, _options
from fp_audit.errors import UsageError

if TYPE_CHECKING:
    from fp_audit.outbox import Outbox
    from fp_audit.reports._base import Report
    from fp_audit.types import Skipped
    from fp_audit.watching import Plan

SECRET = "FP_AUDIT_WEBHOOK_SECRET"  # noqa: S105 (the name of a variable)
MOST_WAITING = 10_000
"""Messages that wait for a scan; the hub is asked to send others again."""
LOCAL = ("127.0.0.1", "::1", "localhost")


@click.command("watch", short_help="Scan what is new in accounts of a hub, as it comes.")
@click.argument("accounts", nargs=-1, required=True, metavar="ORG...")
@click.option("--every", type=click.IntRange(min=1), metavar="S", help="Look every S seconds. [default: 900]")
@click.option("--once", is_flag=True, help="Look once and end.")
@click.option(
    "--serve",
    metavar="HOST:PORT",
    help=f"Also hear the hub's webhooks there; their secret is in {SECRET}. Without --every the accounts are listed "
    "only at the start.",
)
@click.option("--victim", multiple=True, metavar="NAME", help="Compare with this victim only. Repeatable.")
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Append JSON lines to it."
)
@click.option("--post", metavar="URL", help="Post each report as JSON; tried again until it is taken.")
@click.option(
    "--depth",
    type=click.Choice(("identity", "weights", "queries", "gradients")),
    default="queries",
    show_default=True,
    help="How far down the access ladder.",
)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Models at a time. [default: number of cores]")
@click.option("--timeout", default=600.0, show_default=True, metavar="S", help="Seconds that a model may take a depth.")
@click.option("--max-bytes", type=click.IntRange(min=1), metavar="N", help="Most bytes to download for one model.")
@_options.cpu_device
def command(
    accounts: tuple[str, ...],
    every: int | None,
    once: bool,
    serve: str | None,
    victim: tuple[str, ...],
    report: Path | None,
    post: str | None,
    depth: str,
    jobs: int | None,
    timeout: float,
    max_bytes: int | None,
    device: str,
) -> None:
    """Scan every model of the accounts ORG once, and again when it has a new commit or a victim is registered.

    What was seen and what was not delivered yet is kept in FP_AUDIT_HOME. --once exits like `fp-audit scan --strict`.
    """
    from fp_audit.outbox import Outbox, check_url
    from fp_audit.scanning import ScanOptions
    from fp_audit.types import Access
    from fp_audit.watching import Plan

    if once and (every or serve):
        raise UsageError("--once: expected without --every and --serve")
    options = ScanOptions(depth=Access[depth.upper()], jobs=jobs, timeout=timeout, max_bytes=max_bytes, device=device)
    plan = Plan(accounts, victim, options, report, post and check_url(post))
    if report is not None:
        report.open("a").close()  # tells now if it cannot be written
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Outbox() as outbox, _heard(serve, plan) as inbox:
        if once:
            sys.exit(_once(plan, outbox))
        _forever(plan, outbox, inbox, every or (None if serve else 900))


def _once(plan: Plan, outbox: Outbox) -> int:
    """Look once, deliver all that waits, and return the exit code."""
    from fp_audit.watching import listed

    complete, serious = True, False
    for report in _round(plan, outbox, listed(plan), problem := _Problems()):
        serious |= any(report.fails(finding) for finding in report.findings)
        complete &= not report.skipped and all(finding.verdict != "inconclusive" for finding in report.findings)
    for pause in (0.0, 1.0, 2.0):
        if outbox.waiting():
            time.sleep(pause)
            _deliver(outbox, all_=True)
    if waiting := outbox.waiting():
        click.echo(f"fp-audit: {waiting} report(s) not delivered; they are kept for the next run", err=True)
    if serious:
        return EXIT_FOUND
    return 0 if complete and not problem.count and not waiting else EXIT_INCOMPLETE


def _forever(plan: Plan, outbox: Outbox, inbox: queue.Queue[str], every: int | None) -> None:
    """Look now, then every so many seconds (None: never again), and at what is heard as it is heard."""
    from fp_audit.watching import listed, present

    problem, following = _Problems(), time.monotonic()
    while True:
        if following <= time.monotonic():
            following = time.monotonic() + every if every else float("inf")
            for _ in _round(plan, outbox, listed(plan), problem):
                _deliver(outbox)
        _deliver(outbox)
        pauses = [following - time.monotonic(), outbox.pause(), 3600.0]
        try:
            repo = inbox.get(timeout=max(0.0, min(pause for pause in pauses if pause is not None)))
        except queue.Empty:
            continue
        for _ in _round(plan, outbox, [present(repo)], problem):
            _deliver(outbox)


class _Problems:
    """Says what could not be listed, each time that the reason changes."""

    def __init__(self) -> None:
        self.count = 0
        self._said: dict[str, str] = {}

    def tell(self, item: Skipped) -> None:
        from fp_audit.reports._text import printable

        self.count += 1
        if self._said.get(item.target) != item.reason:
            self._said[item.target] = item.reason
            click.echo(f"fp-audit: {printable(item.target)}: {printable(item.reason)}", err=True)


def _round(
    plan: Plan, outbox: Outbox, models: Iterable[tuple[str, str] | Skipped], problems: _Problems
) -> Iterator[Report]:
    """Examine what is new and print it; one line a finding or skipped model."""
    from fp_audit.reports._text import p_text, printable
    from fp_audit.types import Skipped
    from fp_audit.watching import examine

    found = []
    for item in models:
        if isinstance(item, Skipped):
            problems.tell(item)
        else:
            found.append(item)
    for report in examine(plan, found, outbox):
        for finding in report.ordered():
            said = f"{finding.verdict:15}  {finding.target}@{finding.revision}  {finding.victim}"
            click.echo(printable(f"{said}  p {p_text(finding.p_value)}  {finding.reason}", 1000))
        for skipped in report.skipped:
            click.echo(printable(f"{'skipped':15}  {skipped.target}  {skipped.reason}", 1000))
        sys.stdout.flush()
        yield report


def _deliver(outbox: Outbox, *, all_: bool = False) -> None:
    for attempt in outbox.deliver(all_=all_):
        if attempt.failure:
            click.echo(f"fp-audit: {attempt.host} did not take a report ({attempt.failure}); trying again", err=True)


@contextmanager
def _heard(serve: str | None, plan: Plan) -> Iterator[queue.Queue[str]]:
    """Listen for webhooks, if asked to; gives the queue of models that have changed."""
    inbox: queue.Queue[str] = queue.Queue(MOST_WAITING)
    if serve is None:
        yield inbox
        return
    host, port = _address(serve)
    secret = os.environ.get(SECRET, "")
    if not secret:
        raise UsageError(f"--serve: {SECRET} is not set: set it to the secret of the webhook")
    if host not in LOCAL:
        click.echo("fp-audit: the secret travels unencrypted: put a server with TLS in front", err=True)
    from fp_audit.webhook import serving

    def heard(repo: str) -> bool:
        if plan.watches(repo):
            try:
                inbox.put_nowait(repo)
            except queue.Full:
                return False
        return True

    with serving(host, port, secret, heard) as actual:
        click.echo(f"fp-audit: hearing webhooks on {host}:{actual}", err=True)
        yield inbox


def _address(serve: str) -> tuple[str, int]:
    host, _, port = serve.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--serve {serve}: expected HOST:PORT, for example 127.0.0.1:8100")
    return host.strip("[]"), int(port)
