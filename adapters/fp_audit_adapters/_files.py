"""The files of a model folder: JSON and safetensors, read without torch and without the model's library.

Everything here may be handed hostile files. JSON and headers are capped in size, depth and count; shards must
be plain names beside their index; pickles are recognised by name and never opened.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from fp_audit.errors import CorruptModel, UnavailableTarget, UnsafeModel
from fp_audit.model import Read
from fp_audit.types import Artifact, File, Listing

MAX_JSON = 4 * 2**20
"""Largest configuration or index that is parsed, bytes."""
MAX_DEPTH = 32
"""Deepest nesting of lists and objects in a configuration."""
MAX_HEADER = 25 * 10**6
"""Largest safetensors header, bytes."""
MAX_TENSORS = 100_000

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")

_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}
"""safetensors type -> numpy type of its bytes. The 4 and 6 bit floats have none."""

_EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
"""safetensors type -> type of an 8 bit float."""

REMOTE = ("auto_map", "custom_pipelines", "trust_remote_code")
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def read_json(read: Read, path: str) -> dict[str, Any]:
    """Read one JSON object of at most ``MAX_JSON`` bytes, nested at most ``MAX_DEPTH`` deep.

    Raises:
        CorruptModel: it is not JSON, not an object, too large or too deep.
        UnavailableTarget: it is missing.
    """
    data = read(path)
    if len(data) > MAX_JSON:
        raise CorruptModel(f"{path} has {len(data):,} bytes; at most {MAX_JSON:,} were expected")
    try:
        value = json.loads(data)
    except RecursionError:
        raise CorruptModel(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise CorruptModel(f"{path} is not JSON: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise CorruptModel(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    if _depth(value) > MAX_DEPTH:
        raise CorruptModel(f"{path} is nested more than {MAX_DEPTH} deep")
    return value


def _depth(value: object) -> int:
    deepest, rest = 0, [(value, 1)]
    while rest:
        item, depth = rest.pop()
        if isinstance(item, dict | list):
            deepest = max(deepest, depth)
            rest.extend((child, depth + 1) for child in (item.values() if isinstance(item, dict) else item))
    return deepest


def remote_code(config: Mapping[str, Any]) -> str | None:
    """Return the entry of a configuration that names code to run, however deep it stands; None if there is none."""
    for key, value in _items(config):
        if key in REMOTE and value:
            return key
        if key in _ATTENTION and isinstance(value, str) and "/" in value:
            return f"{key} = {value[:80]!r}"
    return None


def _items(value: object) -> Iterable[tuple[str, Any]]:
    """Walk the keys of nested objects."""
    children: list[object] = []
    if isinstance(value, dict):
        yield from value.items()
        children = list(value.values())
    elif isinstance(value, list):
        children = value
    for child in children:
        yield from _items(child)


def local_read(root: Path) -> Read:
    """Return a ``Read`` for the files under ``root``."""

    def read(path: str) -> bytes:
        file = root / path
        if not file.is_file():
            raise UnavailableTarget(f"{path} is missing")
        with file.open("rb") as stream:
            return stream.read(MAX_JSON + 1)

    return read


def one_line(error: BaseException) -> str:
    """Return the text of a library's error as one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:199]}…"


@dataclass(frozen=True)
class Folder:
    """One folder of a listing."""

    path: str
    """Relative to the listing's root; ``"."`` for the root itself."""
    files: Mapping[str, File]
    """The files directly in it, by name."""

    def inside(self, name: str) -> str:
        """Return the path of one of its files, relative to the listing's root."""
        return name if self.path == "." else f"{self.path}/{name}"


def folders(listing: Listing) -> list[Folder]:
    """Group a listing by folder, sorted by path."""
    grouped: defaultdict[str, dict[str, File]] = defaultdict(dict)
    for file in listing.files:
        path = PurePosixPath(file.path)
        grouped[str(path.parent)][path.name] = file
    return [Folder(path, files) for path, files in sorted(grouped.items())]


def weight_files(folder: Folder, read: Read) -> tuple[File, ...]:
    """Choose the safetensors files (and the index that names them) of a folder.

    Raises:
        UnsafeModel: there are only pickles, or the index names a file outside the folder.
        UnavailableTarget: there are no weights, or shards are missing.
        CorruptModel: the index is not one.
    """
    if WEIGHTS in folder.files:
        return (folder.files[WEIGHTS],)
    if INDEX in folder.files:
        return (folder.files[INDEX], *_shards(folder, read))
    pickles = sorted(name for name in folder.files if name.endswith(_PICKLES))
    if pickles:
        raise UnsafeModel(f"only pickle weights ({_few(pickles)}), never opened: {WEIGHTS} was expected")
    others = sorted(name for name in folder.files if name.endswith(".safetensors"))
    found = f"; found {_few(others)}" if others else ""
    raise UnavailableTarget(f"no weights: {WEIGHTS} or {INDEX} was expected{found}")


def _shards(folder: Folder, read: Read) -> list[File]:
    names = read_json(read, folder.inside(INDEX)).get("weight_map")
    if not isinstance(names, dict) or not names or len(names) > MAX_TENSORS:
        raise CorruptModel(f"{INDEX} has no weight_map of 1 to {MAX_TENSORS:,} names")
    shards = sorted({str(name) for name in names.values()})
    for name in shards:
        if not _PLAIN_NAME.fullmatch(name):
            raise UnsafeModel(f"{INDEX} names the shard {name[:80]!r}: a file beside it was expected")
    missing = [name for name in shards if name not in folder.files]
    if missing:
        raise UnavailableTarget(f"{len(missing)} of {len(shards)} shards are missing: {_few(missing)}")
    return [folder.files[name] for name in shards]


def has_weights(folder: Folder) -> bool:
    """Tell whether a folder holds weights of any kind that belongs to a ``config.json``."""
    return any(name.endswith((".safetensors", *_PICKLES)) or name == INDEX for name in folder.files)


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def safetensors_paths(artifact: Artifact) -> list[Path]:
    """Return the local safetensors files of a fetched artifact."""
    if artifact.root is None:
        raise ValueError(f"{artifact.target} has not been fetched")
    return [artifact.root / file.path for file in artifact.files if file.path.endswith(".safetensors")]


@dataclass(frozen=True)
class TensorHeader:
    """Where one tensor lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """First byte, from the start of the file."""
    end: int


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Read and check the header of one safetensors file; no tensor is read.

    Raises:
        CorruptModel: the file is truncated, not safetensors, or its header is beyond the caps.
        UnavailableTarget: the file is missing.
    """
    if not path.is_file():
        raise UnavailableTarget(f"{path.name} is missing")
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
    if size > MAX_HEADER:
        raise CorruptModel(f"{path.name} is not safetensors: its header would have {size:,} bytes")
    try:  # the library checks that types, shapes and offsets agree and cover the file exactly
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise CorruptModel(f"{path.name} is truncated or not safetensors: {one_line(error)}") from None
    with path.open("rb") as stream:
        stream.seek(8)
        entries = json.loads(stream.read(size), object_pairs_hook=_once)
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise CorruptModel(f"{path.name} holds {len(entries):,} tensors; expected {MAX_TENSORS:,} at most")
    start = 8 + size
    return {
        name: TensorHeader(e["dtype"], tuple(e["shape"]), *(start + offset for offset in e["data_offsets"]))
        for name, e in entries.items()
    }


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of a header; a key that occurs twice could mean two things to two readers."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CorruptModel("the safetensors header has a key twice")
    return found


def read_tensors(paths: Iterable[Path]) -> dict[str, NDArray[Any]]:
    """Read every tensor of the given safetensors files.

    Half precision (F16, BF16) and 8 bit floats become float32; 4 and 6 bit floats, which have no type here, are left
    out.

    Raises:
        CorruptModel: see ``read_header``; or two files hold a tensor of one name.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for path in paths:
        header = read_header(path)
        data = np.memmap(path, np.uint8, "r")
        for name, entry in header.items():
            if name in tensors:
                raise CorruptModel(f"{path.name} holds {name!r} a second time")
            if entry.dtype in _DTYPES or entry.dtype in _EIGHT_BITS:
                tensors[name] = _decode(data[entry.begin : entry.end], entry)
    return tensors


def _decode(data: NDArray[np.uint8], entry: TensorHeader) -> NDArray[Any]:
    if entry.dtype in _EIGHT_BITS:
        return np.asarray(data.view(_EIGHT_BITS[entry.dtype]).reshape(entry.shape).astype(np.float32))
    values = data.view(_DTYPES[entry.dtype]).reshape(entry.shape)
    if entry.dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.array(values, np.float32 if entry.dtype == "F16" else None)


def check_plausible(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a configuration whose numbers its own weights cannot back, before anything is built from it.

    What is called depth, layers, repeats, blocks, coefficient or multiplier is bounded by the number of
    tensors (at least 1000), any other number by the number of weights (at least a million).

    Raises:
        CorruptModel: a number is out of all proportion.
    """
    weights = sum(math.prod(value.shape) for value in tensors.values())
    for name, value in config.items():
        if re.search(r"depth|layers|repeats|blocks|coefficient|multiplier", name):
            largest = max(len(tensors), 1000)
        else:
            largest = max(weights, 10**6)
        for number in _numbers(value):
            if not abs(number) <= largest:
                raise CorruptModel(f"config.json says {name} = {number:g}, which {len(tensors)} tensors cannot back")


def _numbers(value: object) -> Iterable[int | float]:
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
