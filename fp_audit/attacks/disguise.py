"""Changes to the files that leave the answers as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from fp_audit import plugins
from fp_audit.attacks._base import Attack, Surrogate, Task, require
from fp_audit.attacks._export import as_onnx, quietly
from fp_audit.attacks._rewrite import Graph, fold, permute, reorder, rescale
from fp_audit.errors import UnsupportedModel
from fp_audit.model import Adapter, as_images
from fp_audit.types import Access, Artifact, File

if TYPE_CHECKING:
    from onnx import ModelProto

_SHARDS = 3
_COMPARED = 32
"""Images on which the answers are compared."""
_TOLERANCE = 1e-4
"""Largest difference of two answers, relative to the largest answer."""


class Disguise(Attack):
    """Makes a model whose files differ from the victim's and whose answers do not.

    Source: the symmetries of networks: Hecht-Nielsen, "On the algebraic structure of feedforward network weight
    spaces" (1990), for permutations, and Neyshabur et al., "Path-SGD" (NeurIPS 2015), for scales. No training, no
    labels. ``kind``:

    - ``permute``: the hidden channels between a layer and the only layer that reads it are put into a random order:
      W1' = P W1, b1' = P b1, W2' = W2 P^T. Everything value by value or channel by channel may lie between:
      activations, pooling, BatchNorm, depthwise convolutions, flattening.
    - ``rescale``: W1' = D W1, b1' = D b1, W2' = W2 D^-1, where only ReLU, LeakyReLU and pooling lie between; D is
      diagonal and log-uniform in [1/``most``, ``most``] (the other kinds ignore ``most``).
    - ``fold``: every BatchNorm becomes part of the layer before it (torch's exporter does that too).
    - ``reorder``: the classes are put into a random order, which the surrogate's facts give; their names are lost.
    - ``export``: the ONNX file as torch's exporter writes it.
    - ``reshard``: the weights are spread over three safetensors files with an index; of an ONNX file, they go
      to a file beside it.
    - ``cast``: the weights are stored in float64, which holds every float32 exactly.

    The first five work on the graph of an ONNX file: a victim that is none is exported first, as the attack
    ``quantise`` does. The channels of residual streams, which many layers read, stay as they are. The answers to 32
    images are compared: a difference above 1e-4 of the largest answer is an error, as is a victim without anything to
    change.
    """

    name: ClassVar[str] = "disguise"
    summary: ClassVar[str] = "permute or rescale channels, reorder classes, fold, export, shard, cast: the answers stay"
    paper: ClassVar[str] = "Neyshabur et al., NeurIPS 2015 (scales); permutations: Hecht-Nielsen, 1990"
    victim_access: ClassVar[Access] = Access.GRADIENTS
    needs_labels: ClassVar[bool] = False
    cost: ClassVar[str] = "seconds"
    keeps: ClassVar[str] = "every answer; the weights up to order, scale and format"

    def __init__(
        self,
        *,
        kind: Literal["permute", "rescale", "fold", "reorder", "export", "reshard", "cast"] = "permute",
        most: float = 4.0,
    ) -> None:
        require(most > 1, "most", most, "a factor above 1")
        self.options = {"kind": kind, "most": most}

    def _run(self, task: Task, folder: Path) -> Surrogate:
        if self.options["kind"] not in ("reshard", "cast"):
            surrogate = self._rewritten(task, folder)
        elif task.artifact.path.suffix == ".onnx":
            surrogate = self._stored_otherwise(task, folder)
        else:
            surrogate = self._saved_otherwise(task, folder)
        check_answers(task, folder, surrogate)
        task.progress("disguising", 1.0)
        return surrogate

    def _rewritten(self, task: Task, folder: Path) -> Surrogate:
        """Change the victim's graph."""
        import onnx

        with quietly():
            model, preprocess, exporter = as_onnx(task, folder)
            exported, kind, rng = exporter != "none", self.options["kind"], np.random.default_rng(task.draw)
            graph, changed, order = Graph(model), 0, None
            if kind == "permute":
                changed = permute(graph, rng)
            elif kind == "rescale":
                changed = rescale(graph, rng, self.options["most"])
            elif kind == "fold":
                changed = fold(graph)
            elif kind == "reorder":
                order = reorder(graph, rng)
                changed = len(order)
            if not changed and not (exported and kind in ("fold", "export")):
                raise UnsupportedModel(f"{task.artifact.target}: found nothing to {kind} in its graph")
            onnx.save(graph.written(), folder / "model.onnx")
        facts = {"exporter": exporter, "places": changed, **({"order": list(order)} if order else {})}
        return Surrogate("onnx", preprocess=preprocess, order=order, facts=facts)

    def _stored_otherwise(self, task: Task, folder: Path) -> Surrogate:
        """Write an ONNX victim's weights in another way."""
        import onnx

        model, preprocess, _ = as_onnx(task, folder)
        outside = self.options["kind"] == "reshard"
        changed = len(model.graph.initializer) if outside else store_as_double(model)
        data = {"save_as_external_data": True, "location": "model.onnx.data", "size_threshold": 0} if outside else {}
        onnx.save(model, folder / "model.onnx", **data)
        return Surrogate("onnx", preprocess=preprocess, facts={"places": changed})

    def _saved_otherwise(self, task: Task, folder: Path) -> Surrogate:
        """Write a safetensors victim's weights in another way."""
        from safetensors.numpy import load_file, save_file

        task.adapter.save(task.copy_of_victim(), folder)
        weights = folder / "model.safetensors"
        tensors = load_file(weights)
        if self.options["kind"] == "cast":
            is_float = {name: value.dtype.kind == "f" for name, value in tensors.items()}
            cast = {name: value.astype(np.float64) if is_float[name] else value for name, value in tensors.items()}
            save_file(cast, weights, {"format": "pt"})
            return Surrogate(task.adapter.name, facts={"places": sum(is_float.values())})
        weights.unlink()
        names = sorted(tensors)
        where: dict[str, str] = {}
        for i, part in enumerate(np.array_split(names, _SHARDS), 1):
            shard = f"model-{i:05}-of-{_SHARDS:05}.safetensors"
            save_file({name: tensors[name] for name in part.tolist()}, folder / shard, {"format": "pt"})
            where |= dict.fromkeys(part.tolist(), shard)
        size = sum(value.nbytes for value in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        return Surrogate(task.adapter.name, facts={"places": len(names)})


def store_as_double(model: ModelProto) -> int:
    """Store the float32 weights of a graph in float64, each with a Cast behind it, and return how many there are."""
    from onnx import TensorProto, helper, numpy_helper

    weights = [held for held in model.graph.initializer if held.data_type == TensorProto.FLOAT and len(held.dims) > 1]
    for i, tensor in enumerate(weights):
        name, double = tensor.name, f"{tensor.name}_double"
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), double))
        model.graph.node.insert(i, helper.make_node("Cast", [double], [name], to=TensorProto.FLOAT))
    return len(weights)


def check_answers(task: Task, folder: Path, surrogate: Surrogate) -> None:
    """Compare the answers of what was saved with the victim's.

    Raises:
        UnsupportedModel: they differ.
    """
    adapter: Adapter = plugins.load("adapters", surrogate.adapter)()
    files = tuple(File(path.name, path.stat().st_size) for path in sorted(folder.iterdir()))
    entry = "model.onnx" if surrogate.adapter == "onnx" else "."
    saved = Artifact(str(folder), surrogate.adapter, files, entry, folder)
    images = as_images(task.data.pixels[:_COMPARED])
    opening = replace(task.opening, preprocess=surrogate.preprocess or task.opening.preprocess)
    expected = task.copy_of_victim().predict(images)
    answers = adapter.load_white(saved, opening).predict(images)
    if surrogate.order is not None:
        expected = expected[:, surrogate.order]
    difference = float(np.abs(answers - expected).max() / np.abs(expected).max())
    if not difference <= _TOLERANCE:
        raise UnsupportedModel(f"{task.artifact.target}: its answers changed by {difference:.1g} of the largest one")
