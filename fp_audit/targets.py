"""From what the user typed to the models it names: sources list, adapters claim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from fp_audit import augmentation, declared, plugins
from fp_audit.errors import TargetError, UnsupportedModel, UsageError
from fp_audit.model import WEIGHTS, Adapter
from fp_audit.sources._base import Source, SourceOptions
from fp_audit.types import Access, Artifact, File, Listing, Skipped

CARD = "README.md"


@dataclass(frozen=True)
class Located:
    """A model and the source that can fetch it."""

    artifact: Artifact
    source: Source

    def fetched(self) -> Artifact:
        """Make the files local; a child has another working directory, so their folder becomes absolute.

        Raises:
            UnavailableTarget: see ``Source.fetch``.
        """
        artifact = self.source.fetch(self.artifact)
        return replace(artifact, root=Path(artifact.root or ".").absolute())


def locate(targets: Iterable[str], options: SourceOptions) -> Iterator[Located | Skipped]:
    """Find every model that the targets name. What cannot be listed or opened comes out as ``Skipped``."""
    sources = _sources(options)
    names = _Names()
    for target in _expanded(targets, sources):
        source = next((source for source in sources if source.accepts(target)), None)
        if source is None:
            yield Skipped(target, "neither a path on this machine nor a hub id such as org/model")
            continue
        try:
            for item in source.listings(target):
                for found in (item,) if isinstance(item, Skipped) else _claimed(item, source):
                    if isinstance(found, Skipped):
                        yield found
                    elif (named := names.new(found)) is not None:
                        yield Located(named, source)
        except TargetError as error:
            yield Skipped(target, str(error))


class _Names:
    """Sees to it that each model comes out once, and that no two come out under one name."""

    def __init__(self) -> None:
        self._places: set[tuple[object, ...]] = set()
        self._names: set[tuple[str, str | None]] = set()

    def new(self, found: Artifact) -> Artifact | None:
        """Return the artifact, renamed after its listing if its name is taken; None if it was seen before."""
        place = (found.root or found.listing, found.entry, found.adapter, found.revision)
        if place in self._places:
            return None
        self._places.add(place)
        if (found.target, found.revision) in self._names:
            found = replace(found, target=f"{found.listing}/{found.target}")
        self._names.add((found.target, found.revision))
        return found


def locate_one(target: str, options: SourceOptions) -> Located:
    """Find the one model that ``target`` names.

    Raises:
        TargetError: it cannot be listed or opened.
        UsageError: it names several models.
    """
    found = list(locate([target], options))
    located = [item for item in found if isinstance(item, Located) and _is_model(item.artifact)]
    if len(located) > 1:
        names = ", ".join(item.artifact.target for item in located[:3])
        raise UsageError(f"{target} holds {len(located)} models ({names}, ...): name one of them")
    if not located:
        reasons = [
            item.reason if isinstance(item, Skipped) else adapter(item.artifact.adapter).lacking(item.artifact)
            for item in found
        ]
        raise UnsupportedModel(f"{target}: {reasons[0] if reasons else 'no model found'}")
    return located[0]


def fetched(target: str, options: SourceOptions) -> Artifact:
    """Find the one model that ``target`` names and make its files local.

    Raises:
        UsageError: it names no model, or several.
    """
    try:
        return locate_one(target, options).fetched()
    except TargetError as error:
        raise UsageError(str(error)) from None


def only_hashes(artifact: Artifact) -> bool:
    """Whether a model is compared by the hashes of its files alone."""
    return adapter(artifact.adapter).gives == {Access.IDENTITY}


def _is_model(artifact: Artifact) -> bool:
    return Access.WEIGHTS in adapter(artifact.adapter).gives


@cache
def adapter(name: str) -> Adapter:
    """Return the adapter of that name."""
    made: Adapter = plugins.load("adapters", name)()
    return made


def _sources(options: SourceOptions) -> list[Source]:
    classes = plugins.load_all("sources").values()
    return [source(options) for source in sorted(classes, key=lambda source: source.order)]


def _expanded(targets: Iterable[str], sources: list[Source]) -> Iterator[str]:
    """Replace lists of targets by what they list."""
    for target in targets:
        source = next((source for source in sources if source.accepts(target)), None)
        yield from source.expand(target) if source else [target]


def _claimed(listing: Listing, source: Source) -> Iterator[Artifact | Skipped]:
    """Let every adapter look for its models in a listing, as they are asked for; say why if none finds one.

    Those that only compare hashes come first; what they claim is not also skipped: the driver does that, after it has
    compared them. Fallbacks come last.
    """
    found: list[Artifact | Skipped] = []
    for name in sorted(plugins.names("adapters"), key=_turn):
        claims: Iterable[Artifact | Skipped] = adapter(name).claim(listing, lambda path: source.read(listing, path))
        if adapter(name).fallback:
            found, claims = _divided(found, list(claims))
        for claimed in claims:
            found.append(claimed if isinstance(claimed, Skipped) else _completed(claimed, listing, source))
            if isinstance(found[-1], Artifact):
                yield found[-1]
    hashed = {item.target for item in found if isinstance(item, Artifact) and only_hashes(item)}
    yield from (item for item in found if isinstance(item, Skipped) and item.target not in hashed)
    yield from _unclaimed(listing, found)


def _turn(name: str) -> tuple[bool, bool]:
    return adapter(name).fallback, adapter(name).gives != {Access.IDENTITY}


def _divided(
    found: list[Artifact | Skipped], claimed: list[Artifact | Skipped]
) -> tuple[list[Artifact | Skipped], list[Artifact | Skipped]]:
    """Divide up what a fallback claims and others have found.

    Returns:
        What others have found, but for what they skipped and the fallback opens; and what the fallback adds: models of
        whose files no other adapter opens one.
    """
    taken = {file.path for item in found if isinstance(item, Artifact) for file in item.files}
    skipped = {item.target: item.reason for item in found if isinstance(item, Skipped)}
    added: list[Artifact | Skipped] = [
        replace(item, unrun=skipped.get(item.target, item.unrun))
        for item in claimed
        if isinstance(item, Artifact) and not any(file.path in taken for file in item.files)
    ]
    names = {item.target for item in added}
    return [item for item in found if isinstance(item, Artifact) or item.target not in names], added


def _completed(artifact: Artifact, listing: Listing, source: Source) -> Artifact:
    """Add what lies beside a model's files: its card, and the description of a random preprocessing."""
    stated = listing.declared
    card = str(PurePosixPath(_home(artifact), CARD))
    if stated is None and card in listing.by_path:
        try:
            stated = declared.from_card(source.read(listing, card).decode("utf-8", "replace"))
        except TargetError:
            stated = None  # a card that cannot be read says nothing
    return replace(_with_augmentation(artifact, listing), declared=stated)


def _with_augmentation(artifact: Artifact, listing: Listing) -> Artifact:
    """Add the description of a random preprocessing to a model's files, where its folder holds one.

    Nothing can be put in front of answers that were written down.
    """
    if not _is_model(artifact):
        return artifact
    stated = listing.by_path.get(str(PurePosixPath(_home(artifact), augmentation.FILE)))
    return artifact if stated is None else replace(artifact, files=(*artifact.files, stated))


def _unclaimed(listing: Listing, found: list[Artifact | Skipped]) -> list[Skipped]:
    """Name the folders that hold weights which no adapter claimed: they were not looked at, and the report says so."""
    claimed = {file.path for item in found if isinstance(item, Artifact) for file in item.files}
    known = {_folder(path) for path in claimed if path.lower().endswith(WEIGHTS)}
    known |= {item.target for item in found}
    folders: dict[str, list[File]] = {}
    for file in listing.files:
        if file.path.endswith(WEIGHTS) and file.path not in claimed:
            folders.setdefault(_folder(file.path), []).append(file)
    result = []
    for folder, files in folders.items():
        target = listing.target if folder == "." else (f"{listing.target}/{folder}" if listing.revision else folder)
        if folder not in known and target not in known:
            result.append(Skipped(target, _why(files)))
    if not found and not result:
        result.append(
            Skipped(listing.target, "holds no model: expected a config.json with safetensors weights, or an .onnx file")
        )
    return result


def _home(artifact: Artifact) -> str:
    """Return the folder of a model."""
    alone = any(file.path == artifact.entry for file in artifact.files)
    return _folder(artifact.entry) if alone else artifact.entry


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _why(files: list[File]) -> str:
    names = ", ".join(sorted(PurePosixPath(file.path).name for file in files)[:3])
    return f"weights of a kind that no adapter reads ({names})"
