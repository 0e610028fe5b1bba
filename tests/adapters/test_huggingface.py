import importlib
import json
import re
import shutil
import socket

import numpy as np
import pytest
import torch
from builders import CLASSES, HF_KINDS, hf_folder, hf_network, hf_processor, listing, pixels, timm_folder

from fp_audit.errors import CorruptModel, TargetError, UnsafeModel, UsageError
from fp_audit.model import LoadOptions, Unprepared, as_images
from fp_audit.preprocess import NAMED, Preprocess
from fp_audit.types import Artifact, File, Listing, Skipped
from fp_audit_adapters._files import local_read
from fp_audit_adapters._hf_families import ARCHITECTURES
from fp_audit_adapters.huggingface import HuggingFaceAdapter

ADAPTER = HuggingFaceAdapter()


def claim(path):
    return list(ADAPTER.claim(listing(path), local_read(path)))


def artifact_of(path):
    (artifact,) = claim(path)
    assert isinstance(artifact, Artifact), artifact
    return artifact


def open_white(path, **options):
    return ADAPTER.load_white(artifact_of(path), LoadOptions(**options))


def reason(path):
    (skipped,) = claim(path)
    assert isinstance(skipped, Skipped)
    assert "\n" not in skipped.reason
    return skipped.reason


def transformers_logits(path, images, config=None, kind="ViT"):
    """What transformers says of a folder, all by itself."""
    config = config or json.loads((path / "preprocessor_config.json").read_text())
    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    module = importlib.import_module(f"transformers.models.{ARCHITECTURES[architecture].module}")
    network = vars(module)[architecture].from_pretrained(path)
    inputs = hf_processor(kind, config)(list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return network(inputs).logits.numpy()


def edit(path, name="config.json", **changes):
    content = json.loads((path / name).read_text()) | changes
    (path / name).write_text(json.dumps(content))


@pytest.fixture(scope="session")
def resnet(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("hf") / "resnet", kind="resnet")


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    return hf_folder(tmp_path_factory.mktemp("hf") / "vit", kind="vit")


@pytest.fixture
def folder(resnet, tmp_path):
    return shutil.copytree(resnet, tmp_path / "resnet")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Neither a hostile nor a healthy folder may lead to a connection."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("opened a connection"))


def test_every_architecture_has_a_builder():
    assert {architecture for architecture, _ in HF_KINDS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("kind", HF_KINDS)
def test_gives_transformers_logits(kind, tmp_path):
    path = hf_folder(tmp_path / kind, kind=kind)
    model = open_white(path)
    images = pixels(4, 32)
    wanted = transformers_logits(path, images)
    answers = model.predict(as_images(images))
    assert np.ptp(wanted, axis=0).max() > 0.01  # otherwise equality would say little
    assert np.abs(answers - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert model.classes == CLASSES
    stored, present = ADAPTER.tensors(artifact_of(path)), model.tensors()
    assert stored.keys() == present.keys()
    assert all(np.array_equal(stored[name], present[name]) for name in stored)


@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext", "poolformer"])
def test_other_sizes_differ_by_pillows_rounding_only(kind, tmp_path):
    path = hf_folder(tmp_path / kind, kind=kind)
    model = open_white(path)
    for size in (64, (50, 41), 20):
        wanted = transformers_logits(path, images := pixels(4, size))
        assert np.abs(model.predict(as_images(images)) - wanted).max() <= 0.03 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", ["resnet", "vit", "levit", "clip"])
def test_gradients_are_transformers_own(kind, tmp_path):
    path = hf_folder(tmp_path / kind, kind=kind)
    model = open_white(path)
    images = torch.tensor(as_images(pixels(2, 32)), requires_grad=True)
    model.module(images)[:, 2].sum().backward()
    direct = torch.tensor(as_images(pixels(2, 32)), requires_grad=True)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (NAMED["imagenet"].mean, NAMED["imagenet"].std))
    hf_network(kind)((direct - mean) / std).logits[:, 2].sum().backward()
    assert (images.grad - direct.grad).abs().max() <= 1e-3 * direct.grad.abs().max()


def test_colours_of_mobilevit_are_swapped(tmp_path):
    config = {"image_processor_type": "MobileViTImageProcessor", "size": 32, "crop_size": 32}
    path = hf_folder(tmp_path / "m", kind="mobilevit", processor=config)
    images = pixels(2, 32)
    wanted = transformers_logits(path, images, kind="MobileViT")
    np.testing.assert_allclose(open_white(path).predict(as_images(images)), wanted, rtol=1e-4, atol=1e-4)


def test_one_channel(tmp_path):
    model = open_white(hf_folder(tmp_path / "m", channels=1))
    assert model.spec.channels == 1
    assert model.predict(as_images(pixels(2, 32, channels=1))).shape == (2, 7)
    assert model.predict(as_images(pixels(2, 32))).shape == (2, 7)


def test_no_names_of_classes(tmp_path):
    assert open_white(hf_folder(tmp_path / "m", classes=4)).classes is None


def test_layers_and_activations(vit):
    model, images = open_white(vit), as_images(pixels(3, 40))
    assert model.layers()[-1] == "classifier"
    np.testing.assert_allclose(model.activations(images, "classifier"), model.predict(images), rtol=1e-4, atol=1e-5)
    assert model.activations(images, "vit.layers.0").shape == (3, 17, 32)


def test_nothing_is_assumed_without_a_processor(tmp_path):
    path = hf_folder(tmp_path / "m", kind="vit", processor={})
    unprepared = ADAPTER.load(artifact_of(path), LoadOptions())
    assert isinstance(unprepared, Unprepared)
    assert (unprepared.spec.channels, unprepared.spec.height) == (3, 32)
    with pytest.raises(UsageError, match=r"no preprocessor_config\.json"):
        open_white(path)
    images = as_images(pixels(2, 48))
    chosen = unprepared.with_preprocess(NAMED["imagenet"])
    np.testing.assert_array_equal(
        chosen.predict(images), open_white(path, preprocess=NAMED["imagenet"]).predict(images)
    )
    assert chosen.preprocess == Preprocess(resize=(32, 32), mean=NAMED["imagenet"].mean, std=NAMED["imagenet"].std)


def test_options_overrule_the_colours_only(vit):
    model = open_white(vit, preprocess=NAMED["-1..1"])
    assert model.preprocess == Preprocess(resize=(32, 32), mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("kind", ["vit", "resnet", "convnext", "swin"])
def test_save_and_load_again(kind, tmp_path):
    model, images = open_white(hf_folder(tmp_path / "a", kind=kind)), pixels(3, 32)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.1)
    ADAPTER.save(model, tmp_path / "new" / "b")
    wanted = model.predict(as_images(images))
    again = open_white(tmp_path / "new" / "b")
    np.testing.assert_allclose(again.predict(as_images(images)), wanted, rtol=1e-5, atol=1e-6)
    assert (again.classes, again.preprocess) == (model.classes, model.preprocess)
    theirs = transformers_logits(tmp_path / "new" / "b", images)
    assert np.abs(theirs - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert model.tensors().keys() == again.tensors().keys()


def test_save_keeps_overruled_preprocessing(vit, tmp_path):
    model = open_white(vit, preprocess=NAMED["-1..1"])
    ADAPTER.save(model, tmp_path / "b")
    assert open_white(tmp_path / "b").preprocess == Preprocess(resize=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    theirs = transformers_logits(tmp_path / "b", images := pixels(2, 32), kind="Bit")
    np.testing.assert_allclose(model.predict(as_images(images)), theirs, rtol=1e-4, atol=1e-5)


def test_save_takes_only_its_own(tmp_path, resnet):
    model = open_white(resnet)
    model.adapter = "timm"
    with pytest.raises(UsageError, match="huggingface adapter opened"):
        ADAPTER.save(model, tmp_path)


def test_shards(tmp_path):
    network = hf_network("resnet")
    network.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    shutil.copy(hf_folder(tmp_path / "b") / "preprocessor_config.json", tmp_path / "a")
    artifact = artifact_of(tmp_path / "a")
    assert len([file for file in artifact.files if file.path.endswith(".safetensors")]) > 2
    images = as_images(pixels(2, 32))
    np.testing.assert_allclose(
        open_white(tmp_path / "a").predict(images), open_white(tmp_path / "b").predict(images), rtol=1e-6
    )


def test_claims_folders_however_deep(tmp_path, resnet):
    shutil.copytree(resnet, tmp_path / "owner" / "model.v2")
    shutil.copytree(resnet, tmp_path / "other")
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "config.json").write_text('{"indent": 4}')
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("# not a model's")
    claimed = claim(tmp_path)
    assert [artifact.target for artifact in claimed] == ["other", "owner/model.v2"]
    assert [artifact.entry for artifact in claimed] == ["other", "owner/model.v2"]
    assert {file.path for file in claimed[0].files} == {
        f"other/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    }


def test_claims_on_a_hub_read_json_only(resnet):
    def read(path):
        assert path == "sub/config.json"
        return (resnet / "config.json").read_bytes()

    files = (File("sub/config.json", 10), File("sub/model.safetensors", 10), File("README.md", 1))
    (artifact,) = ADAPTER.claim(Listing("org/m", files, None, "abc"), read)
    assert (artifact.target, artifact.listing, artifact.revision) == ("org/m/sub", "org/m", "abc")


def test_timm_folders_are_not_its_business(tmp_path):
    assert claim(timm_folder(tmp_path / "t", architecture="test_resnet")) == []


def test_onnx_exports_keep_a_config_and_are_passed_over(folder):
    (folder / "model.safetensors").unlink()
    assert "no weights" in reason(folder)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").touch()
    assert claim(folder) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, r"remote code \(auto_map\), which is never executed"),
        ({"custom_pipelines": {"x": {"impl": "evil.P"}}}, "remote code"),
        ({"nested": [{"trust_remote_code": True}]}, "remote code"),
        ({"_attn_implementation": "evil/kernel"}, "remote code"),
        ({"vision_config": {"_attn_implementation_internal": "evil/kernel"}}, "remote code"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "BertForMaskedLM is not among the 36"),
        ({"architectures": ["x" * 5000]}, "is not among"),
        ({"architectures": [], "model_type": "bert"}, "bert is not among"),
        ({"model_type": "vit"}, "architecture ResNetForImageClassification and model type 'vit'"),
        ({"use_timm_backbone": True}, r"elsewhere \(use_timm_backbone\)"),
        ({"backbone": "microsoft/resnet-50"}, "elsewhere"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ],
)
def test_configurations_that_are_refused(folder, changes, text):
    edit(folder, **changes)

    assert re.search(text, reason(folder))
    assert len(reason(folder)) < 300
    artifact = Artifact("m", "huggingface", listing(folder).files, ".", folder)
    with pytest.raises(TargetError, match=text):  # the child checks again
        ADAPTER.load_white(artifact, LoadOptions())


def test_remote_code_is_unsafe(folder):
    edit(folder, auto_map={"AutoModel": "modeling.Evil"})
    with pytest.raises(UnsafeModel):
        ADAPTER.load(Artifact("m", "huggingface", listing(folder).files, ".", folder), LoadOptions())


@pytest.mark.parametrize("content", [b"[]", b"{", b" " * 10**7, b"\0" * 100, b'{"a":' * 1000 + b"1" + b"}" * 1000])
def test_a_config_that_is_none(folder, content):
    (folder / "config.json").write_bytes(content)
    assert reason(folder).startswith("config.json ")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "tf_model.h5"])
def test_pickles_are_never_opened(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    assert reason(folder) == f"only pickle weights ({name}), never opened: model.safetensors was expected"


def test_missing_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert reason(folder) == "1 of 2 shards are missing: model-00002-of-00002.safetensors"


def test_shard_outside_the_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    assert "names the shard '../x.safetensors'" in reason(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(CorruptModel, match=r"model\.safetensors is truncated"):
        open_white(folder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_sizes": [8, 16, 16, 10**9]}, "hidden_sizes = 1e"),
        ({"hidden_sizes": [8, 16, 16, 10**6]}, "describes .* parameters and the weights hold"),
        ({"depths": [1, 1, 1, 10**9]}, "depths = 1e"),
        ({"hidden_sizes": [8, 16, 16, 24]}, "have another shape for classifier.1.weight"),
        ({"hidden_sizes": [8, 16]}, "have another shape for"),
        ({"embedding_size": "eight"}, "does not describe a ResNet"),
        ({"hidden_act": "os.system"}, "does not describe a ResNet"),
        ({"downsample_in_first_stage": True, "layer_type": "nope"}, "does not describe a ResNet"),
    ],
)
def test_configurations_that_do_not_fit_the_weights(folder, changes, text):
    edit(folder, **changes)
    with pytest.raises(CorruptModel, match=text) as caught:
        open_white(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_tensors(folder):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    spare = tensors.pop("classifier.1.bias")
    save_file({**tensors, "superfluous": np.zeros(100, np.float32)}, folder / "model.safetensors")
    with pytest.raises(CorruptModel, match=r"the weights lack classifier\.1\.bias of the ResNetForImage"):
        open_white(folder)
    save_file({**tensors, "classifier.1.bias": spare, "extra": spare}, folder / "model.safetensors")
    open_white(folder)  # as transformers does


def test_fields_that_steer_loading_are_dropped(folder, resnet):
    edit(
        folder,
        name_or_path="evil/model",
        transformers_weights="other.safetensors",
        fusion_config={"patch_embeddings": True},
        per_layer_config={"0": {"x": 1}},
        dtype="float64",
        output_hidden_states=True,
        return_dict=False,
    )
    images = as_images(pixels(2, 32))
    np.testing.assert_array_equal(open_white(folder).predict(images), open_white(resnet).predict(images))
