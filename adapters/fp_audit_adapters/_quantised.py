"""Quantised layers in safetensors, back to the numbers that they stand for; read from the tensors alone.

Known layouts, by the names beside ``PLACE.weight`` (or ``PLACE.qweight``):

- bitsandbytes int8: ``PLACE.SCB``; ``w = q SCB / 127`` with one SCB a row.
- bitsandbytes 4 bits (nf4, fp4): ``weight.quant_map``, ``weight.absmax``, ``weight.quant_state.bitsandbytes__*`` and,
where
  the scales are quantised too, ``weight.nested_absmax`` and ``weight.nested_quant_map``.
- GPTQ, 2, 4 or 8 bits: ``PLACE.qzeros``, ``PLACE.scales``, ``PLACE.g_idx``; ``w = scale (q - zero - 1)``. (Files of
  the second format store zero, not zero - 1, and do not say so: their weights come out shifted by one step.)
- scaled int8 and fp8: ``PLACE.weight_scale`` or ``weight_scale_inv``, one number a tensor, a row or a block.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fp_audit.errors import CorruptModel

Array = NDArray[Any]

_STATE = ".quant_state.bitsandbytes__"
_MAX_STATE = 2**16
"""Largest description of a bitsandbytes layer, bytes."""


def dequantised(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Replace the tensors of quantised layers by their float32 weights, under ``PLACE.weight``; keep all others.

    Raises:
        CorruptModel: the tensors of a layer do not fit each other.
    """
    found = dict(tensors)
    for name in tensors:
        place = name.removesuffix(".qweight").removesuffix(".weight")
        if place == name:
            continue
        try:
            value = _layer(tensors, place)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            raise CorruptModel(
                f"the quantised layer {place[:200]!r} holds tensors that do not fit each other"
            ) from None
        if value is not None:
            found = {key: kept for key, kept in found.items() if not _belongs(key, place)}
            found[f"{place}.weight"] = value
    return found


def _belongs(name: str, place: str) -> bool:
    beside = (
        "weight",
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
        "SCB",
        "weight_format",
        "weight_scale",
        "weight_scale_inv",
    )
    return name.startswith(f"{place}.weight.") or name in {f"{place}.{part}" for part in beside}


def _layer(tensors: Mapping[str, Array], place: str) -> Array | None:
    """Return the weight of one layer; None if it is not quantised in a known way."""
    parts = {
        key: tensors[f"{place}.{key}"]
        for key in ("qweight", "qzeros", "scales", "g_idx")
        if f"{place}.{key}" in tensors
    }
    if len(parts) == 4:
        return gptq(**parts)
    weight = tensors.get(f"{place}.weight")
    if weight is None:
        return None
    if f"{place}.SCB" in tensors and weight.dtype == np.int8:
        return _scaled(weight, tensors[f"{place}.SCB"].reshape(len(weight), 1) / np.float32(127))
    if weight.dtype == np.uint8 and f"{place}.weight.quant_map" in tensors:
        return _four_bits(tensors, f"{place}.weight")
    scale = tensors.get(f"{place}.weight_scale", tensors.get(f"{place}.weight_scale_inv"))
    if scale is not None and weight.ndim == 2 and weight.dtype in (np.int8, np.float32):
        return _scaled(weight, scale)
    return None


def _scaled(weight: Array, scale: Array) -> Array:
    """Multiply R x C by one number, one a row, or one a block."""
    factors = np.asarray(scale, np.float32).reshape(scale.shape if scale.ndim == 2 else (-1, 1))
    for axis, size in enumerate(weight.shape):
        if factors.shape[axis] not in (1, size):
            block = math.ceil(size / factors.shape[axis])
            factors = np.take(factors, np.arange(size) // block, axis=axis)
    return np.asarray(weight.astype(np.float32) * factors)


def _four_bits(tensors: Mapping[str, Array], name: str) -> Array:
    stated = next((value for key, value in tensors.items() if key.startswith(name + _STATE)), np.zeros(0))
    if stated.size > _MAX_STATE:
        raise ValueError("its description is too long")
    state = json.loads(stated.astype(np.uint8).tobytes())
    absmax = tensors[f"{name}.absmax"]
    if f"{name}.nested_absmax" in tensors:
        outer = tensors[f"{name}.nested_absmax"][np.arange(absmax.size) // int(state["nested_blocksize"])]
        absmax = tensors[f"{name}.nested_quant_map"][absmax] * outer + np.float32(state["nested_offset"])
    return four_bits(
        tensors[name], tensors[f"{name}.quant_map"], absmax, int(state["blocksize"]), tuple(state["shape"])
    )


def four_bits(packed: Array, levels: Array, absmax: Array, block: int, shape: tuple[int, ...]) -> Array:
    """Return ``levels[q] absmax``: indices of 4 bits, high half of a byte first; one absmax for ``block`` values.

    Args:
        packed: bytes, N/2 in any shape.
        levels: 16.
        absmax: N/block, rounded up.
        block: values that share an absmax.
        shape: of the weight; N values.

    Raises:
        ValueError: the sizes do not fit.
    """
    size = math.prod(int(side) for side in shape)
    if not 0 < size <= 2 * packed.size < size + 2 or absmax.size != math.ceil(size / block) or levels.size != 16:
        raise ValueError("sizes do not fit")
    flat = packed.ravel()
    indices = np.stack([flat >> 4, flat & 15], axis=1).ravel()[:size]
    scales = absmax.astype(np.float32).ravel()[np.arange(size) // block]
    return np.asarray(levels.astype(np.float32)[indices] * scales).reshape(shape)


def gptq(qweight: Array, qzeros: Array, scales: Array, g_idx: Array) -> Array:
    """Return the out x in weight of a GPTQ layer.

    Args:
        qweight: int32, (in bits / 32) x out, packed along the input, lowest bits first.
        qzeros: int32, groups x (out bits / 32), packed along the output.
        scales: groups x out.
        g_idx: in; the group of each input.

    Raises:
        ValueError: the sizes do not fit, or 2, 4 or 8 bits are not what they say.
    """
    bits, rest = divmod(32 * len(qweight), len(g_idx))
    if rest or bits not in (2, 4, 8) or qzeros.shape[1] * 32 != scales.shape[1] * bits:
        raise ValueError("sizes do not fit")
    if qweight.shape[1] != scales.shape[1] or g_idx.min() < 0:
        raise ValueError("sizes do not fit")
    values = _unpacked(qweight.T, bits).T
    zeros = _unpacked(qzeros, bits) + 1
    return np.asarray(((values - zeros[g_idx]) * scales.astype(np.float32)[g_idx]).T, np.float32)


def _unpacked(packed: Array, bits: int) -> NDArray[np.float32]:
    """Split the 32-bit words of R x C into 32/``bits`` numbers each, R x (C 32 / bits)."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = np.ascontiguousarray(packed).view(np.uint32)
    found = (words[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    return np.asarray(found.reshape(len(packed), -1), np.float32)
