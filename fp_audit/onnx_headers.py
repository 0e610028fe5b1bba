"""Where the tensors of an ONNX file lie: a walk over protobuf's wire format that steps over their values.

Nothing is parsed by a library, because the file may be hostile and may lie on a hub: nodes and small tensors are read
as they come, and over a large tensor the walk jumps, which costs one more request.

Sources: protobuf's encoding specification; field numbers from ``onnx.proto3``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import PurePosixPath

import numpy as np

from fp_audit.errors import CorruptModel
from fp_audit.headers import FIRST, FLOATS, MAX_AXES, MAX_TENSORS, Layout, Place, Readable

AHEAD = 2**15
"""Bytes fetched at once after a jump."""
MAX_FIELDS = 10**6
"""Most fields that are looked at: the graph of a large language model has tens of thousands of nodes."""

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
_GRAPH, _TRAINING, _FUNCTIONS = 7, 20, 25
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15
_ATTRIBUTE, _TENSOR = 5, 5
_HIDING = frozenset({6, 10, 11, 22, 23})
"""Fields of an attribute that hold graphs, or tensors that are not looked at."""
_DIMS, _TYPE, _RAW, _EXTERNAL, _LOCATION = 1, 2, 9, 13, 14
_TYPES = {1: "F32", 10: "F16", 11: "F64", 16: "BF16"}
_OTHER = "other"

Field = tuple[int, int, int, int]
"""Number, wire type, and either the value and 0 (varint) or first byte and end."""


def onnx(path: str, files: Mapping[str, Readable]) -> Layout:
    """Find all tensors of an ONNX model.

    Args:
        path: the ``.onnx`` file.
        files: it and the files beside it, by path: external data are looked for among them.

    Raises:
        CorruptModel: it is no ONNX file, or beyond the caps.
        TargetError: its bytes cannot be had.
    """
    return _Walk(path, files).model()


class _Walk:
    """One pass over a file."""

    def __init__(self, path: str, files: Mapping[str, Readable]) -> None:
        self._path, self._files, self._file = path, files, files[path]
        self._places: list[Place] = []
        self._complete = True
        self._fields_left = MAX_FIELDS
        self._start, self._buffer = 0, b""

    def model(self) -> Layout:
        graphs = []
        for number, wire, begin, end in self._fields(0, self._file.size):
            if number == _GRAPH and wire == _LENGTH:
                graphs.append((begin, end))
                self._graph(begin, end)
            self._complete = self._complete and number not in (_TRAINING, _FUNCTIONS)
        if len(graphs) != 1:
            raise CorruptModel(f"not ONNX: it holds {len(graphs)} graphs, expected one")
        return Layout(tuple(self._places), self._complete)

    def _graph(self, begin: int, end: int) -> None:
        for number, wire, first, last in self._fields(begin, end):
            if wire != _LENGTH:
                continue
            if number == _NODE:
                self._node(first, last)
            elif number == _INITIALIZER:
                self._tensor(first, last)
            self._complete = self._complete and number != _SPARSE

    def _node(self, begin: int, end: int) -> None:
        """Look for the tensors of a node: those of ``Constant`` are weights like any other."""
        for number, wire, first, last in self._fields(begin, end):
            if number != _ATTRIBUTE or wire != _LENGTH:
                continue
            for inner, kind, at, stop in self._fields(first, last):
                if inner == _TENSOR and kind == _LENGTH:
                    self._tensor(at, stop)
                self._complete = self._complete and inner not in _HIDING

    def _tensor(self, begin: int, end: int) -> None:
        if len(self._places) >= MAX_TENSORS:
            raise CorruptModel(f"holds more than {MAX_TENSORS:,} tensors")
        shape: list[int] = []
        seen: dict[int, Field] = {}
        external: dict[str, str] = {}
        for field in self._fields(begin, end):
            number, wire, first, last = field
            if number == _DIMS:
                shape += [first] if wire == _VARINT else self._varints(first, last)
            elif number == _EXTERNAL and wire == _LENGTH:
                external.update([self._entry(first, last)])
            elif number in seen:
                raise CorruptModel("a tensor states something twice")
            elif number in (_TYPE, _RAW, _LOCATION):
                seen[number] = field
        if len(shape) > MAX_AXES or any(dim >= 2**63 for dim in shape):
            raise CorruptModel(f"a tensor has the shape {shape[:8]}")
        dtype = _TYPES.get(seen[_TYPE][2] if _TYPE in seen else 0, _OTHER)
        self._places.append(self._place(tuple(shape), dtype, seen, external))

    def _place(self, shape: tuple[int, ...], dtype: str, seen: Mapping[int, Field], external: dict[str, str]) -> Place:
        """Say where a tensor's values lie, if they lie in one piece where the file says."""
        size = prod(shape) * np.dtype(FLOATS.get(dtype, "u1")).itemsize
        file: Readable | None = None
        begin, end = 0, 0
        if _LOCATION in seen and seen[_LOCATION][2] == 1:
            file = self._files.get(str(PurePosixPath(self._path).parent / external.get("location", "")))
            offset = external.get("offset", "0")
            begin = int(offset) if offset.isascii() and offset.isdigit() and len(offset) < 19 else -1
            end = begin + size
        elif _RAW in seen and seen[_RAW][1] == _LENGTH:
            file, begin, end = self._file, *seen[_RAW][2:]
        sound = file is not None and begin >= 0 and end <= file.size and end - begin == size and dtype in FLOATS
        return Place(shape, dtype, file if sound else None, begin)

    def _entry(self, begin: int, end: int) -> tuple[str, str]:
        """Read a key and its text."""
        texts = {
            number: self._bytes(first, min(last, first + 4096)).decode("utf-8", "replace")
            for number, wire, first, last in self._fields(begin, end)
            if wire == _LENGTH
        }
        return texts.get(1, ""), texts.get(2, "")

    def _fields(self, begin: int, end: int) -> Iterator[Field]:
        """Step over the fields of the message between two bytes."""
        at = begin
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise CorruptModel(f"holds more than {MAX_FIELDS:,} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, at = self._varint(at, end)
                yield number, wire, value, 0
                continue
            if wire == _LENGTH:
                length, at = self._varint(at, end)
            elif wire in (_EIGHT, _FOUR):
                length = 8 if wire == _EIGHT else 4
            else:
                raise CorruptModel(f"not ONNX: wire type {wire} at byte {at:,}")
            if number == 0 or at + length > end:
                raise CorruptModel(f"not ONNX: a field ends outside of its message at byte {at:,}")
            yield number, wire, at, at + length
            at += length

    def _varints(self, begin: int, end: int) -> list[int]:
        found: list[int] = []
        at = begin
        while at < end and len(found) <= MAX_AXES:
            value, at = self._varint(at, end)
            found.append(value)
        return found

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        """Return a number of 7 bits a byte, and where it ends."""
        value = 0
        for i, byte in enumerate(self._bytes(at, min(at + 10, end))):
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                return value, at + i + 1
        raise CorruptModel(f"not ONNX: a number does not end at byte {at:,}")

    def _bytes(self, begin: int, end: int) -> bytes:
        """Return a few bytes, from the last block where they lie in it."""
        if not self._start <= begin <= end <= self._start + len(self._buffer):
            ahead = AHEAD if begin else FIRST
            self._buffer = self._file.read(begin, min(self._file.size, max(end, begin + 4096)), ahead)
            self._start = begin
        return self._buffer[begin - self._start : end - self._start]
