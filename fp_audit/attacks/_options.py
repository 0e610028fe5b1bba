"""Options as a person writes them (``--set rate=0.5``), read by the types in an attack's constructor."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from fp_audit import plugins
from fp_audit.attacks._base import Attack
from fp_audit.errors import UsageError

_EXPECTED = {bool: "true or false", str: "text"}
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def build(name: str, options: Mapping[str, Any]) -> Attack:
    """Make the attack called ``name``.

    Args:
        name: of a plugin.
        options: values by name, of the option's type or as text.

    Raises:
        UsageError: no such attack or option, or a value that it cannot have.
    """
    kind: type[Attack] = plugins.load("attacks", name)
    known = kind.parameters()
    for key in options:
        if key not in known:
            raise UsageError(f"{name} has no option {key!r}: expected {_listed(known)}")
    return kind(**{key: _read(key, value, known[key].annotation) for key, value in options.items()})


def from_specs(text: str) -> list[Attack]:
    """Make the attacks that a text names: ``NAME:key=value``, several one after another joined by ``+``.

    Raises:
        UsageError: no such attack or option, or a value that it cannot have.
    """
    return [_from_spec(part.strip()) for part in text.split("+")]


def _from_spec(text: str) -> Attack:
    name, *pairs = text.split(":")
    kind: type[Attack] = plugins.load("attacks", name)
    return build(name, options_of(kind, pairs))


def options_of(kind: type[Attack], pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` texts as options of an attack; of two with the same key the last counts.

    Raises:
        UsageError: a text is no pair, an option is unknown or a value is not of its type.
    """
    known, options = kind.parameters(), {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in known:
            raise UsageError(f"{pair!r} is no option of {kind.name}: expected {_listed(known)}")
        options[key] = _read(key, text, known[key].annotation)
    return options


def _listed(known: Mapping[str, inspect.Parameter]) -> str:
    return ", ".join(f"{name}={parameter.default}" for name, parameter in known.items()) or "none"


def _read(key: str, value: Any, wanted: Any) -> Any:  # noqa: ANN401
    """Turn a text, or a value that already has it, into the type that an option's annotation names."""
    if get_origin(wanted) is Literal:
        if value in get_args(wanted):
            return value
        raise UsageError(f"{key} is {value}: expected one of {', '.join(get_args(wanted))}")
    if wanted is bool and isinstance(value, str) and value.lower() in (*_YES, *_NO):
        return value.lower() in _YES
    if wanted in (int, float) and not isinstance(value, bool):
        return _number(key, value, wanted)
    if type(value) is wanted and wanted in _EXPECTED:
        return value
    raise UsageError(f"{key} is {value!r}: expected {_EXPECTED.get(wanted, 'a number')}")


def _number(key: str, value: Any, wanted: type[int] | type[float]) -> int | float:  # noqa: ANN401
    try:
        number = wanted(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or (not isinstance(value, str) and number != value):
        raise UsageError(f"{key} is {value!r}: expected {'a whole number' if wanted is int else 'a number'}")
    return number
