"""Equality of weight files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fp_audit.data import Labelled
from fp_audit.errors import NotApplicable
from fp_audit.fingerprints._base import Method
from fp_audit.subject import Subject, digests
from fp_audit.types import Access, File, Fingerprint, Score

if TYPE_CHECKING:
    from fp_audit.workshop import Workshop

WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".data", ".onnx_data", ".bin")
"""Files that hold weights. Configurations and cards are not compared: equal ones prove nothing."""


class Identity(Method):
    """Share of the suspect's weight bytes that lie in files equal to one of the victim's, names ignored; in [0, 1].

    Files are compared by sha256 or by git blob id, whichever the listing knows: on a hub nothing is downloaded. A
    local file is hashed only if a file of the victim has its size. Equality needs no null: an equal hash has p = 0
    up to collisions of sha256, reported as the smallest positive float. Inequality says nothing: no vote.
    """

    name: ClassVar[str] = "identity"
    summary: ClassVar[str] = "equality of weight files, by hash"
    paper: ClassVar[str] = "none: sha256 and git blob ids"
    withstands: ClassVar[str] = "renaming, another owner or card"
    misses: ClassVar[str] = "any change of a byte, re-sharding, conversion"
    victim_access: ClassVar[Access] = Access.IDENTITY
    suspect_access: ClassVar[Access] = Access.IDENTITY
    needs_data: ClassVar[bool] = False
    aligned: ClassVar[bool] = False

    def __init__(self) -> None:
        self.options = {}

    @staticmethod
    def explain(score: float, detail: Mapping[str, Any], null: Mapping[str, Any] | None) -> str:
        """See ``Method.explain``."""
        del null
        if not detail["equal_files"]:
            return "has no weight file that equals one of the victim's"
        files = ", ".join(detail["equal_files"])
        return f"has the victim's weights byte for byte in {files} ({score:.0%} of its weight bytes)"

    def _generate(
        self, victim: Subject, data: Labelled | None, rng: np.random.Generator, workshop: Workshop
    ) -> Fingerprint:
        del data, rng, workshop
        files = [victim.hashed(file) for file in _weights(victim)]
        known = [{"size": file.size, "sha256": file.sha256, "git_oid": file.git_oid} for file in files]
        return Fingerprint(self.name, {}, {}, {"files": known})

    def _compare(self, fingerprint: Fingerprint, suspect: Subject) -> Score:
        files = _weights(suspect)
        total = sum(file.size for file in files)
        if not total:
            raise NotApplicable("it has no weight files of its own")
        known = fingerprint.facts["files"]
        sizes = {entry["size"] for entry in known}
        hashes = {entry[kind] for entry in known for kind in ("sha256", "git_oid") if entry[kind]}
        equal = [file for file in files if file.size in sizes and digests(suspect.hashed(file)) & hashes]
        share = sum(file.size for file in equal) / total
        return Score(
            share,
            p_value=float(np.finfo(float).tiny) if equal else None,
            identical=len(equal) == len(files),
            detail={"equal_files": [file.path for file in equal], "weight_files": len(files)},
        )


def _weights(subject: Subject) -> list[File]:
    return [file for file in subject.files() if file.path.endswith(WEIGHT_SUFFIXES) and file.size > 0]
