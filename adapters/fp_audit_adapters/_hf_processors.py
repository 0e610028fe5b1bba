"""What transformers' image processors do, as a ``Preprocess``: from ``preprocessor_config.json`` and back.

Plain JSON in, plain JSON out; transformers is not imported. The reference is transformers' PIL backend, whose
defaults are repeated here: a key that a file leaves out means the default of its processor.
Older files name a feature extractor (``ViTFeatureExtractor``) or a backend (``...Fast``, ``...Pil``); they
mean the processor of that name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from fp_audit.errors import CorruptModel, UnsupportedModel, UsageError
from fp_audit.preprocess import IMAGENET_MEAN, IMAGENET_STD, Filter, Preprocess

MAX_SIZE = 8192
"""Largest height or width that a processor may ask for, pixels."""

_FILTERS: tuple[Filter, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's number."""
_BILINEAR, _BICUBIC = 2, 3
_HALF = {"image_mean": (0.5,), "image_std": (0.5,)}
_IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
_OPENAI = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_COMMON = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_CROP = {"do_center_crop": True, "crop_size": 224, "default_to_square": False}

DEFAULTS: dict[str, dict[str, Any]] = {
    "Beit": {"resample": _BICUBIC, "size": 224, "crop_size": 224, **_HALF},
    "Bit": {"resample": _BICUBIC, "size": {"shortest_edge": 224}, **_CROP, **_OPENAI},
    "CLIP": {"resample": _BICUBIC, "size": {"shortest_edge": 224}, **_CROP, **_OPENAI},
    "ConvNext": {
        "resample": _BICUBIC,
        "size": {"shortest_edge": 384},
        "default_to_square": False,
        "crop_pct": 224 / 256,
        **_HALF,
    },
    "DeiT": {"resample": _BICUBIC, "size": 256, "do_center_crop": True, "crop_size": 224, **_HALF},
    "EfficientNet": {
        "resample": _BICUBIC,
        "size": 346,
        "crop_size": 289,
        "rescale_offset": False,
        "include_top": True,
        **_HALF,
    },
    "Levit": {"resample": _BICUBIC, "size": {"shortest_edge": 224}, **_CROP, **_IMAGENET},
    "MobileNetV1": {"resample": _BILINEAR, "size": {"shortest_edge": 256}, **_CROP, **_HALF},
    "MobileNetV2": {"resample": _BILINEAR, "size": {"shortest_edge": 256}, **_CROP, **_HALF},
    "MobileViT": {
        "resample": _BICUBIC,
        "size": {"shortest_edge": 224},
        **_CROP,
        "crop_size": 256,
        "do_flip_channel_order": True,
        "do_normalize": False,
    },
    "PoolFormer": {
        "resample": _BICUBIC,
        "size": {"shortest_edge": 224},
        **_CROP,
        "crop_pct": 0.9,
        **_IMAGENET,
    },
    "Pvt": {"resample": _BICUBIC, "size": 224, **_IMAGENET},
    "Segformer": {"resample": _BILINEAR, "size": 512, **_IMAGENET},
    "Siglip": {
        "resample": _BICUBIC,
        "size": {"height": 224, "width": 224},
        "default_to_square": False,
        **_HALF,
    },
    "ViT": {"resample": _BILINEAR, "size": 224, **_HALF},
}
"""Processor (without ``ImageProcessor``) -> what it does unless told otherwise."""

_Shape: TypeAlias = tuple[int, int] | int
"""Height and width, or the shortest edge."""


def to_preprocess(config: Mapping[str, Any], family: str) -> Preprocess:
    """Turn a processor's JSON into a ``Preprocess``.

    Args:
        config: content of ``preprocessor_config.json``.
        family: processor to assume where the file names none, a key of ``DEFAULTS``.

    Raises:
        UnsupportedModel: a processor, or an option of one, that is not a known affine map.
        CorruptModel: a value makes no sense.
    """
    kind = _kind(config) or family
    if kind not in DEFAULTS:
        raise UnsupportedModel(f"image processor {kind!r} is not among the {len(DEFAULTS)} supported ones")
    values = {**_COMMON, **DEFAULTS[kind], **config}
    if values.get("do_pad") or values.get("do_color_quantize"):
        raise UnsupportedModel(f"the image processor {kind!r} pads or quantises colours: not supported")
    return replace(_geometry(kind, values), **_colours(kind, values))


def _kind(config: Mapping[str, Any]) -> str | None:
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    return re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name) if isinstance(name, str) else None


def _geometry(kind: str, values: Mapping[str, Any]) -> Preprocess:
    preprocess = Preprocess(filter=_filter(values["resample"]))
    if values["do_resize"]:
        shape = _shape("size", values["size"], values.get("default_to_square", True))
        preprocess = _RESIZE.get(kind, _resize_plainly)(preprocess, shape, values)
    if values.get("do_center_crop"):
        crop = _shape("crop_size", values.get("crop_size"), True)
        if preprocess.crop not in (None, crop) or isinstance(crop, int):
            raise UnsupportedModel(f"the image processor {kind!r} crops to {preprocess.crop} and to {crop}")
        preprocess = replace(preprocess, crop=crop)
    return preprocess


def _resize_plainly(preprocess: Preprocess, shape: _Shape, values: Mapping[str, Any]) -> Preprocess:
    del values
    if isinstance(shape, int):
        return replace(preprocess, shortest_edge=shape)
    return replace(preprocess, resize=shape)


def _resize_convnext(preprocess: Preprocess, shape: _Shape, values: Mapping[str, Any]) -> Preprocess:
    """Resize to more and crop below 384 pixels, warp from there on."""
    if not isinstance(shape, int):
        raise CorruptModel(f"a ConvNext image processor resizes the shortest edge; size {shape} was found")
    if shape >= 384:
        return replace(preprocess, resize=(shape, shape))
    return replace(preprocess, shortest_edge=_enlarged(shape, values), crop=(shape, shape))


def _resize_levit(preprocess: Preprocess, shape: _Shape, values: Mapping[str, Any]) -> Preprocess:
    """Resize the shortest edge to 256/224 of what is asked for."""
    return _resize_plainly(preprocess, int((256 / 224) * shape) if isinstance(shape, int) else shape, values)


def _resize_poolformer(preprocess: Preprocess, shape: _Shape, values: Mapping[str, Any]) -> Preprocess:
    """Divide by ``crop_pct``; a square size means the shortest edge."""
    if isinstance(shape, int):
        return replace(preprocess, shortest_edge=_enlarged(shape, values))
    height, width = (_enlarged(side, values) for side in shape)
    return _resize_plainly(preprocess, height if height == width else (height, width), values)


_RESIZE: dict[str, Callable[[Preprocess, _Shape, Mapping[str, Any]], Preprocess]] = {
    "ConvNext": _resize_convnext,
    "Levit": _resize_levit,
    "PoolFormer": _resize_poolformer,
}


def _enlarged(side: int, values: Mapping[str, Any]) -> int:
    fraction = values["crop_pct"]
    if not isinstance(fraction, int | float) or not 0.1 <= fraction <= 2:
        raise CorruptModel(f"the image processor has crop_pct = {fraction!r}: a fraction was expected")
    return int(side / fraction)


def _colours(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    scale = 255.0 * _number("rescale_factor", values["rescale_factor"]) if values["do_rescale"] else 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if values["do_normalize"] and kind != "MobileViT":  # whose PIL backend never normalises
        mean, std = _numbers("image_mean", values), _numbers("image_std", values)
    if kind == "EfficientNet":
        mean, std = _efficientnet(values, mean, std)
    flip = bool(values.get("do_flip_channel_order")) and kind == "MobileViT"
    return {"scale": scale, "mean": mean, "std": std, "bgr": flip}


def _efficientnet(
    values: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Subtract one more where ``rescale_offset``, divide by the deviation once more where ``include_top``."""
    if values["rescale_offset"] and values["do_rescale"]:
        mean = tuple(m + 1.0 for m in mean)
    if values["include_top"]:
        again = _numbers("image_std", values)
        if len(std) == 1:
            std = std * len(again)
        std = tuple(first * second for first, second in zip(std, again, strict=True))
    return mean, std


def _filter(number: object) -> Filter:
    if not isinstance(number, int) or not 0 <= number < len(_FILTERS):
        raise CorruptModel(f"the image processor has resample = {number!r}: a filter of Pillow, 0 to 5, expected")
    return _FILTERS[number]


def _shape(name: str, value: object, square: bool) -> _Shape:
    """Read a size as files spell it: 224, [224, 224], {"height": ...}, {"shortest_edge": ...}."""
    if isinstance(value, int):
        return (_side(name, value), _side(name, value)) if square else _side(name, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        return _side(name, value[0]), _side(name, value[1])
    if isinstance(value, dict):
        sides = {key: side for key, side in value.items() if side is not None}
        if sides.keys() == {"height", "width"}:
            return _side(name, sides["height"]), _side(name, sides["width"])
        if sides.keys() == {"shortest_edge"}:
            return _side(name, sides["shortest_edge"])
    raise UnsupportedModel(
        f"the image processor has {name} = {str(value)[:80]}: height and width, or shortest_edge, expected"
    )


def _side(name: str, value: object) -> int:
    if not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
        raise CorruptModel(f"the image processor has {name} = {str(value)[:40]}: 1 to {MAX_SIZE} pixels were expected")
    return value


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise CorruptModel(f"the image processor has {name} = {str(value)[:40]}: a number was expected")
    return float(value)


def _numbers(name: str, values: Mapping[str, Any]) -> tuple[float, ...]:
    value = values[name]
    numbers = tuple(_number(name, item) for item in (value if isinstance(value, list | tuple) else [value]))
    if len(numbers) not in (1, 3) or (name == "image_std" and not all(numbers)):
        raise CorruptModel(f"the image processor has {name} = {numbers[:4]}: one or three expected, no deviation 0")
    return numbers


def to_config(preprocess: Preprocess, channels: int) -> dict[str, Any]:
    """Return the processor's JSON that does ``preprocess``; the inverse of ``to_preprocess``.

    Raises:
        UsageError: transformers has no processor that swaps colours and normalises.
    """
    config: dict[str, Any] = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": False,
        "do_center_crop": preprocess.crop is not None,
        "resample": _FILTERS.index(preprocess.filter),
        "do_rescale": True,
        "rescale_factor": preprocess.scale / 255,
        "do_normalize": (preprocess.mean, preprocess.std) != ((0.0,), (1.0,)),
        "image_mean": list(_repeat(preprocess.mean, channels)),
        "image_std": list(_repeat(preprocess.std, channels)),
    }
    if preprocess.resize is not None:
        config |= {"do_resize": True, "size": {"height": preprocess.resize[0], "width": preprocess.resize[1]}}
    elif preprocess.shortest_edge is not None:
        config |= {"do_resize": True, "size": {"shortest_edge": preprocess.shortest_edge}}
    if preprocess.crop is not None:
        config |= {"crop_size": {"height": preprocess.crop[0], "width": preprocess.crop[1]}}
    if preprocess.bgr:
        if config["do_normalize"]:
            raise UsageError("transformers has no image processor that swaps red and blue and normalises")
        config |= {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}
    return config


def _repeat(numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return numbers * channels if len(numbers) == 1 else numbers
