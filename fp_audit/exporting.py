"""A registered victim in one archive, so that a pipeline can scan without the owner's model and images.

::

    VICTIM.zip
        manifest.json               what this is, version of the tool, the commitment, sha256 of all members
        victim.json                 as in the register, see ``victims``
        probes.safetensors, METHOD.safetensors

It holds the query images and the victim's weight matrices: whoever has it can prepare a copy for the scan.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fp_audit import __version__, archive, victims
from fp_audit.errors import BundleError, VictimError
from fp_audit.victims import Victim

KIND = "fp-audit victim"
"""What the manifest calls such an archive."""
SCHEMA_VERSION = 1

MEMBER = re.compile(r"victim\.json|[A-Za-z0-9][A-Za-z0-9+._-]{0,199}\.safetensors")
"""Names of the members; none of them leads out of a folder."""


def write(name: str, path: Path) -> str:
    """Write the archive of a registered victim; it appears at ``path`` complete or not at all.

    Args:
        name: in the register.
        path: where to; an older file is replaced.

    Returns:
        The sha256 of the archive.

    Raises:
        VictimError: there is no such victim, or it is damaged.
    """
    where = victims.folder(name)
    victims.load(where)  # checks every digest
    about = _checked(where)
    members: dict[str, bytes | Path] = {file: where / file for file in ("victim.json", *about["digests"])}
    stated = {"kind": KIND, "schema_version": SCHEMA_VERSION, "tool": {"name": "fp-audit", "version": __version__}}
    return archive.pack(path, members, {**stated, "victim": name, "commitment": about["commitment"]})


def read(path: Path, *, replace: bool = False) -> Victim:
    """Check an archive and register the victim that it holds.

    Every digest is computed again: those of the members, those that ``victim.json`` states of its files, and the
    commitment to ``victim.json`` itself.

    Args:
        path: the archive.
        replace: whether a victim of that name may be replaced.

    Raises:
        BundleError: it is no such archive, or it is damaged, was changed, or is too large.
        VictimError: what it holds is no victim of this version, or one of that name is registered.
    """
    with _beside_the_register() as staging:
        manifest = archive.unpack(path, staging, MEMBER)
        if manifest.get("kind") != KIND:
            raise BundleError(f"{path}: an archive of another kind; expected one of `fp-audit victims export`")
        about = _checked(staging)
        victim = victims.load(staging)
        if about["commitment"] != manifest.get("commitment"):
            raise BundleError(
                f"{path}: manifest and victim.json state different commitments; ask for the archive again"
            )
        _move(staging, victims.folder(victim.name), replace=replace)
    return victim


@contextmanager
def _beside_the_register() -> Iterator[Path]:
    """Give an empty folder on the disk of the register, whose name is no victim's."""
    home = victims.home() / "victims"
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=home, prefix=".import-", ignore_cleanup_errors=True) as folder:
        inner = Path(folder) / "victim"
        inner.mkdir()
        yield inner


def _checked(folder: Path) -> dict[str, Any]:
    """Return ``victim.json``, whose commitment holds and whose files are those in the folder.

    Raises:
        VictimError: it has no commitment, or another one.
        BundleError: files are missing, or there are others.
    """
    about = archive.read_json(folder / "victim.json")
    name, digests = about.get("name"), about.get("digests")
    if not isinstance(name, str) or not isinstance(digests, dict):
        raise VictimError("victim.json: expected the name of a victim and the digests of its files; register it again")
    victims.check_name(name)
    if about.get("commitment") != victims.commitment(about):
        raise VictimError(f"{name}: victim.json does not match its commitment; register it again, or ask for it again")
    present = {path.name for path in folder.iterdir()} - {"victim.json", archive.MANIFEST}
    if present != set(digests):
        odd = sorted(present ^ set(digests))[0]
        raise BundleError(f"{name}: victim.json and the files differ over {odd[:200]!r}; ask for the archive again")
    return about


def _move(staging: Path, where: Path, *, replace: bool) -> None:
    """Move a complete victim to its place in the register."""
    if where.exists() and not replace:
        raise VictimError(
            f"a victim called {where.name!r} exists: --replace overwrites it, `victims remove` deletes it"
        )
    (staging / archive.MANIFEST).unlink()
    old = staging.with_name("replaced")
    with suppress(FileNotFoundError):
        where.rename(old)
    staging.rename(where)
    shutil.rmtree(old, ignore_errors=True)
