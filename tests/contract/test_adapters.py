"""What every adapter must do alike: the same weights give the same answers, whoever calls them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import CLASSES, hf_folder, pixels, timm_folder
from safetensors.numpy import load_file, save_file

from fp_audit import plugins
from fp_audit.errors import TargetError, UsageError
from fp_audit.model import LabelOnly, LoadOptions, TopK, Unprepared, as_images
from fp_audit.preprocess import NAMED, Preprocess
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate, locate_one
from fp_audit.types import Access, Skipped

SIZE = 32
RELATIVE = 1e-4
KINDS = ("huggingface", "timm", "onnx")
PARTIAL = {
    "answers": {Access.QUERIES},
    "pickles": {Access.IDENTITY},
    "safetensors": {Access.IDENTITY, Access.WEIGHTS},
}
"""Adapters that run no model -> what they give; their own tests say what they must do."""
STATED = {"input_size": (3, SIZE, SIZE), "crop_pct": 1.0, "interpolation": "bilinear"}


@dataclass(frozen=True)
class Case:
    """A model folder of one kind, and what to open it with."""

    kind: str
    folder: Path
    preprocess: Preprocess | None = None

    @property
    def options(self) -> LoadOptions:
        return LoadOptions(preprocess=self.preprocess)

    @property
    def artifact(self) -> Any:
        located = locate_one(str(self.folder), SourceOptions())
        assert located.artifact.adapter == self.kind
        return located.artifact

    def load(self) -> Any:
        opened = adapter(self.kind).load(self.artifact, self.options)
        return opened.with_preprocess(self.preprocess) if isinstance(opened, Unprepared) else opened

    def load_white(self) -> Any:
        return adapter(self.kind).load_white(self.artifact, self.options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module")
def cases(folder):
    """One model of each kind, and the other two exported to ONNX: name -> case."""
    found = {
        "huggingface": Case("huggingface", hf_folder(folder / "hf", kind="resnet", size=SIZE)),
        "timm": Case("timm", timm_folder(folder / "timm", architecture="test_resnet", config=STATED)),
    }
    for name in tuple(found):
        found[f"onnx of {name}"] = export(found[name], folder / f"onnx-{name}")
    return found | {"onnx": found["onnx of huggingface"]}


def export(case, folder):
    """Export the network from [0, 1] images, its preprocessing included."""
    folder.mkdir()
    torch.onnx.export(
        case.load_white().module,
        (torch.rand(2, 3, SIZE, SIZE),),
        str(folder / "model.onnx"),
        dynamo=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
    )
    return Case("onnx", folder, NAMED["0..1"])


def images(count=5, size=SIZE, channels=3):
    return as_images(pixels(count, size, channels=channels))


def assert_alike(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()


def test_every_adapter_is_covered():
    assert set(plugins.names("adapters")) == {*KINDS, *PARTIAL}
    assert all(adapter(name).gives == frozenset(Access) for name in KINDS)
    assert {name: adapter(name).gives for name in PARTIAL} == PARTIAL


@pytest.mark.parametrize("name", ["huggingface", "timm"])
def test_the_same_weights_through_onnx(cases, name):
    assert_alike(cases[f"onnx of {name}"].load().predict(images()), cases[name].load().predict(images()))


def timm_to_hf(tensors):
    """Rename timm's vision transformer to transformers'."""
    names = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    inner = {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for key, value in tensors.items():
        stem, _, leaf = key.rpartition(".") if key not in names else (key, "", "")
        end = f".{leaf}" if leaf else ""
        if not key.startswith("blocks."):
            renamed[names[stem] + end] = value
            continue
        _, index, layer = stem.split(".", 2)
        block = f"vit.encoder.layer.{index}."
        if layer == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                renamed[f"{block}attention.attention.{part}{end}"] = np.ascontiguousarray(piece)
        else:
            renamed[block + inner[layer] + end] = value
    return renamed


def test_the_same_weights_through_timm_and_transformers(folder):
    import timm

    source = timm_folder(
        folder / "timm-vit", architecture="test_vit", config={"crop_pct": 1.0, "interpolation": "bilinear"}
    )
    network = timm.create_model("test_vit")
    size, patch = network.patch_embed.img_size[0], network.patch_embed.patch_size[0]
    options = {
        "hidden_size": network.embed_dim,
        "num_hidden_layers": len(network.blocks),
        "num_attention_heads": network.blocks[0].attn.num_heads,
        "intermediate_size": network.blocks[0].mlp.fc1.out_features,
        "patch_size": patch,
        "layer_norm_eps": network.norm.eps,
    }
    stated = json.loads((source / "config.json").read_text())["pretrained_cfg"]
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}
    processor |= {"image_mean": list(stated["mean"]), "image_std": list(stated["std"])}
    target = hf_folder(folder / "hf-vit", kind="vit", size=size, options=options, processor=processor)
    expected = load_file(target / "model.safetensors")
    tensors = timm_to_hf(load_file(source / "model.safetensors"))
    assert {key: value.shape for key, value in tensors.items()} == {k: v.shape for k, v in expected.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    asked = images(3, size)
    assert_alike(Case("huggingface", target).load().predict(asked), Case("timm", source).load().predict(asked))


@pytest.mark.parametrize("name", ["huggingface", "timm"])
def test_gradients_are_those_of_finite_differences(cases, name):
    module = cases[name].load_white().module.double()
    asked = torch.from_numpy(images(2)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(module(asked)[:, 1].sum(), asked)
    direction = torch.randn(asked.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-6
    with torch.no_grad():
        above, below = (module(asked + sign * step * direction)[:, 1].sum() for sign in (1, -1))
    assert torch.isclose((gradient * direction).sum(), (above - below) / (2 * step), rtol=1e-3)


@pytest.mark.parametrize("name", ["huggingface", "timm"])
def test_gradients_through_onnx_are_those_of_torch(cases, name):
    def gradient(case):
        asked = torch.from_numpy(images(3)).requires_grad_()
        (found,) = torch.autograd.grad(case.load_white().module(asked)[:, 1].sum(), asked)
        return found.numpy()

    expected = gradient(cases[name])
    assert np.abs(expected).max() > 0
    assert_alike(gradient(cases[f"onnx of {name}"]), expected)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryAdapter:
    def test_predict_and_the_module_agree(self, cases, kind):
        white = cases[kind].load_white()
        with torch.no_grad():
            expected = white.module(torch.from_numpy(images())).numpy()
        assert_alike(white.predict(images()), expected)
        assert_alike(cases[kind].load().predict(images()), expected)

    def test_answers(self, cases, kind):
        model = cases[kind].load()
        answers = model.predict(images())
        assert answers.shape == (5, len(CLASSES))
        assert answers.dtype == np.float32
        assert model.output == "logits"
        assert len(np.unique(answers.round(3), axis=0)) == 5

    def test_classes(self, cases, kind):
        assert cases[kind].load().classes == (None if kind == "onnx" else CLASSES)

    def test_the_size_of_a_batch_does_not_matter(self, cases, kind):
        model, asked = cases[kind].load(), images(33)
        whole = model.predict(asked)
        assert_alike(
            np.concatenate([model.predict(asked[:1]), model.predict(asked[1:8]), model.predict(asked[8:])]), whole
        )

    def test_the_order_of_a_batch_does_not_matter(self, cases, kind):
        model = cases[kind].load()
        assert_alike(model.predict(images()[::-1])[::-1], model.predict(images()))

    def test_an_empty_batch(self, cases, kind):
        assert cases[kind].load().predict(images()[:0]).shape == (0, len(CLASSES))

    @pytest.mark.parametrize("size", [16, 45, (40, 24)])
    def test_other_sizes_are_resized(self, cases, kind, size):
        model, white = cases[kind].load(), cases[kind].load_white()
        answers = model.predict(images(size=size))
        assert answers.shape == (5, len(CLASSES))
        assert np.isfinite(answers).all()
        assert_alike(white.predict(images(size=size)), answers)

    def test_grey_images_are_taken_as_colour(self, cases, kind):
        model, grey = cases[kind].load(), images(channels=1)
        assert_alike(model.predict(grey), model.predict(grey.repeat(3, axis=1)))

    def test_other_numbers_of_channels_are_refused(self, cases, kind):
        with pytest.raises(UsageError, match="channels"):
            cases[kind].load().predict(np.zeros((1, 2, SIZE, SIZE), np.float32))

    def test_the_caller_s_images_are_left_alone(self, cases, kind):
        asked = images()
        before = asked.copy()
        cases[kind].load().predict(asked)
        np.testing.assert_array_equal(asked, before)

    def test_top_k(self, cases, kind):
        model = cases[kind].load()
        shown = TopK(model, 2)
        answers = shown.predict(images())
        assert shown.output == "topk"
        assert ((answers > 0).sum(axis=1) == 2).all()
        np.testing.assert_array_equal(answers.argmax(axis=1), model.predict(images()).argmax(axis=1))

    def test_label_only(self, cases, kind):
        model = cases[kind].load()
        shown = LabelOnly(model)
        answers = shown.predict(images())
        assert shown.output == "labels"
        assert (answers.sum(axis=1) == 1).all()
        np.testing.assert_array_equal(answers.argmax(axis=1), model.predict(images()).argmax(axis=1))

    def test_parameters_get_gradients(self, cases, kind):
        module = cases[kind].load_white().module
        module(torch.from_numpy(images(2))).sum().backward()
        with_gradient = [p for p in module.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        assert len(with_gradient) > 5

    def test_layers_and_activations(self, cases, kind):
        white = cases[kind].load_white()
        names = white.layers()
        assert len(names) == len(set(names)) > 5
        for name in (names[0], names[len(names) // 2], names[-1]):
            assert len(white.activations(images(3), name)) == 3
        with pytest.raises(UsageError, match="no-such"):
            white.activations(images(1), "no-such")

    def test_tensors_without_building_the_model(self, cases, kind):
        read = adapter(kind).tensors(cases[kind].artifact)
        assert any(value.ndim == 4 for value in read.values())
        assert all(np.isfinite(value).all() for value in read.values())
        held = {value.shape for value in cases[kind].load_white().tensors().values()}
        assert {value.shape for value in read.values() if value.ndim == 4} <= held

    def test_what_is_saved_can_be_opened_again(self, cases, kind, tmp_path):
        model = cases[kind].load_white()
        adapter(kind).save(model, tmp_path / "saved")
        again = Case(kind, tmp_path / "saved", cases[kind].preprocess)
        assert_alike(again.load().predict(images()), cases[kind].load().predict(images()))

    def test_opening_twice_gives_the_same(self, cases, kind):
        np.testing.assert_array_equal(cases[kind].load().predict(images()), cases[kind].load().predict(images()))

    def test_preprocessing_that_is_given_overrules(self, cases, kind):
        caffe = Case(kind, cases[kind].folder, NAMED["caffe"]).load().predict(images())
        assert np.abs(caffe - cases[kind].load().predict(images())).max() > 1e-3


def broken(case, folder, harm):
    """Copy a model's folder and harm its weights; return what is said about it."""
    folder.mkdir()
    for path in case.folder.iterdir():
        content = path.read_bytes()
        weights = path.suffix in (".safetensors", ".onnx")
        (folder / path.name).write_bytes(harm(content) if weights else content)
    (item,) = locate([str(folder)], SourceOptions())
    if isinstance(item, Skipped):
        return [item.reason]
    kind, reasons = adapter(item.artifact.adapter), []
    for open_ in (kind.tensors, lambda artifact: kind.load(artifact, case.options)):
        with pytest.raises(TargetError) as caught:
            open_(item.artifact)
        reasons.append(str(caught.value))
    return reasons


HARMS = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"this is not a model\n" * 50,
    "zeros": lambda content: bytes(len(content)),
    "half a header": lambda content: content[:20],
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_explained_in_one_line(cases, kind, harm, tmp_path):
    for reason in broken(cases[kind], tmp_path / "broken", HARMS[harm]):
        assert reason
        assert "\n" not in reason
        assert len(reason) < 400
