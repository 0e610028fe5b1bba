"""How ``fp-audit scan`` takes its defaults from a policy file, and what it lets pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fp_audit.errors import UsageError

if TYPE_CHECKING:
    from fp_audit.audit import Outcome
    from fp_audit.policy import Baseline, Policy
    from fp_audit.reports._base import Report

MOMENTARY = ("dry-run", "help", "resume", "update-baseline")
"""Options that are about one run: no policy sets them."""


class Configured(click.Command):
    """A command whose options have defaults in the policy file; the policy is ``ctx.obj``.

    Precedence: command line, environment (``FP_AUDIT_*``), file, built-in default.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See ``click.Command``; help needs no policy."""
        if not ctx.resilient_parsing and not set(args) & set(ctx.help_option_names):
            from fp_audit.policy import read

            policy = read(Path.cwd())
            options = {_name(option): option for option in self.get_params(ctx) if isinstance(option, click.Option)}
            known = {name: option for name, option in options.items() if name not in MOMENTARY}
            ctx.obj, ctx.default_map = policy, _defaults(ctx, policy, known)
        return super().parse_args(ctx, args)


def _name(option: click.Option) -> str:
    return max(option.opts, key=len).removeprefix("--")


def _defaults(ctx: click.Context, policy: Policy, known: dict[str, click.Option]) -> dict[str, Any]:
    """Check the options of a policy: parameter -> value."""
    for key, value in policy.options.items():
        if key not in known:
            names = ", ".join(sorted(known))
            raise UsageError(f"{policy.where}: unknown key {key!r}: expected ignore or one of {names}")
        _check(ctx, known[key], value, f"{policy.where}: {key} = {value!r}")
    return {str(known[key].name): value for key, value in policy.options.items()}


def _check(ctx: click.Context, option: click.Option, value: Any, where: str) -> None:  # noqa: ANN401
    """Check the type of a value, as a person would write it in TOML, then what the option itself asks for."""
    wanted, kinds = _wanted(option)
    values = value if option.multiple and isinstance(value, list) else [value]
    if option.multiple != isinstance(value, list) or any(type(item) not in kinds for item in values):
        raise UsageError(f"{where}: expected {wanted}")
    try:
        option.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise UsageError(f"{where}: {error.message}") from None


def _wanted(option: click.Option) -> tuple[str, tuple[type, ...]]:
    if option.is_flag:
        return "true or false", (bool,)
    if isinstance(option.type, click.types.IntParamType):
        return "a whole number", (int,)
    if isinstance(option.type, click.types.FloatParamType):
        return "a number", (int, float)
    return ("a list of texts" if option.multiple else "text"), (str,)


def check_place(policy: Policy, targets: Sequence[str]) -> None:
    """Refuse a policy that may have come with a suspect: it could let itself pass.

    Raises:
        UsageError: a target is the folder that the policy was read from, or holds it.
    """
    here = Path.cwd()
    if not policy.options and not policy.ignore:
        return
    for target in targets:
        folder = Path(target).parent if target.endswith(".safetensors") else Path(target)
        if folder.is_dir() and folder.resolve() in (here, *here.parents):
            raise UsageError(
                f"{target} holds the policy ({policy.where}): a suspect could let itself pass. "
                "Scan it from another folder"
            )


def baseline_of(path: Path | None, *, update: bool) -> Baseline | None:
    """Read the baseline before anything is computed; None where there is none, or where it is written anew."""
    if path is None and update:
        raise UsageError("--update-baseline: expected --baseline FILE, which says where")
    if path is None or update:
        return None
    from fp_audit.policy import read_baseline

    return read_baseline(path)


def settled(
    report: Report, outcomes: Sequence[Outcome], policy: Policy, baseline: Baseline | None, update: Path | None
) -> Report:
    """Mark what is let pass, and say which entries have expired; with ``update``, write the baseline first."""
    from fp_audit.policy import Baseline, contents, write_baseline

    today = date.today()
    for entry in policy.expired(report.findings, today):
        click.echo(f"{policy.where}: the ignore entry for {entry.target!r} expired on {entry.until}", err=True)
    findings = policy.applied(report.findings, today)
    if baseline is not None or update is not None:
        digests = contents(outcome.artifact for outcome in outcomes)
        if update is not None:
            baseline = Baseline.of((item for item in findings if item.ignored is None), digests)
            write_baseline(update, baseline)
        findings = baseline.applied(findings, digests) if baseline else findings
    return replace(report, findings=findings)
