"""A model with another number of classes: the same network, its last layer drawn anew."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file

from fp_audit.attacks._fresh import claimed
from fp_audit.errors import UnsupportedModel
from fp_audit.model import Adapter, LoadOptions, WhiteBox
from fp_audit.types import Artifact

if TYPE_CHECKING:
    import torch

    from fp_audit.graph import LastLayer

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"


def with_classes(
    adapter: Adapter, artifact: Artifact, options: LoadOptions, sample: torch.Tensor, *, classes: int, seed: int
) -> WhiteBox:
    """Open a model of timm or transformers with ``classes`` outputs, its last layer drawn anew.

    The layer is found in the autograd graph (``graph.last_layer``) and drawn as ``torch.nn.Linear`` draws it, weight
    and bias uniform in +-1 / sqrt(inputs); the names of the classes are dropped. The model's own files stay as they
    are.

    Args:
        adapter: of the model.
        artifact: its files.
        options: how it is opened.
        sample: one or a few images in [0, 1], on the CPU.
        classes: number of outputs wanted.
        seed: of the weights.

    Raises:
        UnsupportedModel: an ONNX graph, or no last layer with a row for each class.
    """
    from fp_audit.graph import last_layer

    if not (artifact.path / CONFIG).is_file():
        raise UnsupportedModel(
            f"{artifact.target}: the classes of an ONNX graph are fixed; a model folder was expected"
        )
    model = adapter.load_white(artifact, options)
    images = sample.to(options.device)
    outputs = model.module(images).shape[1]
    tensors = _redrawn(model, last_layer(model.module, images), outputs, classes, seed)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        save_file(tensors, scratch / WEIGHTS)
        config = json.loads((artifact.path / CONFIG).read_text(encoding="utf-8"))
        (scratch / CONFIG).write_text(json.dumps(_counting(config, classes)), encoding="utf-8")
        if (artifact.path / PROCESSOR).is_file():
            shutil.copyfile(artifact.path / PROCESSOR, scratch / PROCESSOR)
        return adapter.load_white(claimed(adapter, scratch), options)


def _redrawn(model: WhiteBox, last: LastLayer, outputs: int, classes: int, seed: int) -> dict[str, np.ndarray]:
    """Return the model's tensors under the names of its file, those of its last layer with ``classes`` rows."""
    import torch

    with torch.no_grad():
        for parameter in last.parameters:
            parameter.fill_(torch.nan)  # to know them under the names of the file
    rng, bound = np.random.default_rng(seed), last.inputs**-0.5
    tensors = {}
    for name, value in sorted(model.tensors().items()):
        tensors[name] = np.array(value, order="C")
        if value.dtype.kind == "f" and np.isnan(value).any():
            if value.shape[0] != outputs:
                raise UnsupportedModel(f"{name} of the last layer has no row for each of its {outputs} classes")
            tensors[name] = rng.uniform(-bound, bound, (classes, *value.shape[1:])).astype(value.dtype)
    return tensors


def _counting(config: dict[str, Any], classes: int) -> dict[str, Any]:
    """Return a configuration of timm's or transformers' for another number of nameless classes."""
    if "architecture" in config:
        kept = {key: value for key, value in config.items() if key not in ("label_names", "label_descriptions")}
        arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
        stated = {
            key: value
            for key, value in config["pretrained_cfg"].items()
            if key not in ("label_names", "label_descriptions")
        }
        stated["num_classes"] = classes
        return {**kept, "num_classes": classes, "pretrained_cfg": stated, "model_args": arguments}
    names = {i: f"LABEL_{i}" for i in range(classes)}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    return {**config, **labels, "num_labels": classes}
