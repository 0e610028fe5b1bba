"""Methods by name, and how a command line writes one: ``NAME``, or a composition ``QUERIES+REPRESENTATION+DISTANCE``.

A name is a plugin's (a file in ``fingerprints/``). A composition shows the queries of one method to the suspect, reads
and compares the answers its own way (the frame of QuRD, Godinot et al., AAAI 2025), for example
``boundary+logits+cosine``: IPGuard's queries, compared by the cosine of logits. Options follow after colons:
``zest:images=64:masks=200``.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from fp_audit import plugins
from fp_audit.errors import UsageError
from fp_audit.fingerprints._base import Method
from fp_audit.fingerprints._queried import Queried, composed
from fp_audit.types import Access, Fingerprint

ALL = "all"
"""Names every method in a list of methods; compositions are named one by one."""


def kind(name: str) -> type[Method]:
    """Return the class of a method or of a composition.

    Raises:
        PluginError: there is none of that name.
        UsageError: the parts of a composition do not fit.
    """
    if "+" in name:
        return _composition(name)
    found: type[Method] = plugins.load("fingerprints", name)
    return found


@cache
def _composition(name: str) -> type[Method]:
    parts = name.split("+")
    if len(parts) != 3:
        raise UsageError(f"{name!r}: expected QUERIES+REPRESENTATION+DISTANCE, such as boundary+logits+cosine")
    return composed(query_sets().get(parts[0]), *parts, known=tuple(query_sets()))


@cache
def query_sets() -> dict[str, type[Queried]]:
    """List the query sets that compositions can be made of: name -> the method that makes it."""
    every = plugins.load_all("fingerprints").values()
    return {method.query_set: method for method in every if issubclass(method, Queried) and method.query_set}


def restored(fingerprint: Fingerprint) -> Method:
    """Return the method that made a fingerprint, with the options that it was made with."""
    options = {key: value for key, value in fingerprint.options.items() if key != "seed"}
    return kind(fingerprint.method)(**options)


def rung(name: str, depth: Access) -> Access:
    """Return the access with which a method is run when ``depth`` is the most that is allowed."""
    method = kind(name)
    return min(method.most_access(), max(depth, method.suspect_access))


def chosen(specs: tuple[str, ...], *, queries: int | None, data: bool, siblings: bool = False) -> list[Method]:
    """Build the methods that a command line names; with no name those that are meant to be used by default.

    Args:
        specs: as described above, or ``all``: every method that is not also named, with its defaults.
        queries: budget of the methods that have an option ``queries``, unless a spec states one; None keeps
            their defaults.
        data: whether labelled images were given; without, methods that need them are left out unless named.
        siblings: whether the owner named siblings of the victim: then the method that uses them is a default.

    Raises:
        PluginError: an unknown method.
        UsageError: an unknown option, a value that the method does not take, or siblings that no method uses.
    """
    if queries is not None and queries < 1:
        raise UsageError(f"--queries {queries}: expected at least 1")
    every = [name for name in plugins.names("fingerprints") if data or not kind(name).needs_data]
    if not specs:
        specs = tuple(name for name in every if by_default(name, siblings=siblings))
    singled = {spec.partition(":")[0] for spec in specs}
    rest = [name for name in every if name not in singled]
    named = [name for spec in specs for name in (rest if spec == ALL else [spec])]
    built = [_built(spec, queries) for spec in dict.fromkeys(named)]
    twice = {method.name for method in built if [other.name for other in built].count(method.name) > 1}
    if twice:
        raise UsageError(f"the method {twice.pop()!r} is named twice with different options: name it once")
    if siblings and not any(method.uses_siblings for method in built):
        raise UsageError("--siblings are for the method siblings, which needs --data: name it in --methods too")
    return built


def by_default(name: str, *, siblings: bool) -> bool:
    """Whether a method is used when none is named; ``siblings`` as for ``chosen``."""
    return kind(name).default or (siblings and kind(name).uses_siblings)


def _built(spec: str, queries: int | None) -> Method:
    name, *settings = spec.split(":")
    method = kind(name)
    parameters = inspect.signature(method).parameters
    options: dict[str, Any] = {}
    if queries is not None and "queries" in parameters:
        options["queries"] = queries
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in parameters:
            known = ", ".join(parameters) or "none"
            raise UsageError(f"{spec!r}: {setting!r} is no option of {name}; expected KEY=VALUE with one of: {known}")
        options[key] = _value(spec, key, text, parameters[key].default)
    return method(**options)


def _value(spec: str, key: str, text: str, default: Any) -> Any:  # noqa: ANN401
    """Read an option's value as the type of its default."""
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{spec!r}: {key} is {text!r}; expected true or false")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except ValueError:
        raise UsageError(f"{spec!r}: {key} is {text!r}; expected {type(default).__name__}, such as {default}") from None
