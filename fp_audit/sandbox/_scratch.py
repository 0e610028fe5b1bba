"""Removes scratch folders, in which a suspect may have left anything."""

from __future__ import annotations

import itertools
import os
from pathlib import Path


def erase(folder: Path) -> None:
    """Remove a folder that nobody writes to any more, whatever was left in it.

    Unlike ``shutil.rmtree`` it copes with any depth of nesting and with folders without permissions.
    Links are removed, not followed.
    """
    if folder.is_symlink() or not folder.exists():
        return folder.unlink(missing_ok=True)
    fresh = (folder / f"{os.urandom(8).hex()}-{number}" for number in itertools.count())
    pending = [folder]
    while pending:
        current = pending.pop()
        os.chmod(current, 0o700)
        for entry in list(os.scandir(current)):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)
                pending.append(Path(entry.path).rename(next(fresh)))
            else:
                os.unlink(entry.path)
        if current != folder:
            current.rmdir()
    folder.rmdir()
    return None
