"""Finds methods, attacks, adapters, sources and reports: a file in the folder, or an entry point.

A built-in plugin is one module in the folder of its kind; its name is the file's name with ``-`` for ``_``,
and the module holds exactly one public subclass of the kind's base class. Another distribution adds one
through an entry point in the group ``fp_audit.<kind>`` that names such a class. Names are listed without
importing anything; a plugin is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from fp_audit.errors import PluginError

FOLDERS = {
    "fingerprints": "fp_audit.fingerprints",
    "attacks": "fp_audit.attacks",
    "adapters": "fp_audit_adapters",
    "sources": "fp_audit.sources",
    "reports": "fp_audit.reports",
}
"""Kind of plugin -> package that holds the built-in ones, one a file."""

NOUNS = {
    "fingerprints": "method",
    "attacks": "attack",
    "adapters": "adapter",
    "sources": "source",
    "reports": "report format",
}


@cache
def names(kind: str) -> tuple[str, ...]:
    """List the plugins of a kind, sorted, without importing them.

    Raises:
        PluginError: two plugins claim one name.
    """
    found = [*_files(kind), *(point.name for point in _entry_points(kind))]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise PluginError(f"two {NOUNS[kind]}s are called {twice[0]!r}: uninstall one of the packages that bring it")
    return tuple(sorted(found))


@cache
def load(kind: str, name: str) -> type[Any]:
    """Import one plugin and return its class.

    Raises:
        PluginError: there is none of that name, or its module does not hold exactly one class of the kind.
    """
    if name not in names(kind):
        raise PluginError(f"no {NOUNS[kind]} called {name!r}: expected one of {', '.join(names(kind))}")
    if name not in _files(kind):
        point = next(point for point in _entry_points(kind) if point.name == name)
        try:
            loaded: type[Any] = point.load()
        except (AttributeError, ImportError) as error:
            raise PluginError(f"the {NOUNS[kind]} {name!r} ({point.value}) cannot be imported: {error}") from error
        return loaded
    module = importlib.import_module(f"{FOLDERS[kind]}.{name.replace('-', '_')}")
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and value.__dict__.get("name") == name
    ]
    if len(classes) != 1:
        raise PluginError(f"{module.__name__} must hold one class with name = {name!r}, found {len(classes)}")
    return classes[0]


def load_all(kind: str) -> dict[str, type[Any]]:
    """Import every plugin of a kind: name -> class."""
    return {name: load(kind, name) for name in names(kind)}


def versions() -> dict[str, str]:
    """Return where further plugins come from: ``kind name`` -> distribution and version."""
    points = [(kind, point) for kind in FOLDERS for point in _entry_points(kind)]
    return {f"{kind} {point.name}": f"{point.dist.name} {point.dist.version}" for kind, point in points if point.dist}


@cache
def _files(kind: str) -> tuple[str, ...]:
    spec = importlib.util.find_spec(FOLDERS[kind])
    folders = spec.submodule_search_locations if spec else None
    paths = (path for folder in folders or () for path in Path(folder).glob("*.py"))
    return tuple(sorted(path.stem.replace("_", "-") for path in paths if not path.stem.startswith("_")))


@cache
def _entry_points(kind: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=f"fp_audit.{kind}"))
