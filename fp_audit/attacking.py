"""Running an attack: the victim opened, the images divided, the surrogate saved, opened again and measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp_audit import data as labelled_images
from fp_audit.alignment import align, count_outputs, make_probes, settle
from fp_audit.attacks._base import Attack, Surrogate, Task
from fp_audit.attacks._options import build, from_specs
from fp_audit.attacks._provenance import Cost, Fidelity, Provenance, versions
from fp_audit.data import Labelled
from fp_audit.engine import Progress, pick_device, silent, top1
from fp_audit.errors import DataError, FpAuditError, NotApplicable, TargetError, UsageError
from fp_audit.model import Adapter, BlackBox, LoadOptions, Reordered
from fp_audit.preprocess import Preprocess
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import adapter, locate_one
from fp_audit.types import Artifact

PROVENANCE = "provenance.json"

HELD_OUT = 0.2
"""Share of the images on which fidelity is measured; the attack never sees them."""
MAX_HELD_OUT = 2000

DRAW = 0
"""Seed of what a surrogate with random preprocessing draws while it is measured, all images in one query."""

LEAST_ACCURACY = 0.8
"""Probe accuracy assumed of a victim when its classes are matched with the data's: it must reach half of that."""


@dataclass(frozen=True)
class OpenVictim:
    """A victim opened for attacks, with the images of its task."""

    artifact: Artifact
    adapter: Adapter
    opening: LoadOptions
    model: BlackBox
    data: Labelled
    """Labels in the order of the victim's outputs."""
    digest: str
    """Of the data as they were given."""

    @cached_property
    def sha256(self) -> dict[str, str | None]:
        """Digests of the model's files by path, read from disk once."""
        files = Subject(files=self.artifact.files, root=self.artifact.root)
        return {file.path: files.hashed(file).sha256 for file in self.artifact.files}


def attack(
    name: str,
    model: str,
    data: str,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    chain: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    preprocess: Preprocess | None = None,
    progress: Progress = silent,
) -> Provenance:
    """Attack a model and save the surrogate as an ordinary model folder with a ``provenance.json``.

    Args:
        name: of the attack.
        model: hub id, model folder or ``.onnx`` file.
        data: the thief's labelled images, see ``data.load``.
        out: folder to write, which must not exist or be empty. It appears complete or not at all.
        options: of the attack; the others keep their defaults.
        chain: attacks that follow it, each on the surrogate of the one before: ``NAME:key=value``.
        seed: everything random follows from it.
        device: ``auto``, ``cpu`` or ``cuda``.
        preprocess: how the victim wants its images; found out on the data where its file does not say.
        progress: told what is being done.

    Raises:
        UsageError: an option, ``out`` or the data do not make sense.
        TargetError: the model cannot be opened or attacked in this way.
    """
    chosen = [build(name, options or {}), *(attack for spec in chain for attack in from_specs(spec))]
    with staged(out) as folder:
        target = open_victim(model, data, seed=seed, device=device, preprocess=preprocess)
        return run_attacks(chosen, target, folder, seed=seed, progress=progress)


def open_victim(
    model: str, data: str | Labelled, *, seed: int = 0, device: str = "auto", preprocess: Preprocess | None = None
) -> OpenVictim:
    """Open a victim and bring its images and their labels into its terms. Arguments and errors as for ``attack``."""
    located = locate_one(model, SourceOptions())
    artifact = located.source.fetch(located.artifact)
    kind = adapter(artifact.adapter)
    opening = LoadOptions(pick_device(device), preprocess=preprocess, seed=seed)
    opened = kind.load(artifact, opening)
    if isinstance(data, str):
        size = (opened.spec.height, opened.spec.width) if opened.spec.height and opened.spec.width else None
        data = labelled_images.load(data, size=size, seed=seed)
    probes = make_probes(data, seed=seed, accuracy=LEAST_ACCURACY)
    settled = settle(opened, probes)
    try:
        order = align(settled.model, probes).order
    except NotApplicable as error:
        raise DataError(f"{data.name} does not fit {model}: {error}") from None
    relabelled = replace(data, labels=order[data.labels], classes=settled.model.classes)
    opening = replace(opening, preprocess=settled.preprocess or preprocess)
    return OpenVictim(artifact, kind, opening, settled.model, relabelled, data.digest)


def run_attacks(
    attacks: Sequence[Attack], target: OpenVictim, folder: Path, *, seed: int = 0, progress: Progress = silent
) -> Provenance:
    """Run attacks one after another on an opened victim, write the last surrogate and ``provenance.json``, measure it.

    Each attack after the first has the surrogate of the one before as its victim; all see the same images. Fidelity is
    that of the last surrogate to the victim itself.

    Args:
        attacks: one or more.
        target: the victim.
        folder: to be filled.
        seed: of every attack.
        progress: told what is being done.

    Raises:
        UsageError: the images are too few.
        TargetError: the victim cannot be attacked in this way, or the surrogate cannot be opened.
    """
    seen, held_out = _divided(target.data, seed)
    start = time.monotonic()
    made: list[Surrogate] = []
    with TemporaryDirectory() as scratch:
        present = replace(target, data=seen)
        for i, attack in enumerate(attacks):
            last = i == len(attacks) - 1
            where = folder if last else Path(scratch) / str(i)
            surrogate = attack.run(_task(present, seed, progress), where)
            made.append(replace(surrogate, order=_composed(made[-1].order if made else None, surrogate.order)))
            if not last:
                data = replace(seen, labels=_renumbered(seen.labels, made[-1].order))
                present = _surrogate_as_victim(made[-1], where, replace(present, data=data))
    cost = Cost(
        sum(item.queries for item in made), sum(item.steps for item in made), round(time.monotonic() - start, 3)
    )
    progress("measuring fidelity", 0.0)
    fidelity = measure(folder, made[-1], target, held_out)
    provenance = _provenance(attacks, target, seed, made, fidelity, cost)
    (folder / PROVENANCE).write_text(json.dumps(provenance.to_json(), indent=2, allow_nan=False) + "\n")
    return provenance


def _task(target: OpenVictim, seed: int, progress: Progress) -> Task:
    victim = Subject.of_artifact(target.artifact, target.adapter, target.opening).seen_as(target.model)
    return Task(victim, target.artifact, target.adapter, target.opening, target.data, seed, progress)


def _composed(before: tuple[int, ...] | None, order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the order of a surrogate's classes in terms of the first victim; see ``Surrogate.order``."""
    return before if order is None else tuple(before[i] for i in order) if before else order


def _renumbered(labels: NDArray[np.int64], order: tuple[int, ...] | None) -> NDArray[np.int64]:
    """Turn the victim's labels into places among a surrogate's outputs."""
    return labels if order is None else np.argsort(order)[labels]


def _surrogate_as_victim(surrogate: Surrogate, folder: Path, before: OpenVictim) -> OpenVictim:
    """Open what an attack left as the victim of the next one, whose data are labelled in its order already.

    Raises:
        UsageError: it has another number of classes.
    """
    located = locate_one(str(folder), SourceOptions(offline=True))
    kind = adapter(located.artifact.adapter)
    same = kind.name == before.adapter.name
    opening = replace(before.opening, preprocess=surrogate.preprocess or (before.opening.preprocess if same else None))
    model = settle(kind.load(located.artifact, opening), make_probes(before.data, seed=0)).model
    found, expected = count_outputs(model), count_outputs(before.model)
    if found != expected:
        raise UsageError(f"a surrogate of {found} classes, the victim has {expected}: such an attack must be the last")
    return replace(before, artifact=located.artifact, adapter=kind, opening=opening, model=model)


def measure(folder: Path, surrogate: Surrogate, target: OpenVictim, held_out: Labelled) -> Fidelity:
    """Open a saved surrogate as a scan would, and compare its answers with the truth and the victim's.

    One that is random is measured in a draw that anybody can repeat (``DRAW``); the draws that a scan sees give other
    fidelities, within the error of so many images.

    Raises:
        TargetError: it cannot be opened.
    """
    located = locate_one(str(folder), SourceOptions(offline=True))
    if located.artifact.adapter != surrogate.adapter:
        raise TargetError(f"saved for the {surrogate.adapter} adapter, but {located.artifact.adapter} claims it")
    alike = surrogate.adapter == target.adapter.name
    known = surrogate.preprocess or (target.opening.preprocess if alike else None)
    options = LoadOptions(target.opening.device if alike else "cpu", preprocess=known, seed=DRAW)
    opened = adapter(surrogate.adapter).load(located.artifact, options)
    truth = held_out.labels
    answers, _ = top1(target.model, held_out.pixels)
    victim_accuracy = float((answers == truth).mean())
    probes = make_probes(held_out, seed=0, accuracy=victim_accuracy)
    model = settle(opened, probes).model
    if surrogate.order is not None:
        model = Reordered(model, np.argsort(surrogate.order), None)
    stolen, _ = top1(model, held_out.pixels)
    return Fidelity(float((stolen == truth).mean()), victim_accuracy, float((stolen == answers).mean()), len(held_out))


def spelt_out(named: Sequence[str], stands_for: Mapping[str, Sequence[str]]) -> list[str]:
    """Replace words such as ``quick`` and ``all`` by the attacks that they stand for.

    Raises:
        UsageError: nothing is named.
    """
    specs = [spec for text in named for spec in stands_for.get(text, (text,))]
    if not specs:
        raise UsageError("--attacks names none: expected quick, all or names from `fp-audit attacks`")
    return specs


def told_under(title: str, i: int, count: int, progress: Progress) -> Progress:
    """Turn what the ``i``-th of ``count`` attacks says of itself into the share of all attacks."""
    return lambda what, done: progress(title, (i + done) / count)


def slug(spec: str) -> str:
    """Name the folder of a surrogate after the attack that makes it."""
    return re.sub(r"[^A-Za-z0-9.,=+-]+", "_", spec)


def made_before(where: Path, attacks: Sequence[Attack], target: OpenVictim, seed: int) -> dict[str, Any] | None:
    """Return the provenance of a surrogate that an earlier call has made; None if there is none.

    Raises:
        UsageError: what lies there is something else.
    """
    if not where.exists():
        return None
    try:
        found: dict[str, Any] = json.loads((where / PROVENANCE).read_text())
        same = found["seed"] == seed and found["data"]["digest"] == target.digest
        same = same and sorted(found["victim"]["sha256"].values()) == sorted(map(str, target.sha256.values()))
        same = same and found["attack"] == "+".join(attack.name for attack in attacks)
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        same = False
    if not same:
        raise UsageError(f"{where} was made from another model, seed or data set: name another --out, or remove it")
    return found


def obtained(
    attacks: Sequence[Attack], target: OpenVictim, where: Path, *, seed: int, progress: Progress
) -> dict[str, Any]:
    """Return the provenance of the surrogate in ``where``, made now unless an earlier call, or another run, made it.

    Raises:
        UsageError: what lies there is something else.
        FpAuditError: the attack is not possible; ``where`` does not exist then.
    """
    found = made_before(where, attacks, target, seed)
    if found is None:
        try:
            with staged(where) as out:
                done = run_attacks(attacks, target, out, seed=seed, progress=progress)
            found = json.loads(json.dumps(done.to_json()))
        except FpAuditError:
            found = made_before(where, attacks, target, seed)  # by another run, meanwhile
            if found is None:
                raise
    return found


def _divided(data: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Divide images into those that the attack sees and those that it is measured on."""
    count = min(MAX_HELD_OUT, int(HELD_OUT * len(data)))
    if count < 2:
        raise DataError(f"{data.name} holds {len(data)} images: expected at least {2 / HELD_OUT:.0f}")
    order = np.random.default_rng(seed).permutation(len(data))
    return data.take(np.sort(order[count:])), data.take(np.sort(order[:count]))


def _provenance(
    attacks: Sequence[Attack],
    target: OpenVictim,
    seed: int,
    made: Sequence[Surrogate],
    fidelity: Fidelity,
    cost: Cost,
) -> Provenance:
    artifact, found, last = target.artifact, target.opening.preprocess, made[-1]
    return Provenance(
        attack="+".join(attack.name for attack in attacks),
        options=_numbered(attacks, [attack.options for attack in attacks]),
        seed=seed,
        device=target.opening.device,
        victim={
            "target": artifact.target,
            "revision": artifact.revision,
            "adapter": artifact.adapter,
            "preprocess": found.to_json() if found else None,
            "sha256": target.sha256,
        },
        data={"name": target.data.name, "digest": target.digest, "images": len(target.data)},
        surrogate={
            "adapter": last.adapter,
            "preprocess": last.preprocess.to_json() if last.preprocess else None,
            "facts": _numbered(attacks, [item.facts for item in made]),
        },
        fidelity=fidelity,
        cost=cost,
        versions=versions(),
    )


def _numbered(attacks: Sequence[Attack], about: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what is known of a single attack as it is, of several by position and name (``1.prune``)."""
    if len(attacks) == 1:
        return about[0]
    return {f"{i}.{attack.name}": known for i, (attack, known) in enumerate(zip(attacks, about, strict=True), 1)}


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder beside ``out`` that takes its place when all went well, and vanishes otherwise.

    Raises:
        UsageError: ``out`` exists and is not an empty folder, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists: name a new or empty folder to write to")
    staging = out.absolute().with_name(f".{out.absolute().name}.{os.getpid()}")
    with _writing(out):
        staging.mkdir(parents=True)
    try:
        yield staging
        with _writing(out):
            staging.replace(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from error
