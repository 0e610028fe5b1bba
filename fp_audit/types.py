"""The values that travel through the house: frozen dataclasses without behaviour of their own.

``Listing`` (what a source saw) -> ``Artifact`` (one model in it) -> ``Score`` -> ``Evidence`` -> ``Finding``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = NDArray[np.float32]
"""Images, N x C x H x W, float32 in [0, 1], RGB or one channel."""

Pixels: TypeAlias = NDArray[np.uint8]
"""Images as a file holds them, N x C x H x W, uint8."""

Outputs: TypeAlias = NDArray[np.float32]
"""What a model answers, N x K."""

OutputKind: TypeAlias = Literal["logits", "probabilities", "topk", "labels"]


class Access(IntEnum):
    """What a method needs of a model; a higher access includes the lower ones and costs more."""

    IDENTITY = 1
    """Names, sizes and hashes of the files."""
    WEIGHTS = 2
    """The values of the tensors; the model is not run."""
    QUERIES = 3
    """Answers to images."""
    GRADIENTS = 4
    """Derivatives and inner activations."""

    def __str__(self) -> str:
        """Return the word of the command line, for example ``queries``."""
        return self.name.lower()


class Verdict(StrEnum):
    """What a scan says about one target and one victim."""

    IDENTICAL = "identical"
    DERIVED = "derived"
    SUSPECTED = "suspected"
    COMMON_ANCESTOR = "common-ancestor"
    INDEPENDENT = "independent"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class File:
    """One file of a listing, known without opening it."""

    path: str
    """Relative to the listing's root, with ``/``."""
    size: int
    """Bytes."""
    sha256: str | None = None
    """Hex digest of the content, where the source knows it without reading (LFS files of a hub)."""
    git_oid: str | None = None
    """Git blob id, where the source knows it."""


@dataclass(frozen=True)
class Listing:
    """A folder, repository or lone file as a source sees it: names and sizes, nothing opened."""

    target: str
    """The name that a person would use."""
    files: tuple[File, ...]
    root: Path | None
    """Local folder that holds the files; None while they are still on a hub."""
    revision: str | None = None
    """Commit sha on a hub."""
    declared: tuple[str, ...] | None = None
    """Models that its card names as ``base_model``; None where no card was looked for."""

    @cached_property
    def by_path(self) -> Mapping[str, File]:
        """The files by their path."""
        return {file.path: file for file in self.files}


@dataclass(frozen=True)
class Artifact:
    """One model inside a listing, claimed by an adapter."""

    target: str
    adapter: str
    files: tuple[File, ...]
    """Exactly the files that calling the model needs."""
    entry: str
    """What to open, relative to ``root``: an ``.onnx`` file, or a folder (``"."`` for the root)."""
    root: Path | None
    revision: str | None = None
    listing: str | None = None
    """Target of the listing it came from: the repository, for a hub."""
    unrun: str | None = None
    """Why only its files and tensors are read, where it cannot be run."""
    declared: tuple[str, ...] | None = None
    """See ``Listing.declared``."""

    @property
    def path(self) -> Path:
        """The local file or folder to open; the artifact must have been fetched."""
        if self.root is None:
            raise ValueError(f"{self.target} has not been fetched")
        return self.root / self.entry

    def local_files(self) -> list[Path]:
        """Return the local paths of ``files``; the artifact must have been fetched."""
        if self.root is None:
            raise ValueError(f"{self.target} has not been fetched")
        return [self.root / file.path for file in self.files]


@dataclass(frozen=True)
class Skipped:
    """A target that could not be judged. It is a result, not an absence of one."""

    target: str
    reason: str


@dataclass(frozen=True)
class InputSpec:
    """What a model takes. ``kind`` is open: text and tables come later."""

    channels: int
    height: int | None
    """Pixels; None where the model takes any size."""
    width: int | None
    kind: Literal["image"] = "image"


@dataclass(frozen=True)
class Fingerprint:
    """What a method keeps of a victim: enough to compare any suspect with it later."""

    method: str
    options: Mapping[str, Any]
    """Every parameter that changes the result, the seed included."""
    arrays: Mapping[str, NDArray[Any]]
    """Query images (uint8), the victim's answers, tensors: whatever ``compare`` reads."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What generation found out and a reader should know, JSON values only."""


@dataclass(frozen=True)
class Score:
    """How alike one suspect and one victim are for one method."""

    value: float
    """Larger is more alike; each method states its range."""
    p_value: float | None = None
    """Set by methods with an exact test of their own; the others are judged against their null."""
    identical: bool = False
    """All that the method compares is equal to the last bit."""
    queries: int = 0
    """Images shown to the suspect for this score; each several times where it answers at random."""
    trials: int | None = None
    """For a rate in [0, 1]: the number of answers it is a rate of. None for any other score."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Several similarities, each judged against the same part of the null; ``value`` then only sums them up."""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scatter:
    """What a method states of the standard deviation of innocent models' scores, before any of them is seen.

    That of ``Score.value`` and of each of ``Score.parts``; of rates on the arcsine scale (``calibrate.parametric_p``).
    """

    least: float = 0.0
    """Less is not believed, however much alike the independents are."""
    expected: float = 0.0
    degrees: int = 0
    """As many degrees of freedom speak for ``expected``, beside the independents: shrinkage where those are few."""


@dataclass(frozen=True)
class Null:
    """Scores of independents: what a method says when nothing was stolen."""

    scores: tuple[float, ...]
    names: tuple[str, ...]
    fit: float | None = None
    """Shapiro-Wilk p-value of the (transformed) scores: how well the normal family of the parametric tail fits."""
    related: bool = False
    """Whether a reference itself fails the method's exact test: victim and references share an ancestor."""
    accuracies: tuple[float | None, ...] = ()
    """Of each independent on the victim's probes: the more accurate a model, the more it agrees with any other."""
    parts: tuple[Mapping[str, float], ...] = ()
    """``Score.parts`` of each independent; one may lack a part that another has."""


@dataclass(frozen=True)
class Evidence:
    """One method's contribution to a finding."""

    method: str
    access: Access
    score: float
    p_value: float | None
    """None where the method has neither a null nor a test of its own: shown, not voting."""
    null: Mapping[str, Any] | None
    queries: int
    statement: str = ""
    """What the score means, in plain words, to follow "the suspect ..."."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    """See ``Score.parts``."""


@dataclass(frozen=True)
class Cost:
    """What a finding took."""

    bytes_read: int = 0
    """Of the model's files, from this disk or from a hub."""
    queries: int = 0
    seconds: float = 0.0
    examined: str | None = None
    """When an earlier scan spent this (ISO 8601), where its result was taken over; None: this scan did."""
    requests: int = 0
    """To a hub, the listing of the repository included; at least, where a large file comes in chunks."""
    bytes_avoided: int = 0
    """Of the model's files on a hub: not downloaded, because the verdict did not need them."""


@dataclass(frozen=True)
class Finding:
    """The answer for one target and one victim."""

    target: str
    victim: str
    verdict: Verdict
    reason: str
    """One plain sentence for a person."""
    adapter: str
    revision: str | None
    p_value: float | None
    q_value: float | None
    evidence: tuple[Evidence, ...]
    cost: Cost
    ignored: str | None = None
    """Why it does not count for the exit code (see ``policy``); None if it counts."""
    declared: str | None = None
    """What the model's card says of its origin, where the verdict says something else; to follow "the target ..."."""
