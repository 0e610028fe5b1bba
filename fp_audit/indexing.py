"""Building and searching an index of sketches: targets and victims in, models that should be scanned out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from fp_audit import sketches, victims
from fp_audit.engine import cores
from fp_audit.errors import SandboxCrash, TargetError, UnsupportedModel, VictimError
from fp_audit.index import Index, Near, Place
from fp_audit.sandbox import Limits, Sandbox
from fp_audit.sketches import Sketch
from fp_audit.sources._base import SourceOptions
from fp_audit.subject import Subject
from fp_audit.targets import Located, adapter, locate
from fp_audit.types import Access, Artifact, Skipped
from fp_audit.victims import Victim
from fp_audit.worker import artifact_from_json, artifact_to_json

TASK = "fp_audit.indexing:Sketcher"


class Sketcher:
    """Handles the requests of one child process: ``{artifact}`` to ``{sketch}``."""

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Read the tensors of a suspect and sketch them.

        Raises:
            UnsupportedModel: it has no matrix to sketch.
        """
        artifact = artifact_from_json(request["artifact"])
        try:
            made = sketches.sketch(adapter(artifact.adapter).tensors(artifact).values())
        except ValueError as error:
            raise UnsupportedModel(str(error)) from None
        return {"sketch": made.to_json()}


@dataclass(frozen=True)
class Sketched:
    """A model whose content is known, with its sketch unless the index has that content."""

    place: Place
    digest: str
    sketch: Sketch | None


@dataclass(frozen=True)
class Neighbours:
    """What the index holds that is like one model."""

    name: str
    near: tuple[Near, ...]


def build(
    targets: Sequence[str],
    index: Index,
    options: SourceOptions,
    *,
    jobs: int | None = None,
    timeout: float = 600.0,
    seen: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[tuple[Place, bool] | Skipped]:
    """Add models to an index; content that it knows is neither fetched nor opened.

    Args:
        targets: as ``scan`` takes them.
        index: grows as models are done.
        options: what sources may do.
        jobs: models at a time; by default as many as there are cores.
        timeout: seconds that one model may take.
        seen: told how many models are done, and how many there are.

    Yields:
        Where a model lies, and whether that is new (or holds other content than before); or what could not be sketched.
    """
    located = list(_located(targets, options))
    yield from (item for item in located if isinstance(item, Skipped))
    models = [item for item in located if isinstance(item, Located)]
    for done, item in enumerate(_sketched(models, index.knows, jobs, timeout), 1):
        seen(done, len(models))
        yield item if isinstance(item, Skipped) else (item.place, index.add(item.place, item.digest, item.sketch))


def search(
    targets: Sequence[str], index: Index, options: SourceOptions, *, count: int, timeout: float = 600.0
) -> Iterator[Neighbours | Skipped]:
    """Find the models of an index that are most like others, ``count`` for each, themselves left out."""
    located = list(_located(targets, options))
    yield from (item for item in located if isinstance(item, Skipped))
    models = [item for item in located if isinstance(item, Located)]
    for item in _sketched(models, lambda _: False, None, timeout):
        if isinstance(item, Skipped):
            yield item
        elif item.sketch is not None:
            yield Neighbours(item.place.name, tuple(index.nearest(item.sketch, count, exclude=item.place.name)))


def search_victims(names: tuple[str, ...], index: Index, *, count: int) -> Iterator[Neighbours | Skipped]:
    """Find the models of an index that are most like registered victims.

    Raises:
        VictimError: there is no such victim, or none at all.
    """
    for victim in victims.load_named(names):
        try:
            yield Neighbours(victim.name, tuple(index.nearest(of_victim(victim), count)))
        except VictimError as error:
            yield Skipped(victim.name, str(error))


def of_victim(victim: Victim) -> Sketch:
    """Sketch a registered victim by the tensors of its method ``weights``.

    Raises:
        VictimError: it was registered without, or has no matrix to sketch.
    """
    if "weights" not in victim.fingerprints:
        raise VictimError("registered without the method weights: its tensors are not known")
    try:
        return sketches.sketch(victim.fingerprints["weights"].arrays.values())
    except ValueError as error:
        raise VictimError(str(error)) from None


def place(artifact: Artifact) -> Place:
    """Say where a model lies, so that ``scan`` finds it again."""
    if artifact.revision is None:
        path = str(artifact.path.absolute())
        return Place(path, path)
    return Place(f"{artifact.target}@{artifact.revision}", f"{artifact.listing}@{artifact.revision}")


def content(artifact: Artifact) -> str:
    """Return a digest of all files of a model, names and order ignored. Local files are read."""
    subject = Subject(files=artifact.files, root=artifact.root)
    hashed = [subject.hashed(file) for file in artifact.files]
    return sha256("\n".join(sorted(str(file.sha256 or file.git_oid) for file in hashed)).encode()).hexdigest()


def _located(targets: Sequence[str], options: SourceOptions) -> Iterator[Located | Skipped]:
    """Find models; those whose tensors are never read are skipped."""
    for item in locate(targets, options):
        if isinstance(item, Located) and Access.WEIGHTS not in (kind := adapter(item.artifact.adapter)).gives:
            yield Skipped(item.artifact.target, kind.lacking(item.artifact))
        else:
            yield item


def _sketched(
    models: Sequence[Located], known: Callable[[str], bool], jobs: int | None, timeout: float
) -> Iterator[Sketched | Skipped]:
    """Sketch models in sandboxed children, several at a time; yield each as it is done."""
    if not models:
        return
    fresh: list[tuple[Located, str]] = []
    for item in models:
        digest = content(item.artifact)
        if known(digest):
            yield Sketched(place(item.artifact), digest, None)
        else:
            fresh.append((item, digest))
    with Sandbox(Limits(wall_seconds=timeout)) as sandbox:
        pool = ThreadPoolExecutor(max(1, min(jobs or cores(), len(fresh))))
        try:
            for future in as_completed([pool.submit(_open, item, digest, sandbox) for item, digest in fresh]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _open(item: Located, digest: str, sandbox: Sandbox) -> Sketched | Skipped:
    """Sketch one model in a child of its own."""
    try:
        artifact = item.fetched()
        with sandbox.child(TASK, _preload(artifact), readable=artifact.local_files()) as child:
            answer = child.call({"artifact": artifact_to_json(artifact)})
        try:
            made = Sketch.from_json(answer["sketch"])
        except (KeyError, ValueError) as error:
            raise SandboxCrash(f"the process that had it open sent a malformed answer ({error})") from None
    except TargetError as error:
        return Skipped(item.artifact.target, str(error))
    return Sketched(place(item.artifact), digest, made)


def _preload(artifact: Artifact) -> tuple[str, ...]:
    kind = adapter(artifact.adapter)
    return (*kind.preload[Access.WEIGHTS], type(kind).__module__, "fp_audit.indexing")
