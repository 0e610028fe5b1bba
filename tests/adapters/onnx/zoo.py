"""Tiny image classifiers of the families that people publish, and their ONNX files.

Weights are random, but everything that a conversion could get wrong by being left at its default is not: batch
statistics, scales and biases are drawn too.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from torch import Tensor, nn

from fp_audit_adapters._torchvision import ensure_torchvision

SIZE = 32
CLASSES = 7


class Logits(nn.Module):
    """A transformers model that returns its logits only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=SIZE, patch_size=8
    )
    config.num_labels = CLASSES
    return Logits(ViTForImageClassification(config))


def _hf_swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=SIZE, patch_size=2, embed_dim=12, depths=[2, 1], num_heads=[2, 4], window_size=4)
    config.num_labels = CLASSES
    return Logits(SwinForImageClassification(config))


def _timm_resnet() -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, (1, 1, 1, 1), num_classes=CLASSES, stem_width=8, channels=(4, 6, 8, 8))


def _timm_mobilenet() -> nn.Module:
    import timm

    return timm.create_model("mobilenetv3_small_050", num_classes=CLASSES)


def _timm_efficientnet() -> nn.Module:
    from timm.models.efficientnet import _gen_efficientnet

    return _gen_efficientnet("efficientnet_b0", 0.25, 0.5, num_classes=CLASSES)


def _timm_convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=CLASSES, depths=(1, 1, 2, 1), dims=(8, 12, 16, 20))


def _timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(SIZE, 8, num_classes=CLASSES, embed_dim=24, depth=2, num_heads=3)


def _timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(SIZE, 2, num_classes=CLASSES, embed_dim=12, depths=(2, 1), num_heads=(2, 4), window_size=4)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "hf-vit": _hf_vit,
    "hf-swin": _hf_swin,
    "timm-resnet": _timm_resnet,
    "timm-mobilenet": _timm_mobilenet,
    "timm-efficientnet": _timm_efficientnet,
    "timm-convnext": _timm_convnext,
    "timm-vit": _timm_vit,
    "timm-swin": _timm_swin,
}


def build(name: str) -> nn.Module:
    """One of ``MODELS`` in inference mode, the same at every call."""
    ensure_torchvision()
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    images = sample(64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None
    with torch.no_grad():
        model(images)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.add_(0.1 * module.running_var.mean())  # No channel blows up.
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(0, 0.2)
            elif isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(0, 0.2)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
    return model.eval()


def sample(count: int, seed: int = 0) -> Tensor:
    """Images [count, 3, SIZE, SIZE] in [0, 1] with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, SIZE, SIZE)
    for cells in (2, 4, 8, SIZE):
        noise = torch.rand(count, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(noise, SIZE, mode="bilinear") / 4
    return images


def export(model: nn.Module, path: Path, *, dynamo: bool, free_batch: bool = True) -> Path:
    """Writes ``model`` as ONNX with a free batch size (else for batches of 2); returns ``path``."""
    options: dict[str, object] = {"dynamo": dynamo}
    if dynamo:
        options |= {"external_data": False, "verbose": False}
        if free_batch:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    else:
        options["opset_version"] = 17
        if free_batch:
            options["dynamic_axes"] = {"images": {0: "batch"}, "logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (sample(2),), path, input_names=["images"], output_names=["logits"], **options)
    return path


class _Calibration(CalibrationDataReader):
    def __init__(self) -> None:
        self.batches = iter([{"images": sample(16, seed=1).numpy()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantize(source: Path, path: Path, kind: str) -> Path:
    """An int8 copy of ``source`` by onnxruntime's quantiser: ``dynamic``, ``qdq`` or ``qoperator``."""
    model = onnx.load(source)
    del model.graph.value_info[:]  # The dynamic quantiser trips over those that dynamo writes.
    if kind == "dynamic":
        quantize_dynamic(model, path)
    else:
        layout = QuantFormat.QDQ if kind == "qdq" else QuantFormat.QOperator
        quantize_static(model, path, _Calibration(), quant_format=layout, per_channel=True)
    return path


def runtime(model: onnx.ModelProto, images: Tensor, *, optimise: bool = True) -> Tensor:
    """What onnxruntime computes, with or without its own graph rewriting."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {session.get_inputs()[0].name: images.numpy()})[0])


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())
