"""The evidence of a scan in one archive, so that somebody else can recompute every verdict without the suspects.

::

    BUNDLE.zip
        summary.html                        for a reader: what was examined, how, what was found, what it means
        report.json                         the report of the scan
        manifest.json                       time, versions, command; suspects, digests of their files, methods that had
                                            nothing to say; victims, their commitments, digests of their queries;
                                            sha256 of all members
        answers/N.json                      what the N-th suspect said to the queries of each victim
        victims/NAME/victim.json            as registered: methods, nulls, commitment
        victims/NAME/METHOD.safetensors     queries and the victim's answers
        victims/NAME/probes.safetensors     labelled images for alignment

Of methods that compare files or weights there is no ``METHOD.safetensors``: a bundle gives no weights away.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fp_audit import __version__, archive, methods, victims
from fp_audit.answers import digests
from fp_audit.audit import JOINT, Outcome
from fp_audit.engine import versions
from fp_audit.reports._base import Report
from fp_audit.reports._summary import as_html
from fp_audit.reports.json import Json
from fp_audit.types import Access, Fingerprint
from fp_audit.victims import Victim

SCHEMA_VERSION = 1

REPORT, SUMMARY = "report.json", "summary.html"
MEMBER = re.compile(
    r"report\.json|summary\.html|answers/[1-9][0-9]{0,5}\.json"
    r"|victims/[A-Za-z0-9][A-Za-z0-9._-]{0,63}/(victim\.json|[A-Za-z0-9][A-Za-z0-9+._-]{0,199}\.safetensors)"
)
"""Names of the members; none of them leads out of a folder."""


def write(path: Path, report: Report, outcomes: Sequence[Outcome], *, command: str) -> str:
    """Write the bundle of a scan; it appears at ``path`` complete or not at all.

    Args:
        path: where to; an older file is replaced.
        report: the scan's.
        outcomes: of the same scan, with the models' answers (``ScanOptions.record``).
        command: what repeats the scan.

    Returns:
        The sha256 of the archive.

    Raises:
        VictimError: a victim is no longer registered.
    """
    place = {(item.target, item.revision): index for index, item in enumerate(report.findings)}
    ordered = sorted(outcomes, key=lambda outcome: place[outcome.artifact.target, outcome.artifact.revision])
    folders = {finding.victim: victims.folder(finding.victim) for finding in report.findings}
    rendered = Json().render(report)
    about = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "fp-audit", "version": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {"python": platform.python_version(), **versions()},
        "suspects": [_suspect(outcome) for outcome in ordered],
        "victims": {name: about_victim(folder) for name, folder in folders.items()},
    }
    members: dict[str, bytes | Path] = {
        REPORT: rendered.encode(),
        SUMMARY: summary(about, json.loads(rendered), folders).encode(),
    }
    members |= {f"answers/{n}.json": _answers(outcome) for n, outcome in enumerate(ordered, 1)}
    members |= {f"victims/{name}/{file}": folder / file for name, folder in folders.items() for file in _needed(folder)}
    return archive.pack(path, members, about)


def _suspect(outcome: Outcome) -> dict[str, Any]:
    artifact = outcome.artifact
    return {
        "target": artifact.target,
        "adapter": artifact.adapter,
        "revision": artifact.revision,
        "files": [asdict(file) for file in artifact.files],
        "declared": artifact.declared,
        "failure": outcome.failure,
        "silent": {victim: dict(reasons) for victim, reasons in outcome.silent.items()},
    }


def _answers(outcome: Outcome) -> bytes:
    said = {victim: answers.to_json() for victim, answers in outcome.answers.items()}
    return (json.dumps(said, indent=1, allow_nan=False) + "\n").encode()


def _needed(folder: Path) -> list[str]:
    """List the files of a victim that a bundle holds."""
    about = archive.read_json(folder / "victim.json")
    listed = [f"{name}.safetensors" for name in about["fingerprints"] if asks(name)]
    return ["victim.json", *listed, *(["probes.safetensors"] if about["probes"] else [])]


def asks(method: str) -> bool:
    """Whether a method compares answers, and not files or weights.

    Raises:
        PluginError: there is no such method.
    """
    return methods.kind(method).suspect_access >= Access.QUERIES


def load_victim(folder: Path) -> Victim:
    """Read a victim as far as a bundle holds it: methods that compare files or weights have no arrays.

    Raises:
        VictimError: it is damaged.
    """
    listed = archive.read_json(folder / "victim.json")["fingerprints"]
    victim = victims.load(folder, [name for name in listed if asks(name)])
    bare = {name: Fingerprint(name, item["options"], {}, item["facts"]) for name, item in listed.items()}
    return replace(victim, fingerprints={**bare, **victim.fingerprints})


def about_victim(folder: Path) -> dict[str, Any]:
    """Return what the manifest states about the victim in a folder: source, time, commitment, queries by digest."""
    victim, about = load_victim(folder), archive.read_json(folder / "victim.json")
    shown = {name: item.arrays["queries"] for name, item in victim.fingerprints.items() if "queries" in item.arrays}
    return {
        "source": victim.source,
        "revision": victim.revision,
        "registered": victim.facts["registered"],
        "commitment": about.get("commitment"),
        "queries": {name: digests(pixels) for name, pixels in shown.items()},
    }


def summary(about: Mapping[str, Any], report: Mapping[str, Any], folders: Mapping[str, Path]) -> str:
    """Render the page for a reader from what the other members say.

    Args:
        about: the manifest; the list of members is not used.
        report: content of ``report.json``.
        folders: by victim, where its ``victim.json`` lies.
    """
    registered = {name: archive.read_json(folder / "victim.json") for name, folder in folders.items()}
    used = {name for item in registered.values() for name in item["fingerprints"]}
    does = {name: methods.kind(name).summary for name in sorted(used)}
    return as_html(about, report, registered, {**does, JOINT: "adds up what the methods that ask the model find"})
