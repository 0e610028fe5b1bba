"""Zip archives that state the sha256 of every member; what comes from elsewhere is checked before it is used.

The same content makes the same bytes: members in order, one time, one way to compress.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from fp_audit.errors import BundleError

MANIFEST = "manifest.json"

MAX_MEMBERS = 10_000
MAX_BYTES = 4 * 2**30
"""Of all members together, unpacked."""
MAX_JSON = 64 * 2**20
"""Bytes of one file that is read as JSON."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip archive can state."""
_BLOCK = 2**20
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What ``zipfile`` raises over archives that are damaged, encrypted or of a kind that it cannot read."""


def pack(path: Path, members: Mapping[str, bytes | Path], about: Mapping[str, Any]) -> str:
    """Write an archive; it appears at ``path`` complete or not at all.

    Args:
        path: where to; an older file is replaced.
        members: name -> content, or the file that holds it.
        about: what the manifest says besides the digests of the members.

    Returns:
        The sha256 of the archive.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    listed = {}
    try:
        with zipfile.ZipFile(staging, "w") as archive:
            for name, member in sorted(members.items()):
                content = member if isinstance(member, bytes) else member.read_bytes()
                listed[name] = {"sha256": sha256(content).hexdigest(), "size": len(content)}
                archive.writestr(_entry(name), content)
            manifest = json.dumps({**about, "members": listed}, indent=1, allow_nan=False) + "\n"
            archive.writestr(_entry(MANIFEST), manifest)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return _digest(path)


def unpack(path: Path, into: Path, allowed: re.Pattern[str]) -> dict[str, Any]:
    """Check an archive, write its members under the folder ``into`` and return its manifest.

    Args:
        path: the archive.
        into: an empty folder.
        allowed: the names that members may have, besides the manifest's.

    Raises:
        BundleError: it is no such archive, is damaged, too large, or holds something else than its manifest says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = _checked_names(archive, allowed)
            for name in names:
                _extract(archive, name, into / name)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or 'cannot be read as a zip archive'}") from None
    except _BROKEN as error:
        raise BundleError(f"{path}: not a readable zip archive ({error}); ask for the bundle again") from None
    manifest = read_json(into / MANIFEST)
    _check_digests(manifest, into, names)
    return manifest


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleError: it is missing, too large, or none.
    """
    name = path.name if path.name == MANIFEST else f"{path.parent.name}/{path.name}"
    if not path.is_file():
        raise BundleError(f"{name} is missing")
    if path.stat().st_size > MAX_JSON:
        raise BundleError(f"{name}: {path.stat().st_size:,} bytes of JSON, expected at most {MAX_JSON:,}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: malformed JSON ({error})") from None
    if not isinstance(found, dict):
        raise BundleError(f"{name}: malformed, expected a JSON object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.create_system, entry.external_attr = 3, 0o644 << 16
    return entry


def _checked_names(archive: zipfile.ZipFile, allowed: re.Pattern[str]) -> list[str]:
    """Return the names of the members, all of which are safe as paths below a folder."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(entries) > MAX_MEMBERS or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise BundleError(f"the archive is too large: expected at most {MAX_MEMBERS:,} members and {MAX_BYTES:,} bytes")
    for name in names:
        if name != MANIFEST and not allowed.fullmatch(name):
            raise BundleError(f"unexpected member {name[:200]!r}: no bundle of fp-audit holds it")
    if len(set(names)) < len(names):
        raise BundleError("the archive holds two members of one name")
    if MANIFEST not in names:
        raise BundleError(f"{MANIFEST} is missing: this is no bundle of fp-audit")
    return names


def _extract(archive: zipfile.ZipFile, name: str, to: Path) -> None:
    """Write one member to a file; ``zipfile`` gives no more bytes than the size that was checked."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, to.open("wb") as target:
        while block := source.read(_BLOCK):
            target.write(block)


def _check_digests(manifest: Mapping[str, Any], folder: Path, names: list[str]) -> None:
    listed = manifest.get("members")
    if not isinstance(listed, dict):
        raise BundleError(f"{MANIFEST} does not list the members")
    present = set(names) - {MANIFEST}
    for name in sorted(present | set(listed)):
        if name not in present:
            raise BundleError(f"{name[:200]!r} is missing: {MANIFEST} lists it")
        if name not in listed:
            raise BundleError(f"unexpected member {name!r}: {MANIFEST} does not list it")
        if not isinstance(listed[name], dict) or listed[name].get("sha256") != _digest(folder / name):
            raise BundleError(
                f"{name} does not match its sha256 in {MANIFEST}: it was changed after the bundle was written"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()
