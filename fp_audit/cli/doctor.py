"""``fp-audit doctor``."""

from __future__ import annotations

import importlib.metadata
import platform

import click


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
    click.echo(f"CUDA for torch: {'yes' if torch.cuda.is_available() else 'no'}")
    for what, holds in asdict(confinement()).items():
        click.echo(f"isolation of suspects, {what.replace('_', ' ')}: {holds}")
    click.echo(f"register: {victims.home()} ({len(victims.names())} victims)")
    for kind, noun in plugins.NOUNS.items():
        click.echo(f"{noun}s: {', '.join(plugins.names(kind))}")
