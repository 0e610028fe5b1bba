"""The table of operators: each one a pure function, registered under its ONNX name and opset range.

A function takes the operator's inputs in ONNX order (``None`` for an absent one) and the attributes as
keyword-only arguments of the same name with the defaults of the specification
(https://onnx.ai/onnx/operators). A trailing underscore (``min_``) keeps an attribute off a builtin.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

MICROSOFT = "com.microsoft"
_LATEST = 10_000
_COUNTS = frozenset({"inputs", "outputs"})

IGNORED_ATTRIBUTES = frozenset({"consumed_inputs", "is_test", "momentum", "seed", "stash_type"})
"""Attributes that change nothing at inference."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator over a range of opsets."""

    name: str
    domain: str
    since: int
    until: int
    function: Callable[..., Any]
    attributes: dict[str, str]
    """ONNX name of each attribute to the name of the function's argument."""
    host: frozenset[int]
    """Inputs that the function wants as Python numbers or lists: shapes, axes, limits."""
    scalars: frozenset[int]
    """Inputs that the function prefers as a Python number where a constant of no dimensions feeds them."""
    fixed: frozenset[int]
    """Float inputs that are not trained: statistics, scales of quantisers."""
    weights: frozenset[int]
    """Integer inputs that the function computes with in float: constants are converted once."""
    zeros: frozenset[int]
    """Zero points, which mean the same when absent: constants of zeros are dropped."""
    result: tuple[int, int] | None
    """Inputs that hold scale and zero point of a quantised result."""
    counts: frozenset[str]
    """Which of the arguments ``inputs`` and ``outputs`` the function wants: how many the node lists."""


_TABLE: dict[tuple[str, str], list[Operator]] = {}


def operator(
    *names: str,
    domain: str = "",
    since: int = 1,
    until: int = _LATEST,
    host: tuple[int, ...] = (),
    scalars: tuple[int, ...] = (),
    fixed: tuple[int, ...] = (),
    weights: tuple[int, ...] = (),
    zeros: tuple[int, ...] = (),
    result: tuple[int, int] | None = None,
) -> Callable[[F], F]:
    """Registers the decorated function under ``names``. See `Operator` for the options.

    Raises:
        ValueError: an operator of that name and opset is registered already.
    """

    def register(function: F) -> F:
        keywords = _keywords(function)
        for name in names:
            entry = Operator(
                name=name,
                domain=domain,
                since=since,
                until=until,
                function=function,
                attributes={keyword.rstrip("_"): keyword for keyword in keywords if keyword not in _COUNTS},
                host=frozenset(host),
                scalars=frozenset(scalars),
                fixed=frozenset(fixed),
                weights=frozenset(weights),
                zeros=frozenset(zeros),
                result=result,
                counts=_COUNTS.intersection(keywords),
            )
            versions = _TABLE.setdefault((domain, name), [])
            if any(since <= other.until and other.since <= until for other in versions):
                raise ValueError(f"operator {domain}.{name} is registered twice for opset {since}")
            versions.append(entry)
        return function

    return register


def find(domain: str, name: str, opset: int) -> Operator | None:
    """The operator as opset ``opset`` of its domain defines it, or None."""
    versions = _TABLE.get(("" if domain == "ai.onnx" else domain, name), [])
    return next((entry for entry in versions if entry.since <= opset <= entry.until), None)


def registered() -> list[tuple[str, str]]:
    """Domain and name of all operators, sorted."""
    return sorted(_TABLE)


def _keywords(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # A builtin of torch, which takes tensors only.
        return []
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
