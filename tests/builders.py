"""Writes tiny random model folders, deterministic by seed: what the tests of every package scan and load.

``hf_folder`` and ``timm_folder`` write what transformers and timm themselves write; there is
nothing of fp-audit in them. Batch statistics are set from random images, so that answers differ between images.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fp_audit.types import File, Listing
from fp_audit_adapters._hf_families import ARCHITECTURES
from fp_audit_adapters._torchvision import ensure_torchvision

ensure_torchvision()

CLASSES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "patch_size": 8,
}
_STAGES = {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
_HEADS = {"num_attention_heads": [1, 2, 2, 4]}
_WINDOWS = {"depths": [1, 2, 1], "num_heads": [1, 2, 4], "embed_dim": 8, "window_size": 2, "patch_size": 4}
_LEVIT = {
    "hidden_sizes": [16, 32, 32],
    "key_dim": [4, 4, 4],
    "depths": [1, 1, 1],
    "num_attention_heads": [2, 2, 2],
}
_HGNET = {
    "stem_channels": [3, 8, 8],
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 32, 32],
    "depths": [1, 1, 1, 1],
    "stage_in_channels": [8, 16, 16, 32],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 32, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_numb_of_layers": [2, 2, 2, 2],
}
_PLAIN = "ForImageClassification"
_TEACHER = "ForImageClassificationWithTeacher"

HF_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("Beit" + _PLAIN, _VIT),
    "bit": ("Bit" + _PLAIN, {**_STAGES, "embedding_size": 8, "num_groups": 2}),
    "clip": ("CLIP" + _PLAIN, {}),
    "convnext": ("ConvNext" + _PLAIN, _STAGES),
    "convnextv2": ("ConvNextV2" + _PLAIN, _STAGES),
    "cvt": (
        "Cvt" + _PLAIN,
        {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    ),
    "data2vec": ("Data2VecVision" + _PLAIN, _VIT),
    "deit": ("DeiT" + _PLAIN, _VIT),
    "deit-teacher": ("DeiT" + _TEACHER, _VIT),
    "dinov2": ("Dinov2" + _PLAIN, _VIT),
    "dinov2-registers": ("Dinov2WithRegisters" + _PLAIN, _VIT),
    "donut-swin": ("DonutSwin" + _PLAIN, _WINDOWS),
    "efficientnet": (
        "EfficientNet" + _PLAIN,
        {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    ),
    "focalnet": (
        "FocalNet" + _PLAIN,
        {"embed_dim": 8, "hidden_sizes": [8, 16, 32, 32], "depths": [1, 1, 1, 1]},
    ),
    "hgnet": ("HGNetV2" + _PLAIN, _HGNET),
    "hiera": ("Hiera" + _PLAIN, {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4]}),
    "ijepa": ("IJepa" + _PLAIN, _VIT),
    "levit": ("Levit" + _PLAIN, _LEVIT),
    "levit-teacher": ("Levit" + _TEACHER, _LEVIT),
    "metaclip": ("MetaClip2" + _PLAIN, {}),
    "mobilenet-v1": ("MobileNetV1" + _PLAIN, {"depth_multiplier": 0.25}),
    "mobilenet-v2": ("MobileNetV2" + _PLAIN, {"depth_multiplier": 0.25}),
    "mobilevit": (
        "MobileViT" + _PLAIN,
        {"hidden_sizes": [12, 16, 24], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32]},
    ),
    "mobilevitv2": (
        "MobileViTV2" + _PLAIN,
        {"width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "output_stride": 16},
    ),
    "poolformer": ("PoolFormer" + _PLAIN, _STAGES),
    "pvt": ("Pvt" + _PLAIN, {**_STAGES, **_HEADS, "mlp_ratios": [2, 2, 2, 2]}),
    "pvt-v2": ("PvtV2" + _PLAIN, {**_STAGES, **_HEADS, "mlp_ratios": [2, 2, 2, 2]}),
    "regnet": ("RegNet" + _PLAIN, {**_STAGES, "embedding_size": 8, "groups_width": 8}),
    "resnet": ("ResNet" + _PLAIN, {**_STAGES, "embedding_size": 8, "layer_type": "basic"}),
    "segformer": ("Segformer" + _PLAIN, {**_STAGES, **_HEADS}),
    "siglip": ("Siglip" + _PLAIN, {}),
    "swiftformer": ("SwiftFormer" + _PLAIN, {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}),
    "swin": ("Swin" + _PLAIN, _WINDOWS),
    "swinv2": ("Swinv2" + _PLAIN, _WINDOWS),
    "vit": ("ViT" + _PLAIN, _VIT),
    "vit-msn": ("ViTMSN" + _PLAIN, _VIT),
}
"""Name of a kind -> transformers' class and the options that make it tiny."""


def hf_folder(
    path: Path,
    *,
    kind: str = "resnet",
    classes: Sequence[str] | int = CLASSES,
    seed: int = 0,
    size: int = 32,
    processor: dict[str, Any] | None = None,
    channels: int = 3,
    options: dict[str, Any] | None = None,
) -> Path:
    """Write a tiny transformers classifier with random weights.

    Args:
        path: folder to make.
        kind: a key of ``HF_KINDS``.
        classes: names of the classes, or how many nameless ones.
        seed: of the weights.
        size: height and width that the network takes, and that the default processor resizes to.
        processor: content of ``preprocessor_config.json``; by default a bilinear resize and ImageNet's colours;
            an empty one writes none.
        channels: that the network takes.
        options: of the configuration, on top of the kind's.
    """
    network = hf_network(kind, classes=classes, seed=seed, size=size, channels=channels, options=options)
    network.save_pretrained(path)
    if processor is None:
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}
        processor |= IMAGENET if channels == 3 else {"image_mean": [0.5], "image_std": [0.5]}
    if processor:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def hf_network(
    kind: str,
    *,
    classes: Sequence[str] | int = CLASSES,
    seed: int = 0,
    size: int = 32,
    channels: int = 3,
    options: dict[str, Any] | None = None,
) -> Any:
    """Build the network that ``hf_folder`` writes."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    architecture, tiny = HF_KINDS[kind]
    module = importlib.import_module(f"transformers.models.{ARCHITECTURES[architecture].module}")
    network_class = getattr(module, architecture)
    names = [f"LABEL_{i}" for i in range(classes)] if isinstance(classes, int) else classes
    sized: dict[str, Any] = {"num_channels": channels}
    if network_class.config_class.sub_configs:
        vision = {**_VIT, "image_size": size, "num_channels": channels}
        sized = {"vision_config": vision, "text_config": {**_VIT, "vocab_size": 40}}
    elif kind == "hiera":
        sized["image_size"] = [size, size]
    elif kind not in ("bit", "cvt", "hgnet", "poolformer", "regnet", "resnet", "segformer"):
        sized["image_size"] = size
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    labels |= {"num_labels": len(names)}  # PvtConfig does not derive it
    config = network_class.config_class(**{**tiny, **sized, **labels, **(options or {})})
    torch.manual_seed(seed)
    network = network_class(config)
    liven(network, size, channels, seed)
    return network


HF_PROCESSORS = {
    "Beit": "beit",
    "Bit": "bit",
    "CLIP": "clip",
    "ConvNext": "convnext",
    "DeiT": "deit",
    "EfficientNet": "efficientnet",
    "Levit": "levit",
    "MobileNetV1": "mobilenet_v1",
    "MobileNetV2": "mobilenet_v2",
    "MobileViT": "mobilevit",
    "PoolFormer": "poolformer",
    "Pvt": "pvt",
    "Segformer": "segformer",
    "Siglip": "siglip",
    "ViT": "vit",
}
"""Kind of image processor -> folder of transformers that holds it."""


def hf_processor(kind: str, config: dict[str, Any]) -> Any:
    """Make transformers' own processor (PIL backend) of a kind of ``HF_PROCESSORS``."""
    module = importlib.import_module(
        f"transformers.models.{HF_PROCESSORS[kind]}.image_processing_pil_{HF_PROCESSORS[kind]}"
    )
    return vars(module)[f"{kind}ImageProcessorPil"](**config)


def timm_folder(
    path: Path,
    *,
    architecture: str = "test_resnet",
    classes: Sequence[str] | int = CLASSES,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    **arguments: Any,
) -> Path:
    """Write a timm classifier with random weights in hub layout.

    Args:
        path: folder to make.
        architecture: a name of timm's registry; the tiny ones begin with ``test_``.
        classes: names of the classes, or how many nameless ones.
        seed: of the weights.
        config: entries of ``pretrained_cfg`` (mean, std, crop_pct, input_size ...).
        **arguments: of the model, for example ``in_chans``.
    """
    import timm

    count = classes if isinstance(classes, int) else len(classes)
    torch.manual_seed(seed)
    network = timm.create_model(architecture, num_classes=count, pretrained_cfg_overlay=config or {}, **arguments)
    channels, size, _ = network.pretrained_cfg["input_size"]
    liven(network, arguments.get("img_size", size), arguments.get("in_chans", channels), seed)
    labels = None if isinstance(classes, int) else {"label_names": list(classes)}
    timm.models.save_for_hf(network, str(path), model_config=labels, safe_serialization=True)
    return path


def liven(network: nn.Module, size: int, channels: int, seed: int) -> None:
    """Make a freshly built network's answers depend on its input, as a trained one's do; leaves it in evaluation mode.

    Layer scales and small matrices are drawn anew; batch statistics are taken from random images.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel() if "embed" not in name else 4 * parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.4 / fan_in**0.5))
            elif "bias" not in name and parameter.abs().max() < 0.1:
                parameter.fill_(0.5)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(16, channels, size, size, generator=generator))
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    network.eval()


def pixels(count: int, size: int | tuple[int, int], *, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Draw smooth random images, ``count`` x ``channels`` x H x W, uint8."""
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, channels, -(-height // 4), -(-width // 4)))
    fine = coarse.repeat(4, axis=2).repeat(4, axis=3)[:, :, :height, :width]
    return np.clip(fine + rng.integers(-20, 21, fine.shape), 0, 255).astype(np.uint8)


def listing(path: Path, target: str | None = None) -> Listing:
    """List a local folder as a source would."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    seen = tuple(File(file.relative_to(path).as_posix(), file.stat().st_size) for file in files)
    return Listing(target or path.name, seen, path)
