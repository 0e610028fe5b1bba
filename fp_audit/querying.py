"""Query images as files, for whoever can only ask a suspect over a network, and what to do with them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fp_audit import data as labelled_images
from fp_audit import victims
from fp_audit.answers import digest, digests
from fp_audit.attacking import staged
from fp_audit.comparison import compare
from fp_audit.engine import Progress, silent
from fp_audit.errors import DataError, NotApplicable, UsageError
from fp_audit.methods import kind
from fp_audit.model import one_hot
from fp_audit.subject import Subject
from fp_audit.types import Access, Images, InputSpec, OutputKind, Outputs, Pixels
from fp_audit.victims import Victim

README = "README.txt"

_NEEDS = {Access.IDENTITY: "files", Access.WEIGHTS: "weights", Access.GRADIENTS: "gradients"}
"""What a network does not give."""


@dataclass(frozen=True)
class Written:
    """What was written to a folder."""

    images: int
    """All of them."""
    methods: Mapping[str, int]
    """Method -> images that it needs besides those that match the classes; methods may share some."""
    matching: int
    """Labelled images that match the suspect's classes with the victim's."""
    decoys: int
    silent: Mapping[str, str]
    """Method -> why it cannot be asked this way."""


def write_queries(
    name: str,
    out: Path,
    *,
    methods: Collection[str] = (),
    decoys: int = 0,
    data: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Written:
    """Write the images that a suspect must be shown as PNG files that say nothing of their purpose.

    A file is named by the digest of its pixels: their alphabetical order is a random one, and answers need no list
    of what was asked.

    Args:
        name: of a registered victim.
        out: a new or empty folder; what is written appears there complete or not at all.
        methods: of the victim, that are to be asked; all of them by default.
        decoys: further images of ``data`` to be mixed in.
        data: see ``data.load``.
        seed: of the choice of decoys.
        progress: told what is being done.

    Raises:
        VictimError: there is no such victim.
        UsageError: no such method, nothing that can be asked, or ``out`` is not empty.
        DataError: too few decoys, or of another size.
    """
    victim = victims.load(victims.folder(name))
    unknown = sorted(set(methods) - set(victim.fingerprints))
    if unknown:
        raise UsageError(f"{name} has no method {unknown[0]!r}; expected one of {', '.join(victim.fingerprints)}")
    wanted = [method for method in victim.fingerprints if method in methods or not methods]
    with staged(out) as folder:
        needed, refused = _ask_for_all(victim, wanted, folder, progress)
        if not needed:
            reasons = "; ".join(f"{method} {reason}" for method, reason in refused.items())
            raise UsageError(f"{name} has no method that can be asked with image files: {reasons}")
        asked = set[str]().union(*needed.values())
        if decoys:
            _write_decoys(victim, asked, decoys, data, seed, folder)
        (folder / README).write_text(_readme(sorted(folder.glob("*.png"))), encoding="utf-8")
    matching = set(digests(victim.probes.pixels)) if victim.probes else set[str]()
    counts = {method: len(images - matching) for method, images in needed.items()}
    return Written(len(asked) + decoys, counts, len(matching), decoys, refused)


def _ask_for_all(
    victim: Victim, wanted: Collection[str], folder: Path, progress: Progress
) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Let each method ask, and write the images that it shows.

    Returns:
        Method -> names of all images that its comparison needs; method -> why it cannot be asked.
    """
    needed, refused = dict[str, set[str]](), dict[str, str]()
    for position, method in enumerate(wanted):
        progress("collecting queries", position / len(wanted))
        access = kind(method).suspect_access
        if access != Access.QUERIES:
            refused[method] = f"needs the model's {_NEEDS[access]}"
            continue
        asked = _Asked(victim)
        found = compare(Subject.of_model(asked), victim, [method], Access.QUERIES, repeats=1)
        if method in found.silent:
            refused[method] = f"cannot: {found.silent[method]}"
            continue
        for name, pixels in asked.images.items():
            _write(pixels, folder / f"{name}.png")
        needed[method] = set(asked.images)
    return needed, refused


class _Asked:
    """Keeps every image that it is shown. Satisfies ``BlackBox``.

    It answers with labels that mean nothing, except that it knows the victim's labelled images: its classes match.
    """

    spec = InputSpec(3, None, None)
    classes: tuple[str, ...] | None = None
    output: OutputKind = "logits"

    def __init__(self, victim: Victim) -> None:
        probes = victim.probes
        self._count = probes.count if probes else victim.facts.get("outputs") or 2
        self._labels = dict(zip(digests(probes.pixels), probes.labels, strict=True)) if probes else {}
        self.images: dict[str, NDArray[np.uint8]] = {}

    def predict(self, images: Images) -> Outputs:
        """See ``BlackBox.predict``.

        Raises:
            NotApplicable: an image is not what a file can hold.
        """
        pixels = np.rint(images * np.float32(255.0)).astype(np.uint8)
        if images.shape[1] not in (1, 3) or np.abs(images * np.float32(255.0) - pixels).max(initial=0.0) > 1e-3:
            raise NotApplicable("it shows images that a PNG file cannot hold")
        names = digests(pixels)
        self.images.update(zip(names, pixels, strict=True))
        labels = [self._labels.get(name, int(name, 16) % self._count) for name in names]
        return one_hot(np.array(labels, np.intp), self._count)


def _write_decoys(
    victim: Victim, asked: Collection[str], count: int, data: str | None, seed: int, folder: Path
) -> None:
    """Write images of ``data`` that are no queries."""
    if data is None:
        raise UsageError("--decoys needs --data: images to choose them from")
    shape = victim.probes.pixels.shape[1:] if victim.probes else None
    found = labelled_images.load(data, size=(shape[1], shape[2]) if shape else None, seed=seed).pixels
    if shape and found.shape[1:] != shape:
        raise DataError(f"{data}: images are {_size(found.shape)}; decoys must be {_size(shape)} like the queries")
    others = _others(found, asked, count, seed)
    if len(others) < count:
        raise DataError(f"{data}: {len(others)} images are no queries; {count} decoys were asked for")
    for image in others:
        _write(image, folder / f"{digest(image)}.png")


def _others(pixels: Pixels, asked: Collection[str], count: int, seed: int) -> Pixels:
    """Draw up to ``count`` different images whose names are not in ``asked``."""
    chosen, seen = list[int](), set(asked)
    for index in np.random.default_rng(seed).permutation(len(pixels)):
        if len(chosen) == count:
            break
        name = digest(pixels[index])
        if name not in seen:
            seen.add(name)
            chosen.append(int(index))
    return pixels[chosen]


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[-3:]))


def _write(pixels: NDArray[np.uint8], path: Path) -> None:
    """Write a C x H x W image without loss; all files bear one date, or it would tell which belong together."""
    from PIL import Image

    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(path, format="PNG")
    os.utime(path, (0, 0))


def _readme(paths: list[Path]) -> str:
    first, last = paths[0].name, paths[-1].name
    lines = [
        {"image": first, "label": "cat"},
        {"image": first, "label": 3},
        {"image": first, "top": {"cat": 0.8, "dog": 0.1}},
        {"image": first, "probabilities": [0.8, 0.1, 0.1]},
        {"image": first, "probabilities": {"cat": 0.8, "dog": 0.1, "eel": 0.1}},
        {"image": first, "logits": [2.1, 0.3, -1.5]},
    ]
    forms = "\n".join(f"    {json.dumps(line)}" for line in lines)
    return f"""{len(paths)} images to show to a model, from {first} to {last}.

Send each file as it is (do not resize or recompress it) and write the answers to a text file, answers.jsonl:
one JSON object a line, in any order. Use one of these forms in the whole file, the one that says most:

{forms}

"label" is the name of the likeliest class or its index from 0. "top" gives the probabilities of the likeliest
classes, "probabilities" and "logits" those of all classes, as a list in the model's order or by name.
Where the API answers differently when it is asked again, ask again and write every answer on a line of its own.
An image without an answer silences the methods that need it: try it again before you leave it out.

Then: fp-audit scan answers.jsonl
"""
