"""The command line, in this process (``invoke``) and as people start it (``shell``)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

Invoke = Callable[..., Result]


@pytest.fixture
def invoke() -> Invoke:
    """Run a command in this process, through ``main`` as the installed script does: its exit code and both streams."""

    def run(*arguments: object, **options: object) -> Result:
        import click

        from fp_audit import cli

        @click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
        @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
        def through_main(arguments: tuple[str, ...]) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["fp-audit", *arguments])
                cli.main()

        result = CliRunner().invoke(through_main, ["--", *map(str, arguments)], **options)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the installed script."""
    script = Path(sys.executable).with_name("fp-audit")

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [str(script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
