"""The command line: one file a command. Only this package prints and exits."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

import click

from fp_audit import __version__
from fp_audit.errors import FpAuditError

COMMANDS = (
    "register",
    "scan",
    "queries",
    "compare",
    "attack",
    "stress",
    "evaluate",
    "index",
    "watch",
    "verify-bundle",
    "victims",
    "methods",
    "attacks",
    "adapters",
    "doctor",
)
"""In the order of ``--help``. Each module holds ``command`` and imports only click before it is called."""

EXIT_FOUND, EXIT_USAGE, EXIT_NOTHING, EXIT_INCOMPLETE, EXIT_INTERRUPTED = 1, 2, 3, 4, 130


_FULL = ("No space left on device", "Disk quota exceeded")
"""What errors of libraries say that wrap the operating system's."""


class _Lazy(click.Group):
    """Imports the module of a command when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"fp_audit.cli.{cmd_name.replace('-', '_')}").command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a reader that has seen enough (``| head``) is no error."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _forget_stdout()
            return 0


def show(text: str) -> None:
    """Write a report to stdout; if nobody reads on, the exit code still tells the result."""
    try:
        click.echo(text, nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()


def _forget_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="fp-audit", message="%(prog)s %(version)s")
def cli() -> None:
    """Tell whether a model is derived from a model that you own.

    Register a victim once, then scan folders, ONNX files or hub repositories for its copies and surrogates.

    Exit codes: 0 not found, 1 found, 2 usage or error, 3 nothing auditable, 4 incomplete (--strict), 130 interrupted.
    """


def main() -> None:
    """Run the command line; errors that are meant for the user become one line on stderr."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("fp-audit: interrupted", err=True)
        code = EXIT_INTERRUPTED
    except FpAuditError as error:
        click.echo(f"fp-audit: {error}", err=True)
        code = EXIT_USAGE
    except Exception as error:
        code = EXIT_USAGE  # not Python's 1, which would say that a surrogate was found
        if any(text in str(error) for text in _FULL):
            click.echo("fp-audit: the disk is full: make room and try again; what was finished is kept", err=True)
        elif isinstance(error, OSError):
            where = f": {error.filename}" if error.filename else ""
            click.echo(f"fp-audit: {error.strerror or error}{where}", err=True)
        else:
            traceback.print_exc()
            click.echo("fp-audit: this is a bug, and nothing was decided; please report the lines above", err=True)
    sys.exit(code if isinstance(code, int) else 0)
