"""Small shapes of the image classifiers of transformers, whose own defaults are made for ImageNet and for days."""

from __future__ import annotations

from typing import Any

from fp_audit.errors import UsageError

_TOKENS = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]}
_HEADS = {"num_attention_heads": [1, 2, 3, 4]}
_WINDOWS = {"embed_dim": 32, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4, "patch_size": 4}

_CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "bit": {**_STAGES, "embedding_size": 32, "num_groups": 8},
    "cvt": {"embed_dim": [32, 64, 128], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "hgnet_v2": {
        **_STAGES,
        "depths": [1, 1, 1, 1],
        "embedding_size": 32,
        "stage_in_channels": [32, 32, 64, 96],
        "stage_mid_channels": [16, 16, 32, 32],
        "stage_out_channels": [32, 64, 96, 128],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "poolformer": _STAGES,
    "regnet": {**_STAGES, "embedding_size": 32, "groups_width": 16},
    "resnet": {**_STAGES, "embedding_size": 32, "layer_type": "basic"},
    "segformer": {**_STAGES, **_HEADS},
}
"""Those that take any size."""

_SIZED: dict[str, dict[str, Any]] = {
    "beit": _TOKENS,
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "data2vec-vision": _TOKENS,
    "deit": _TOKENS,
    "dinov2": _TOKENS,
    "dinov2_with_registers": _TOKENS,
    "donut-swin": _WINDOWS,
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "focalnet": {"embed_dim": 32, **_STAGES},
    "hiera": {"embed_dim": 32, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8]},
    "ijepa": _TOKENS,
    "levit": {
        "hidden_sizes": [64, 96, 128],
        "key_dim": [16, 16, 16],
        "depths": [1, 1, 2],
        "num_attention_heads": [2, 3, 4],
    },
    "mobilenet_v1": {"depth_multiplier": 0.5},
    "mobilenet_v2": {"depth_multiplier": 0.5},
    "mobilevit": {"hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 160]},
    "mobilevitv2": {"width_multiplier": 0.5, "output_stride": 32},
    "pvt": {**_STAGES, **_HEADS},
    "pvt_v2": {**_STAGES, **_HEADS},
    "swiftformer": {"embed_dims": [32, 48, 64, 128], "depths": [1, 1, 2, 1]},
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "vit": _TOKENS,
    "vit_msn": _TOKENS,
}
"""Those that are built for one size."""

_TWO_TOWERS = ("clip", "metaclip_2", "siglip")
"""Whose configuration also describes a network for text, which a classifier does not have."""

MODEL_TYPES = tuple(sorted([*_CONVOLUTIONS, *_SIZED, *_TWO_TOWERS]))


def configuration(model_type: str, shape: tuple[int, int, int], classes: int) -> dict[str, Any]:
    """Return the arguments of transformers' configuration class for a small network of this type.

    Args:
        model_type: transformers' name.
        shape: C, H, W of its input.
        classes: number of outputs.

    Raises:
        UsageError: no such type.
    """
    if model_type not in MODEL_TYPES:
        raise UsageError(f"architecture is 'hf:{model_type}': expected hf: and one of {', '.join(MODEL_TYPES)}")
    channels, height, width = shape
    sized = {"num_channels": channels, "image_size": [height, width] if model_type == "hiera" else height}
    counted: dict[str, Any] = {"num_labels": classes}
    if model_type == "hgnet_v2":
        counted["stem_channels"] = [channels, 16, 32]
    if model_type in _TWO_TOWERS:
        return {"vision_config": {**_TOKENS, **sized}, **counted}
    if model_type in _CONVOLUTIONS:
        return {**_CONVOLUTIONS[model_type], "num_channels": channels, **counted}
    return {**_SIZED[model_type], **sized, **counted}
