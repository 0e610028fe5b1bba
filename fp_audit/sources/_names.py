"""What a target's text says before anything is opened; shared by the sources."""

from __future__ import annotations

import os


def is_local(target: str) -> bool:
    """Tell whether a target names something on this disk, whether it exists or not.

    ``modles/foo`` with one slash may be a folder or a hub id: it is local only if it exists.
    """
    return os.path.lexists(target) or looks_local(target)


def looks_local(target: str) -> bool:
    """Tell from its text alone that a target cannot be a hub id."""
    name = target.partition("@")[0]
    return (
        name.count("/") != 1
        or name.startswith((".", "/", "~"))
        or "\\" in name
        or ":" in name
        or target.endswith((".jsonl", ".onnx", ".txt"))
    )


def is_inside(path: str) -> bool:
    """Tell whether a file name, as a listing has it, stays in its folder and can exist on this disk."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))
