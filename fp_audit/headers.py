"""Where the tensors of a file lie, found without reading their values: safetensors here, ONNX in ``onnx_headers``.

The files may be hostile and may lie on a hub: what they state is checked before it is believed, and only the bytes that
are needed are asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import CorruptModel

FIRST = 100_000
"""Bytes of the first read: 97 % of the safetensors headers on the Hub are shorter (says ``huggingface_hub``)."""
MAX_HEADER = 25 * 10**6
"""Largest safetensors header, bytes; the Hub's own limit."""
MAX_TENSORS = 100_000
MAX_AXES = 32

_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types whose values can be read from their bytes alone -> numpy's type of these bytes."""
_NO_WEIGHTS = frozenset({"I64", "BOOL"})
"""Types of counters, positions and masks: nobody packs quantised weights into them."""


class Readable(Protocol):
    """A file that can be read in parts."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def fetched(self) -> int:
        """Bytes that were fetched so far."""

    def read(self, begin: int, end: int, ahead: int = 0) -> bytes:
        """Return the bytes from ``begin`` to ``end``; if they must be fetched, up to ``ahead`` more are fetched too.

        Raises:
            TargetError: they cannot be had.
        """

    def holds(self, begin: int, end: int) -> bool:
        """Whether these bytes were fetched already."""


@dataclass(frozen=True)
class Place:
    """One tensor of a file."""

    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it."""
    file: Readable | None = None
    """None where its values cannot be reached."""
    begin: int = 0
    """First byte in ``file``; the values follow one another, the last axis fastest."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis; 0 where the values cannot be read from their bytes alone."""
        if self.file is None or self.dtype not in FLOATS:
            return 0
        return prod(self.shape[1:]) * np.dtype(FLOATS[self.dtype]).itemsize

    def rows(self, count: int) -> NDArray[np.float32]:
        """Read the first ``count`` indices of the first axis, ``count`` x all other axes.

        Raises:
            TargetError: they cannot be had.
        """
        if self.file is None:
            raise CorruptModel("a tensor without values was asked for its values")
        data = self.file.read(self.begin, self.begin + count * self.row_bytes)
        values = np.frombuffer(data, FLOATS[self.dtype]).reshape(count, -1)
        if self.dtype == "BF16":  # the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """All tensors of a model."""

    places: tuple[Place, ...]
    complete: bool
    """Whether no weights can hide in another form: packed into integers, inside a function or a branch."""


def safetensors(file: Readable) -> Layout:
    """Read and check the header of a safetensors file.

    Raises:
        CorruptModel: it is none, or types, shapes and offsets do not agree and cover the file exactly.
        TargetError: the header cannot be had.
    """
    length = int.from_bytes(file.read(0, min(8, file.size), FIRST), "little")
    start = 8 + length
    if length > MAX_HEADER or start > file.size:
        raise CorruptModel(f"not safetensors: its header would have {length:,} bytes")
    entries = _object(file.read(8, start))
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise CorruptModel(f"holds {len(entries):,} tensors; expected {MAX_TENSORS:,} at most")
    found = sorted((_entry(entry) for entry in entries.values()), key=lambda item: item[2:])
    at = 0
    for _, _, begin, end in found:
        if begin != at:
            raise CorruptModel(f"the safetensors header leaves a gap or an overlap at byte {at:,}")
        at = end
    if start + at != file.size:
        raise CorruptModel(f"the safetensors header describes {start + at:,} bytes of {file.size:,}")
    places = tuple(Place(shape, dtype, file, start + begin) for dtype, shape, begin, _ in found)
    return Layout(places, complete=all(place.dtype in FLOATS.keys() | _NO_WEIGHTS for place in places))


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise CorruptModel("not safetensors: its header is not JSON") from None
    if not isinstance(value, dict):
        raise CorruptModel("not safetensors: its header is not a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; a key that occurs twice could mean two things to two readers."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CorruptModel("the safetensors header has a key twice")
    return found


def _entry(entry: Any) -> tuple[str, tuple[int, ...], int, int]:  # noqa: ANN401
    """Return type, shape, first byte and end of a tensor, as a header states them."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = [*shape, begin, end]
        sound = all(type(number) is int and 0 <= number < 2**63 for number in numbers) and len(shape) <= MAX_AXES
        if not sound or (end - begin) * 8 != prod(shape) * _BITS[dtype]:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CorruptModel(f"the safetensors header has the entry {str(entry)[:80]!r}") from None
    return dtype, shape, begin, end
