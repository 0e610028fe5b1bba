"""Bytes that an ONNX file keeps in other files: found wherever they hide, checked, and read in.

``onnx.load`` follows the locations of the initialisers it knows; the tensors of sparse initialisers, attributes,
subgraphs and functions have locations too. Here every ``TensorProto`` of the message tree is visited by
reflection, so that none is missed, and no library ever sees a location.
"""

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import TensorProto

from fp_audit.errors import CorruptModel, UnsafeModel

_BITS = {
    **dict.fromkeys(("UINT2", "INT2"), 2),
    **dict.fromkeys(("UINT4", "INT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("UINT8", "INT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("UINT16", "INT16", "FLOAT16", "BFLOAT16"), 16),
    **dict.fromkeys(("UINT32", "INT32", "FLOAT"), 32),
    **dict.fromkeys(("UINT64", "INT64", "DOUBLE", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}


def all_tensors(message: Message) -> Iterator[TensorProto]:
    """Every ``TensorProto`` below ``message``, whatever holds it, in no particular order."""
    waiting = [message]
    while waiting:
        current = waiting.pop()
        if isinstance(current, TensorProto):
            yield current
            continue
        for field, value in current.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def byte_size(tensor: TensorProto) -> int:
    """How many bytes the tensor's values take when they are packed (``raw_data`` or an external file).

    Raises:
        CorruptModel: an unknown element type, or negative dimensions.
    """
    known = TensorProto.DataType.values()
    kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in known else str(tensor.data_type)
    if kind not in _BITS:
        raise CorruptModel(f"tensor {tensor.name!r} has the element type {kind}, which has no packed form")
    if any(dim < 0 for dim in tensor.dims):
        raise CorruptModel(f"tensor {tensor.name!r} has the shape {list(tensor.dims)}")
    size: int = (math.prod(tensor.dims) * _BITS[kind] + 7) // 8
    return size


def read_external(tensor: TensorProto, folder: Path, root: Path) -> None:
    """Replaces the tensor's reference to a file by the bytes in that file.

    Args:
        tensor: a tensor with ``data_location`` EXTERNAL; changed in place.
        folder: the folder that holds the model file; locations are relative to it.
        root: the bytes must lie in this folder or below, after all links are followed.

    Raises:
        UnsafeModel: the location leads out of ``root`` or is no regular file. Nothing was read then.
        CorruptModel: the file is missing or too short, or the entry makes no sense.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    expected = byte_size(tensor)
    offset = _number(tensor, entries, "offset", 0)
    length = _number(tensor, entries, "length", expected)
    if length != expected:
        raise CorruptModel(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} takes {expected} bytes, its entry says {length}"
        )
    tensor.raw_data = _read(_locate(tensor, entries.get("location", ""), folder, root), tensor, offset, length)
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _number(tensor: TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise CorruptModel(f"tensor {tensor.name!r} has the {key} {text[:40]!r} in its external data")
    return int(text)


def _locate(tensor: TensorProto, location: str, folder: Path, root: Path) -> Path:
    place = f"external data of tensor {tensor.name!r}: location {location[:200]!r}"
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location:
        raise CorruptModel(f"{place} is no file name")
    if location.startswith(("/", "\\")) or ":" in parts[0] or Path(location).is_absolute():
        raise UnsafeModel(f"{place} is absolute; it must be relative to the model")
    if ".." in parts:
        raise UnsafeModel(f"{place} contains '..'; it must lie in the model's folder")
    try:
        real = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise CorruptModel(f"{place} is missing; it must lie beside the model file") from error
    if not real.is_relative_to(root.resolve()):
        raise UnsafeModel(f"{place} is a link that leads out of the model's folder")
    return real


def _read(path: Path, tensor: TensorProto, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeModel(f"external data of tensor {tensor.name!r}: {path.name!r} is not a regular file")
        if offset + length > status.st_size:
            raise CorruptModel(
                f"tensor {tensor.name!r} ends at byte {offset + length} of {path.name!r}, "
                f"which has {status.st_size}; was the download cut off?"
            )
        file.seek(offset)
        chunks, missing = [], length
        while missing and (chunk := file.read(min(missing, 1 << 30))):
            chunks.append(chunk)
            missing -= len(chunk)
    return b"".join(chunks)
