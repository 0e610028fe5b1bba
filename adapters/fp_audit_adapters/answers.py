"""Answers that somebody collected from a remote model: a JSON line for each image, and no model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp_audit.answers import Answers, Replayed
from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit.model import TOP_K, Adapter, BlackBox, LoadOptions, Read, Unprepared, WhiteBox, target_of
from fp_audit.types import Access, Artifact, Listing, OutputKind, Skipped

MAX_BYTES = 2**28
MAX_LINE = 2**21
"""Longest line, bytes: 20 for each of 100,000 classes."""
MAX_LINES = 2**20
MAX_CLASSES = 2**16
MAX_VALUES = 2**27
"""Most images times classes: .5 GiB of answers."""
MAX_NUMBER = 1e30
"""Largest logit: float32 holds little more."""

_HEAD = 2**16
"""Bytes in which a file that was not named by the user must show that it holds answers."""
_FIRST = re.compile(rb'\s*\{[^\n]*"image"\s*:\s*"[^"\n]*[0-9a-f]{32}(?:\.png)?"')

_QUERY = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")

_Answer: TypeAlias = Mapping[int, float] | Mapping[str, float]
"""What one line says of the classes that it names or numbers."""


class AnswersAdapter(Adapter):
    """Files like the ``answers.jsonl`` that ``fp-audit queries`` describes.

    Each line is an object with ``image``, the name of a query image, and one of ``label`` (a name or an index), ``top``
    (class -> probability of the likeliest classes), ``probabilities`` and ``logits`` (of all classes: a list, or an
    object by name). Other keys are ignored, and so are images that no method asks for. Classes are those that occur:
    named ones in alphabetical order, indices from 0 to the largest. Several answers to one image are averaged.
    """

    name: ClassVar[str] = "answers"
    summary: ClassVar[str] = "what a remote model answered to the images of `fp-audit queries`, in .jsonl files"
    preload: ClassVar[Mapping[Access, tuple[str, ...]]] = dict.fromkeys(Access, ("numpy",))
    gives: ClassVar[frozenset[Access]] = frozenset({Access.QUERIES})

    def claim(self, listing: Listing, read: Read) -> Iterator[Artifact | Skipped]:
        """Claim a ``.jsonl`` file on this disk that the user named, or whose first line names a query image."""
        del read
        if listing.root is None:
            return
        for file in listing.files:
            named = PurePosixPath(listing.target).name == file.path
            if file.path.endswith(".jsonl") and (named or _holds_answers(listing.root / file.path)):
                target = listing.target if named else target_of(listing, file.path, alone=False)
                yield Artifact(target, self.name, (file,), file.path, listing.root, None, listing.target)

    def lacking(self, artifact: Artifact) -> str:
        """See ``Adapter.lacking``."""
        del artifact
        return "it holds what a model answered; the model itself was expected"

    def tensors(self, artifact: Artifact) -> dict[str, NDArray[Any]]:
        """See ``Adapter.tensors``: there are none."""
        _no_model(artifact)

    def _load(self, artifact: Artifact, options: LoadOptions) -> BlackBox | Unprepared:
        """See ``Adapter.load``."""
        del options
        return Replayed(read_answers(artifact.path))

    def _load_white(self, artifact: Artifact, options: LoadOptions) -> WhiteBox:
        """See ``Adapter.load_white``: there is no model."""
        del options
        _no_model(artifact)

    def _save(self, model: WhiteBox, folder: Path) -> None:
        """See ``Adapter.save``: there is no model."""
        raise UnsupportedModel(f"{folder}: answers that were written down are no model that could be saved")


def _no_model(artifact: Artifact) -> NoReturn:
    raise UnsupportedModel(f"{artifact.target} holds what a model answered, not the model")


def _holds_answers(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return _FIRST.match(stream.read(_HEAD)) is not None
    except OSError:
        return False


def read_answers(path: Path) -> Answers:
    """Read a file of answers.

    Raises:
        CorruptModel: it is none; the text names the line.
    """
    size, table = path.stat().st_size, _Table()
    if size > MAX_BYTES:
        raise CorruptModel(f"has {size:,} bytes; answers of at most {MAX_BYTES:,} were expected")
    with path.open("rb") as stream:
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
            try:
                if number > MAX_LINES:
                    raise ValueError(f"one more than the {MAX_LINES:,} lines that were expected at most")
                table.add(line)
            except RecursionError:
                raise CorruptModel(f"line {number}: nested too deeply for an answer") from None
            except ValueError as error:
                raise CorruptModel(f"line {number}: {error}") from None
    return table.answers()


class _Table:
    """What was read so far."""

    def __init__(self) -> None:
        self._key = ""
        """What the first line answers with."""
        self._most = 0
        """Most classes in one line."""
        self._columns: dict[int | str, int] = {}
        self._rows: dict[str, list[tuple[NDArray[np.intp], NDArray[np.float32]]]] = {}
        """Name of an image -> its answers: columns and values."""

    def add(self, line: bytes) -> None:
        """Read one line.

        Raises:
            ValueError: it is no answer, or does not fit those before.
        """
        if len(line) > MAX_LINE:
            raise ValueError(f"longer than {MAX_LINE:,} bytes")
        try:
            text = line.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError("not text in UTF-8") from None
        if not text:
            return
        image, key, answer = _parsed(text)
        if self._columns:
            self._check(key, answer)
        self._key, self._most = key, max(self._most, len(answer))
        columns = [self._columns.setdefault(name, len(self._columns)) for name in answer]
        if len(self._columns) > MAX_CLASSES:
            raise ValueError(f"one more than the {MAX_CLASSES:,} classes that were expected at most")
        values = np.fromiter(answer.values(), np.float32, len(answer))
        self._rows.setdefault(image, []).append((np.array(columns, np.intp), values))

    def _check(self, key: str, answer: _Answer) -> None:
        """Refuse an answer that is not like those before."""
        if key != self._key:
            raise ValueError(f'answers with "{key}", earlier lines with "{self._key}"; expected one kind in a file')
        if type(next(iter(answer))) is not type(next(iter(self._columns))):
            raise ValueError("earlier lines name classes and this one numbers them, or the reverse; expected one way")
        if key in ("probabilities", "logits") and answer.keys() != self._columns.keys():
            raise ValueError(
                f'"{key}" of {len(answer)} classes; expected the same {len(self._columns)} classes as in the first line'
            )

    def answers(self) -> Answers:
        """Return a row for each image, the mean of what was answered to it.

        Raises:
            CorruptModel: there is no answer to any query image.
        """
        if not any(map(_QUERY.fullmatch, self._rows)):
            raise CorruptModel(
                "no line answers an image of `fp-audit queries`; expected names of 32 hexadecimal digits and .png"
            )
        classes = sorted(name for name in self._columns if isinstance(name, str))
        ranks = {name: rank for rank, name in enumerate(classes)}
        place = np.array([ranks[name] if isinstance(name, str) else name for name in self._columns], np.intp)
        if len(self._rows) * int(place.max() + 1) > MAX_VALUES:
            raise CorruptModel(f"{len(self._rows):,} images and {place.max() + 1:,} classes are too many")
        table = np.zeros((len(self._rows), place.max() + 1), np.float32)
        for row, given in zip(table, self._rows.values(), strict=True):
            for columns, values in given:
                row[place[columns]] += values / len(given)
        return Answers(self._output(), tuple(classes) or None, dict(zip(self._rows, table, strict=True)))

    def _output(self) -> OutputKind:
        """Say what the answers are; of fewer than ``TOP_K`` classes only the likeliest is believed, as a label.

        Independents are judged by that many classes, and fewer would look like something else.
        """
        if self._key == "label" or (self._key == "top" and self._most < min(TOP_K, max(2, len(self._columns)))):
            return "labels"
        return "topk" if self._key == "top" else "probabilities" if self._key == "probabilities" else "logits"


def _parsed(text: str) -> tuple[str, str, _Answer]:
    """Take the name of the image, the key of the answer and the answer from a line."""
    try:
        line = json.loads(text, parse_constant=_refused)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    if not isinstance(line, dict):
        raise ValueError(f'expected an object such as {{"image": ..., "label": ...}}, found {_short(line)}')
    image = line.get("image")
    if not isinstance(image, str):
        raise ValueError(f'expected "image", the name of a query image, found {_short(image)}')
    keys = [key for key in _READERS if key in line]
    if len(keys) != 1:
        found = ", ".join(map(_short, keys or [key for key in line if key != "image"])) or "nothing"
        raise ValueError(f'expected one of "label", "top", "probabilities" and "logits", found {found}')
    try:
        answer = _READERS[keys[0]](line[keys[0]])
    except ValueError as error:
        raise ValueError(f'"{keys[0]}": {error}') from None
    return PurePosixPath(image.replace("\\", "/")).name.removesuffix(".png"), keys[0], answer


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"expected finite numbers, found {constant}")


def _label(given: object) -> _Answer:
    if isinstance(given, str) and given.strip():
        return {given.strip(): 1.0}
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < MAX_CLASSES:
        return {given: 1.0}
    raise ValueError(f"expected a name or an index from 0 to {MAX_CLASSES - 1}, found {_short(given)}")


def _top(given: object) -> _Answer:
    if not isinstance(given, dict):
        raise ValueError(f'expected an object such as {{"cat": 0.8, "dog": 0.1}}, found {_short(given)}')
    return _probabilities(given)


def _probabilities(given: object) -> _Answer:
    answer = _logits(given)
    outside = [value for value in answer.values() if not 0 <= value <= 1]
    if outside:
        raise ValueError(f"expected numbers from 0 to 1, found {_short(outside[0])}")
    if not any(answer.values()):
        raise ValueError("expected a probability above 0, found none")
    return answer


def _logits(given: object) -> _Answer:
    """Read numbers by class; an object's keys are names, unless all of them are indices."""
    if not isinstance(given, (dict, list)) or not given:
        raise ValueError(f"expected a list of numbers, or an object of them by class, found {_short(given)}")
    values = list(given.values()) if isinstance(given, dict) else given
    wrong = [value for value in values if not _is_number(value)]
    if wrong:
        raise ValueError(f"expected finite numbers, found {_short(wrong[0])}")
    if isinstance(given, list):
        return dict(enumerate(values))
    if not all(map(_NUMBER.fullmatch, given)):
        return {name.strip(): value for name, value in given.items()}
    if max(map(int, given)) >= MAX_CLASSES:
        raise ValueError(f"expected class indices up to {MAX_CLASSES - 1}, found {max(map(int, given))}")
    return {int(name): value for name, value in given.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def _short(value: object) -> str:
    """Show a value from the file in a message."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


_READERS: Mapping[str, Callable[[object], _Answer]] = {
    "label": _label,
    "top": _top,
    "probabilities": _probabilities,
    "logits": _logits,
}
"""Key of a line -> reads its value."""
