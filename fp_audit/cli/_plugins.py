"""Listing the plugins of a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

import click


def show(kind: str, describe: Callable[[Any], list[str]], mark: Callable[[Any], str] = lambda _: "") -> None:
    """Print each plugin of ``kind``: its name, ``mark`` and summary, then the indented lines of ``describe``."""
    from fp_audit import plugins

    for name, plugin in plugins.load_all(kind).items():
        click.echo(f"{name}{mark(plugin)}: {plugin.summary}")
        for line in describe(plugin):
            click.echo(f"    {line}")


def listed(parameters: Mapping[str, Parameter]) -> str:
    """Render the options of a plugin's constructor with their defaults."""
    return ", ".join(f"{name}={parameter.default}" for name, parameter in parameters.items()) or "none"
