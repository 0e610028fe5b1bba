"""What runs inside the sandbox: open one suspect, compare it with the victims, answer with scores.

Requests and answers are JSON values. The child keeps the suspect open between requests about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from fp_audit import victims
from fp_audit.answers import Answers
from fp_audit.comparison import REPEATS, Comparison, compare
from fp_audit.model import LoadOptions
from fp_audit.preprocess import Preprocess
from fp_audit.subject import Subject
from fp_audit.targets import adapter
from fp_audit.types import Access, Artifact, File, Score
from fp_audit.victims import Victim

TASK = "fp_audit.worker:Worker"

_KNOWN: dict[str, Victim] = {}
"""Folder -> victim, read before the process was forked (see ``remember``)."""


def remember(folders: Sequence[str]) -> None:
    """Read victims and check their digests, once for all children that are forked from now on."""
    _KNOWN.update({folder: victims.load(Path(folder)) for folder in folders})


def prepare(folders: Iterable[Path]) -> tuple[str, Sequence[str]]:
    """Return what makes a ``Sandbox`` call ``remember``."""
    return "fp_audit.worker:remember", [str(folder) for folder in folders]


class Worker:
    """Handles the requests of one child process."""

    def __init__(self) -> None:
        self._open: tuple[Any, Subject] | None = None

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Compare: ``{artifact, base, options, access, record, repeats, victims}`` to ``{folder: comparison}``."""
        access = Access(request["access"])
        threadpool_limits(request["options"]["threads"])
        subject = self._subject(request, access)
        answer = {}
        for folder, methods in request["victims"].items():
            victim = _KNOWN.get(folder) or victims.load(Path(folder), methods)
            answer[folder] = comparison_to_json(
                compare(subject, victim, methods, access, record=request["record"], repeats=request["repeats"])
            )
        return answer

    def _subject(self, request: dict[str, Any], access: Access) -> Subject:
        """Return the open model; tensors that were read to compare weights are let go before it is asked."""
        key = (request["artifact"], request["options"], access > Access.WEIGHTS)
        if self._open is None or self._open[0] != key:
            self._open = key, _viewed(request["artifact"], request["options"]).remembering()
        subject = self._open[1]
        base = request["base"] if access == Access.WEIGHTS else None
        return subject if base is None else subject.with_base(_viewed(base, request["options"]))


def _viewed(artifact: dict[str, Any], options: dict[str, Any]) -> Subject:
    """View a model that was sent."""
    found = artifact_from_json(artifact)
    return Subject.of_artifact(found, adapter(found.adapter), _options_from_json(options))


def request(
    artifact: Artifact,
    options: LoadOptions,
    access: Access,
    wanted: Mapping[Path, list[str]],
    *,
    record: bool = False,
    repeats: int = REPEATS,
    base: Artifact | None = None,
) -> dict[str, Any]:
    """Build what ``Worker`` takes."""
    return {
        "artifact": artifact_to_json(artifact),
        "base": base and artifact_to_json(base),
        "options": {**asdict(options), "preprocess": options.preprocess and options.preprocess.to_json()},
        "access": int(access),
        "victims": {str(folder): methods for folder, methods in wanted.items()},
        "record": record,
        "repeats": repeats,
    }


def artifact_to_json(artifact: Artifact) -> dict[str, Any]:
    """Turn a fetched artifact into JSON values."""
    return {**asdict(artifact), "root": str(artifact.root)}


def artifact_from_json(data: dict[str, Any]) -> Artifact:
    """Restore an artifact that was sent."""
    return Artifact(**{**data, "root": Path(data["root"]), "files": tuple(File(**file) for file in data["files"])})


def _options_from_json(data: dict[str, Any]) -> LoadOptions:
    preprocess = Preprocess.from_json(data["preprocess"]) if data["preprocess"] else None
    return LoadOptions(**{**data, "preprocess": preprocess})


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """Turn a comparison into JSON values."""
    answers = comparison.answers
    return {**asdict(replace(comparison, answers=None)), "answers": answers and answers.to_json()}


def comparison_from_json(data: dict[str, Any]) -> Comparison:
    """Restore a comparison that was sent; the sender is not trusted to have sent the right types.

    Raises:
        ValueError: it is not a comparison.
    """
    try:
        scores = {str(name): _score(score) for name, score in data["scores"].items()}
        silent = {str(name): str(reason)[:500] for name, reason in data["silent"].items()}
        answers = Answers.from_json(data["answers"]) if data["answers"] else None
        return Comparison(scores, silent, int(data["queries"]), dict(data["detail"]), answers)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a comparison: {error}") from None


def _score(data: dict[str, Any]) -> Score:
    p = data["p_value"]
    return Score(
        value=float(data["value"]),
        p_value=None if p is None else min(1.0, max(float(p), 0.0)),
        identical=data["identical"] is True,
        queries=int(data["queries"]),
        trials=None if data["trials"] is None else int(data["trials"]),
        parts={str(name): float(part) for name, part in data["parts"].items()},
        detail=dict(data["detail"]),
    )
