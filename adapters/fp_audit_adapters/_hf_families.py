"""The image classifiers of transformers that are supported: each was built, run and checked against it.

Not in the list, on purpose: networks whose input is not an affine map of the image (ImageGPT, Perceiver,
SigLIP 2, TextNet), that answer without logits (PP-LCNet), that need text (ShieldGemma 2) or a compiled
extension (DiNAT).
``TimmWrapper`` folders are the timm adapter's.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where transformers keeps a kind of network, and the image processor that it was released with."""

    model_type: str
    module: str
    """Below ``transformers.models``."""
    processor: str
    """Key of ``_hf_processors.DEFAULTS``: for files that do not name their processor."""


def _family(model_type: str, processor: str, module: str | None = None) -> Family:
    return Family(model_type, module or f"{model_type}.modeling_{model_type}", processor)


ARCHITECTURES: dict[str, Family] = {
    "BeitForImageClassification": _family("beit", "Beit"),
    "BitForImageClassification": _family("bit", "Bit"),
    "CLIPForImageClassification": _family("clip", "CLIP"),
    "ConvNextForImageClassification": _family("convnext", "ConvNext"),
    "ConvNextV2ForImageClassification": _family("convnextv2", "ConvNext"),
    "CvtForImageClassification": _family("cvt", "ConvNext"),
    "Data2VecVisionForImageClassification": _family("data2vec-vision", "Beit", "data2vec.modeling_data2vec_vision"),
    "DeiTForImageClassification": _family("deit", "DeiT"),
    "DeiTForImageClassificationWithTeacher": _family("deit", "DeiT"),
    "Dinov2ForImageClassification": _family("dinov2", "Bit"),
    "Dinov2WithRegistersForImageClassification": _family("dinov2_with_registers", "Bit"),
    "DonutSwinForImageClassification": _family("donut-swin", "ViT", "donut.modeling_donut_swin"),
    "EfficientNetForImageClassification": _family("efficientnet", "EfficientNet"),
    "FocalNetForImageClassification": _family("focalnet", "Bit"),
    "HGNetV2ForImageClassification": _family("hgnet_v2", "ConvNext"),
    "HieraForImageClassification": _family("hiera", "Bit"),
    "IJepaForImageClassification": _family("ijepa", "ViT"),
    "LevitForImageClassification": _family("levit", "Levit"),
    "LevitForImageClassificationWithTeacher": _family("levit", "Levit"),
    "MetaClip2ForImageClassification": _family("metaclip_2", "CLIP"),
    "MobileNetV1ForImageClassification": _family("mobilenet_v1", "MobileNetV1"),
    "MobileNetV2ForImageClassification": _family("mobilenet_v2", "MobileNetV2"),
    "MobileViTForImageClassification": _family("mobilevit", "MobileViT"),
    "MobileViTV2ForImageClassification": _family("mobilevitv2", "MobileViT"),
    "PoolFormerForImageClassification": _family("poolformer", "PoolFormer"),
    "PvtForImageClassification": _family("pvt", "Pvt"),
    "PvtV2ForImageClassification": _family("pvt_v2", "Pvt"),
    "RegNetForImageClassification": _family("regnet", "ConvNext"),
    "ResNetForImageClassification": _family("resnet", "ConvNext"),
    "SegformerForImageClassification": _family("segformer", "Segformer"),
    "SiglipForImageClassification": _family("siglip", "Siglip"),
    "SwiftFormerForImageClassification": _family("swiftformer", "ViT"),
    "SwinForImageClassification": _family("swin", "ViT"),
    "Swinv2ForImageClassification": _family("swinv2", "ViT"),
    "ViTForImageClassification": _family("vit", "ViT"),
    "ViTMSNForImageClassification": _family("vit_msn", "ViT"),
}
"""Class name -> family; exactly these names are imported from transformers."""

MODULES = tuple(sorted({f"transformers.models.{family.module}" for family in ARCHITECTURES.values()}))
