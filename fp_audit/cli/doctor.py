"""``fp-audit doctor``."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Iterable

import click

_EXTRA = re.compile(r"([\w.-]+).*;.*\bextra == ['\"]([\w.-]+)['\"].*")
"""A requirement of an extra, as the metadata of a distribution has it: name, extra."""


@click.command("doctor", short_help="Show what this machine offers: isolation, devices, libraries.")
def command() -> None:
    """Show what holds on this machine: how suspects are isolated, devices, library versions, folders."""
    from dataclasses import asdict

    import torch

    from fp_audit import plugins, victims
    from fp_audit.engine import cores
    from fp_audit.sandbox import confinement

    click.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}, {cores()} cores")
    for name in ("torch", "onnxruntime", "onnx", "transformers", "timm", "huggingface_hub", "safetensors"):
        click.echo(f"{name} {importlib.metadata.version(name)}")
    for extra, absent in absent_of(importlib.metadata.requires("fp-audit") or ()).items():
        state = f"absent ({', '.join(absent)}): pip install 'fp-audit[{extra}]'" if absent else "installed"
        click.echo(f"extra {extra}: {state}")
    click.echo(f"CUDA for torch: {'yes' if torch.cuda.is_available() else 'no'}")
    for what, holds in asdict(confinement()).items():
        click.echo(f"isolation of suspects, {what.replace('_', ' ')}: {holds}")
    click.echo(f"register: {victims.home()} (victims: {len(victims.names())})")
    for kind, noun in plugins.NOUNS.items():
        click.echo(f"{noun}s: {', '.join(plugins.names(kind))}")


def absent_of(requirements: Iterable[str]) -> dict[str, list[str]]:
    """Name what is not installed of each extra, that for developers left out.

    Args:
        requirements: of the distribution, as its metadata has them: ``ray>=2.9; extra == "ray"``.
    """
    found: dict[str, list[str]] = {}
    for requirement in requirements:
        match = _EXTRA.fullmatch(requirement)
        if match and match[2] != "dev":
            absent = found.setdefault(match[2], [])
            if not any(importlib.metadata.distributions(name=match[1])):
                absent.append(match[1])
    return found
