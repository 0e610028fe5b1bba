"""The register of victims on disk: JSON and safetensors, never pickle.

::

    FP_AUDIT_HOME/victims/NAME/
        victim.json                 what was registered, how, with which versions; the nulls; digests of all files;
                                    the commitment to all of this
        probes.safetensors          labelled images for alignment
        METHOD.safetensors          queries, answers, tensors of one fingerprint

A victim is written to a folder beside its place and moved there when it is complete: a register that is
interrupted leaves no victim behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fp_audit.alignment import Probes
from fp_audit.errors import VictimError
from fp_audit.preprocess import Preprocess
from fp_audit.types import Fingerprint, Null

SCHEMA_VERSION = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Victim:
    """A registered model: its fingerprints and what they are judged against."""

    name: str
    source: str
    """The target as it was registered."""
    revision: str | None
    adapter: str
    probes: Probes | None
    preprocess: Preprocess | None
    """What was found out; None where the model states it."""
    fingerprints: Mapping[str, Fingerprint]
    """By method."""
    nulls: Mapping[str, Null]
    """By method, for the methods that are judged against one."""
    hidden: Mapping[str, Mapping[str, Null]] = field(default_factory=dict)
    """The same for suspects that hide something: by what they show (``topk``, ``labels``) and method."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Time, seed, versions, data, references: for the record."""

    def null(self, method: str, shown: str | None = None) -> Null | None:
        """Return what a method's score is judged against when a suspect shows no more than ``shown``."""
        return (self.hidden.get(shown, {}) if shown else self.nulls).get(method)


def home() -> Path:
    """Return ``FP_AUDIT_HOME``, by default the platform's data folder."""
    if given := os.environ.get("FP_AUDIT_HOME"):
        return Path(given).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("fp-audit", appauthor=False)


def check_name(name: str) -> str:
    """Return ``name`` if it can be a victim's.

    Raises:
        VictimError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise VictimError(f"{name!r} cannot name a victim: expected letters, digits, '.', '_' and '-', at most 64")
    return name


def folder(name: str) -> Path:
    """Return where a victim lies, or would lie."""
    return home() / "victims" / check_name(name)


def names() -> list[str]:
    """List the registered victims."""
    return sorted(
        path.parent.name for path in (home() / "victims").glob("*/victim.json") if _NAME.fullmatch(path.parent.name)
    )


def save(victim: Victim, where: Path) -> None:
    """Write a victim into the folder ``where``, which must not exist; it appears there complete or not at all."""
    staging = where.with_name(f".{where.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        digests = {}
        if victim.probes is not None:
            arrays = {"pixels": victim.probes.pixels, "labels": victim.probes.labels}
            digests["probes.safetensors"] = _write_arrays(staging / "probes.safetensors", arrays)
        for method, fingerprint in victim.fingerprints.items():
            digests[f"{method}.safetensors"] = _write_arrays(staging / f"{method}.safetensors", fingerprint.arrays)
        about = {**_to_json(victim), "digests": digests}
        text = json.dumps({**about, "commitment": commitment(about)}, indent=1, allow_nan=False)
        (staging / "victim.json").write_text(text)
        try:
            staging.rename(where)
        except OSError:
            raise VictimError(
                f"a victim called {where.name!r} exists: remove it first, or choose another name"
            ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def commitment(about: Mapping[str, Any]) -> str:
    """Return the sha256 of all that a victim is judged by, to be published before there is a dispute.

    It is that of ``victim.json`` without this field: keys sorted, no spaces, ASCII. That holds the sha256 of every file
    of fingerprints and probes, the methods' options, the nulls, the digests of the model's files and the time. What was
    committed to cannot be replaced later by queries, or nulls, chosen to accuse somebody (Liu et al., "False Claims
    against Model Ownership Resolution", USENIX Security 2024).

    Args:
        about: content of ``victim.json``.
    """
    committed = {key: value for key, value in about.items() if key != "commitment"}
    plain = json.loads(json.dumps(committed, allow_nan=False))
    return sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def committed(where: Path) -> str:
    """Return the commitment to a victim as it is in a folder now, whatever its file states.

    Raises:
        VictimError: there is none, or it is damaged.
    """
    load(where, ())
    return commitment(json.loads((where / "victim.json").read_text()))


def load(where: Path, methods: Collection[str] | None = None) -> Victim:
    """Read a victim from a folder, with the fingerprints of all methods or of those named.

    Raises:
        VictimError: there is none, or it is damaged (a digest does not match).
    """
    try:
        data = json.loads((where / "victim.json").read_text())
        if data["schema_version"] != SCHEMA_VERSION:
            raise VictimError(
                f"{where.name}: written by another version (schema {data['schema_version']}); register it again"
            )
        return _from_json(data, where, data["fingerprints"] if methods is None else methods)
    except FileNotFoundError:
        known = ", ".join(names()) or "none; register one with `fp-audit register`"
        raise VictimError(f"no victim called {where.name!r}; registered are: {known}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VictimError(
            f"{where.name}: victim.json is damaged ({type(error).__name__}: {error}); register it again"
        ) from None


def load_named(wanted: tuple[str, ...]) -> list[Victim]:
    """Read the victims of these names, or all if none is named.

    Raises:
        VictimError: a name is unknown, or nothing is registered.
    """
    chosen = list(wanted) or names()
    if not chosen:
        raise VictimError("no victim is registered: register the model that you own with `fp-audit register` first")
    return [load(folder(name)) for name in chosen]


def describe(name: str) -> dict[str, Any]:
    """Return everything that is stored about a victim, except arrays.

    Raises:
        VictimError: there is none of that name.
    """
    load(folder(name), ())
    about: dict[str, Any] = json.loads((folder(name) / "victim.json").read_text())
    return about


def remove(name: str) -> None:
    """Delete a victim.

    Raises:
        VictimError: there is none of that name.
    """
    where = folder(name)
    if not (where / "victim.json").exists():
        load(where)
    shutil.rmtree(where)


def save_fingerprint(fingerprint: Fingerprint, where: Path) -> None:
    """Keep a finished fingerprint under the folder ``where``; it appears there complete or not at all."""
    staging = where.with_name(f".{where.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    digest = _write_arrays(staging / "arrays.safetensors", fingerprint.arrays)
    about = {"method": fingerprint.method, "options": dict(fingerprint.options), "facts": dict(fingerprint.facts)}
    (staging / "fingerprint.json").write_text(json.dumps({**about, "digest": digest}, allow_nan=False))
    with suppress(OSError):  # another run has just finished the same one
        staging.rename(where)
    shutil.rmtree(staging, ignore_errors=True)


def load_fingerprint(where: Path) -> Fingerprint | None:
    """Return the fingerprint kept under ``where``; None if there is none or it is damaged."""
    try:
        about = json.loads((where / "fingerprint.json").read_text())
        arrays = _read_arrays(where / "arrays.safetensors", about["digest"])
        return Fingerprint(about["method"], about["options"], arrays, about["facts"])
    except (AttributeError, KeyError, OSError, TypeError, ValueError, VictimError):
        return None


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> str:
    from safetensors.numpy import save as dump

    content = dump({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    path.write_bytes(content)
    return sha256(content).hexdigest()


def _read_arrays(path: Path, digest: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as parse

    content = path.read_bytes()
    if sha256(content).hexdigest() != digest:
        raise VictimError(f"{path.parent.name}: {path.name} does not match its digest; register the victim again")
    try:
        arrays: dict[str, Any] = parse(content)
    except SafetensorError as error:
        raise VictimError(f"{path.parent.name}: {path.name} is damaged ({error}); register the victim again") from None
    return arrays


def _to_json(victim: Victim) -> dict[str, Any]:
    probes = victim.probes
    return {
        "schema_version": SCHEMA_VERSION,
        "name": victim.name,
        "source": victim.source,
        "revision": victim.revision,
        "adapter": victim.adapter,
        "probes": probes and {"classes": probes.classes, "count": probes.count, "accuracy": probes.accuracy},
        "preprocess": victim.preprocess and victim.preprocess.to_json(),
        "fingerprints": {
            method: {"options": dict(fingerprint.options), "facts": dict(fingerprint.facts)}
            for method, fingerprint in victim.fingerprints.items()
        },
        "nulls": {method: asdict(null) for method, null in victim.nulls.items()},
        "hidden": {
            shown: {method: asdict(null) for method, null in nulls.items()} for shown, nulls in victim.hidden.items()
        },
        "facts": dict(victim.facts),
    }


def _from_json(data: dict[str, Any], where: Path, methods: Collection[str]) -> Victim:
    digests = data["digests"]
    probes = None
    if data["probes"]:
        about = data["probes"]
        arrays = _read_arrays(where / "probes.safetensors", digests["probes.safetensors"])
        classes = tuple(about["classes"]) if about["classes"] else None
        probes = Probes(arrays["pixels"], arrays["labels"], classes, about["count"], about["accuracy"])
    fingerprints = {
        method: Fingerprint(
            method,
            about["options"],
            _read_arrays(where / f"{method}.safetensors", digests[f"{method}.safetensors"]),
            about["facts"],
        )
        for method, about in data["fingerprints"].items()
        if method in methods
    }
    return Victim(
        name=data["name"],
        source=data["source"],
        revision=data["revision"],
        adapter=data["adapter"],
        probes=probes,
        preprocess=Preprocess.from_json(data["preprocess"]) if data["preprocess"] else None,
        fingerprints=fingerprints,
        nulls=_nulls(data["nulls"]),
        hidden={shown: _nulls(nulls) for shown, nulls in data["hidden"].items()},
        facts=data["facts"],
    )


def _nulls(data: Mapping[str, Any]) -> dict[str, Null]:
    return {
        method: Null(
            scores=tuple(about["scores"]),
            names=tuple(about["names"]),
            accuracies=tuple(about["accuracies"]),
            fit=about["fit"],
            related=about["related"],
            parts=tuple(about["parts"]),
        )
        for method, about in data.items()
    }
