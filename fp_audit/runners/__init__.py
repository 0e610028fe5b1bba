"""Who runs ``audit.examine`` for many models: one way a file.

``local`` uses the cores of this machine, ``ray`` those of a cluster. Both offer ``run(located, job, *, jobs)``: they
take models one by one from an iterator as there is room for them, and yield outcomes as they come. What is found out
about a model does not depend on who ran it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

from fp_audit.audit import Outcome
from fp_audit.errors import UsageError
from fp_audit.types import Skipped

ENGINES = ("local", "ray")
"""What ``--engine`` takes."""

AHEAD = 2
"""Models whose files are fetched and hashed while as many as there is room for are open."""


def runner(engine: str) -> Callable[..., Iterator[Outcome | Skipped]]:
    """Return the ``run`` of an engine.

    Raises:
        UsageError: there is none of that name.
    """
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: expected one of {', '.join(ENGINES)}")
    module: Any = importlib.import_module(f"{__name__}.{engine}")
    found: Callable[..., Iterator[Outcome | Skipped]] = module.run
    return found
