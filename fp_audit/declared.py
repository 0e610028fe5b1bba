"""What a model's card says it was made from, held against what was found."""

from __future__ import annotations

import re
from typing import Any

from fp_audit.types import Verdict

MAX_CARD = 2**16
"""Characters of a card's front matter that are read."""
MAX_BASES = 20
MAX_NAME = 200
"""Characters of a name."""

_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def from_card(text: str) -> tuple[str, ...]:
    """Return the models that a card (README.md) names as ``base_model`` in its front matter, none if it has none."""
    import yaml

    found = _FRONT_MATTER.match(text[:MAX_CARD])
    try:
        return bases(yaml.safe_load(found[1])) if found else ()
    except (yaml.YAMLError, RecursionError, ValueError):
        return ()


def bases(card: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Return the models that a card's metadata name as ``base_model``.

    Args:
        card: the metadata, an object with ``get``; anything else names none.
    """
    named = card.get("base_model") if hasattr(card, "get") else None
    listed = named if isinstance(named, list) else [named]
    return tuple(name.strip()[:MAX_NAME] for name in listed[:MAX_BASES] if isinstance(name, str) and name.strip())


def contradiction(verdict: Verdict, target: str, declared: tuple[str, ...] | None, source: str | None) -> str | None:
    """Say where a card and a verdict tell different stories, to follow "the target ..."; None where they do not.

    Args:
        verdict: what was found.
        target: the model.
        declared: what its card names; None where there is no card.
        source: what the victim was registered from; a hub id may be named by a card.
    """
    if declared is None or source is None:
        return None
    victim = source.partition("@")[0].casefold()
    names_victim = victim in (name.partition("@")[0].casefold() for name in declared)
    if verdict == Verdict.INDEPENDENT and names_victim:
        return f"declares {source} as its base model, and shows no trace of it"
    if (
        verdict not in (Verdict.IDENTICAL, Verdict.DERIVED)
        or names_victim
        or f"{target}/".casefold().startswith(f"{victim}/")
    ):
        return None
    if not declared:
        return "declares no base model"
    return f"declares {', '.join(declared)} as its base model; the victim is {source}"
