import json
import shutil
import socket

import numpy as np
import pytest
import timm
import torch
from builders import CLASSES, hf_folder, listing, pixels, timm_folder
from PIL import Image
from safetensors.numpy import load_file, save_file

from fp_audit.errors import CorruptModel, UnsafeModel, UnsupportedModel, UsageError
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import NAMED, Preprocess, affine_map
from fp_audit.types import Artifact, InputSpec, Skipped
from fp_audit_adapters._files import local_read
from fp_audit_adapters.timm import TimmAdapter, parse, to_data_config, to_preprocess

ADAPTER = TimmAdapter()
EXACT = {"crop_pct": 1.0}
"""With images of the input's size nothing is resized."""


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


def timm_logits(path, images):
    """What timm says of a folder, all by itself."""
    network = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.no_grad():
        return network(torch.stack([transform(as_pil(image)) for image in images])).numpy()


def as_pil(image):
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def edit(path, **changes):
    content = json.loads((path / "config.json").read_text())
    for key, value in changes.items():
        merge = isinstance(content.get(key), dict) and isinstance(value, dict)
        content[key] = content[key] | value if merge else value
    (path / "config.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def resnet(tmp_path_factory):
    return timm_folder(tmp_path_factory.mktemp("timm") / "resnet", config=EXACT)


@pytest.fixture
def folder(resnet, tmp_path):
    return shutil.copytree(resnet, tmp_path / "resnet")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("opened a connection"))


@pytest.mark.parametrize(
    "architecture",
    [
        "test_byobnet",
        "test_coatnet",
        "test_convnext",
        "test_efficientnet",
        "test_mambaout",
        "test_nfnet",
        "test_resnet",
        "test_vit",
        "test_vit3",
        "test_vit_relpos",
    ],
)
def test_gives_timms_logits(architecture, tmp_path):
    path = timm_folder(tmp_path / architecture, architecture=architecture, config=EXACT)
    model = open_white(path)
    images = pixels(3, model.spec.height)
    wanted = timm_logits(path, images)
    assert np.ptp(wanted, axis=0).max() > 0.01
    assert np.abs(model.predict(as_images(images)) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert model.classes == CLASSES
    stored, present = ADAPTER.tensors(artifact_of(path)), model.tensors()
    assert stored.keys() == present.keys()
    assert all(np.array_equal(stored[name], present[name]) for name in stored)


@pytest.mark.parametrize(
    "config",
    [
        {"crop_pct": 0.914},
        {"crop_pct": 0.888, "interpolation": "bilinear"},
        {"crop_pct": 0.8, "crop_mode": "squash", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]},
        {"input_size": [3, 96, 96], "interpolation": "lanczos", "crop_pct": 1.0},
        {"input_size": [3, 96, 128], "crop_pct": 1.0},
        {"crop_mode": "border"},
        {},
    ],
)
def test_preprocessing_is_timms_own(config):
    given = timm.data.resolve_data_config(pretrained_cfg={"input_size": (3, 64, 64), **config})
    transform = timm.data.create_transform(**given, is_training=False)
    square = to_preprocess({"input_size": [3, 64, 64], **config})
    sizes = [(96, 128)] if "input_size" in config and config["input_size"][1:] == [96, 128] else [(80, 80), (92, 72)]
    for size in sizes if config.get("crop_mode") != "border" else sizes[:1]:
        image = pixels(1, size) // 2 + 64
        wanted = transform(as_pil(image[0])).numpy()
        fitted = affine_map(square, size, 3, 3)
        found = fitted(as_images(image))[0]
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 2 / 255 * np.abs(fitted.gain).max()


def test_odd_crops_are_a_pixel_off_where_torchvision_rounds_up():
    """A known gap: Preprocess crops at floor(d / 2), torchvision at round(d / 2), which differ for d = 3, 7, 11 ..."""
    transform = timm.data.create_transform((3, 60, 60), interpolation="bilinear", crop_pct=60 / 63.5)
    image = pixels(1, 63) // 2 + 64
    wanted = transform(as_pil(image[0])).numpy()
    fitted = affine_map(
        Preprocess(crop=(60, 60), mean=NAMED["imagenet"].mean, std=NAMED["imagenet"].std), (63, 63), 3, 3
    )
    moved = np.roll(as_images(image), (-1, -1), (2, 3))
    assert min(np.abs(fitted(x)[0] - wanted).max() for x in (as_images(image), moved)) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 255.0])
@pytest.mark.parametrize(("crop", "edge"), [(224, 235), (224, 256), (160, 168), (240, 240), (32, 37)])
def test_data_config_is_the_inverse(crop, edge, scale):
    stated = Preprocess(shortest_edge=edge, crop=(crop, crop), filter="bicubic", scale=scale, mean=(51.0,), std=(5.1,))
    data = to_data_config(stated, InputSpec(3, crop, crop))
    again = to_preprocess(data)
    assert (again.shortest_edge, again.crop, again.filter) == (edge, (crop, crop), "bicubic")
    np.testing.assert_allclose(np.divide(again.mean, again.std), np.divide(stated.mean, stated.std) * np.ones(1))


def test_gradients_are_timms_own(resnet):
    model = open_white(resnet)
    size = model.spec.height
    images = torch.tensor(as_images(pixels(1, size)), requires_grad=True)
    model.module(images)[:, 2].sum().backward()
    direct = torch.tensor(as_images(pixels(1, size)), requires_grad=True)
    network = timm.create_model(f"local-dir:{resnet}", pretrained=True).eval()
    mean, std = (
        torch.tensor(part).view(3, 1, 1) for part in (network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
    )
    network((direct - mean) / std)[:, 2].sum().backward()
    assert (images.grad - direct.grad).abs().max() <= 1e-3 * direct.grad.abs().max()


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("test_resnet", {"in_chans": 1}),
        ("test_resnet", {"global_pool": "catavgmax"}),
        ("test_vit_relpos", {"img_size": 96}),
        ("test_vit", {"class_token": False, "global_pool": "avg"}),
        ("resnet10t", {"drop_rate": 0.3}),
    ],
)
def test_arguments_of_the_model(architecture, arguments, tmp_path):
    path = timm_folder(tmp_path / "m", architecture=architecture, config=EXACT, **arguments)
    model = open_white(path)
    images = pixels(2, model.spec.height, channels=model.spec.channels)
    wanted = timm_logits(path, images)
    assert np.abs(model.predict(as_images(images)) - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert model.spec.channels == arguments.get("in_chans", 3)
    assert model.spec.height == arguments.get("img_size", model.spec.height)


def test_an_older_layout_is_renamed_by_timm(tmp_path):
    path = timm_folder(tmp_path / "m", architecture="test_convnext", config=EXACT)
    tensors = load_file(path / "model.safetensors")
    save_file({f"model.{name}": value for name, value in tensors.items()}, path / "other.safetensors")
    images = as_images(pixels(2, 64))
    wanted = open_white(path).predict(images)
    old = {name.replace("head.norm.", "norm.").replace("head.fc.", "head."): value for name, value in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, path / "model.safetensors")
    model = open_white(path)
    np.testing.assert_allclose(model.predict(images), wanted, rtol=1e-5)
    assert "state_dict" not in model.network.pretrained_cfg


def test_names_of_classes(tmp_path):
    assert open_white(timm_folder(tmp_path / "a", classes=4)).classes is None
    path = timm_folder(tmp_path / "b")
    edit(path, label_names=["one", "two"])  # does not fit the seven outputs
    assert open_white(path).classes is None


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_save_and_load_again(architecture, tmp_path):
    path = timm_folder(tmp_path / "a", architecture=architecture, config=EXACT)
    model, images = open_white(path), pixels(2, 160)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.mul_(1.1)
    ADAPTER.save(model, tmp_path / "b")
    wanted = model.predict(as_images(images))
    again = open_white(tmp_path / "b")
    np.testing.assert_allclose(again.predict(as_images(images)), wanted, rtol=1e-5, atol=1e-6)
    assert (again.classes, again.preprocess, again.spec) == (model.classes, model.preprocess, model.spec)
    assert np.abs(timm_logits(tmp_path / "b", images) - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_save_keeps_overruled_preprocessing(resnet, tmp_path):
    ADAPTER.save(model := open_white(resnet, preprocess=NAMED["-1..1"]), tmp_path / "b")
    images = as_images(pixels(2, model.spec.height))
    np.testing.assert_allclose(open_white(tmp_path / "b").predict(images), model.predict(images), rtol=1e-5)


def test_save_refuses(resnet, tmp_path):
    with pytest.raises(UsageError, match="red and blue"):
        ADAPTER.save(open_white(resnet, preprocess=Preprocess(bgr=True)), tmp_path / "b")
    model = open_white(resnet)
    model.adapter = "huggingface"
    with pytest.raises(UsageError, match="timm adapter opened"):
        ADAPTER.save(model, tmp_path / "b")


def test_transformers_folders_are_not_its_business(tmp_path):
    assert claim(hf_folder(tmp_path / "m")) == []


@pytest.mark.parametrize("content", [b"[]", b"{", b" " * 10**7, b"{}"])
def test_what_is_not_a_config_is_not_its_business(folder, content):
    (folder / "config.json").write_bytes(content)
    assert claim(folder) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architecture": "hf-hub:evil/model"}, "a name of timm's registry was expected"),
        ({"architecture": "../x"}, "a name of timm's registry was expected"),
        ({"architecture": ["resnet18"]}, "a name of timm's registry was expected"),
        ({"model_args": {"checkpoint_path": "/tmp/evil.pth"}}, "steers loading through model_args (checkpoint_path)"),
        ({"model_args": {"pretrained_cfg_overlay": {"url": "http://evil"}}}, "steers loading"),
        ({"model_args": {"features_only": True}}, "steers loading"),
        ({"model_args": ["x"]}, "needs objects for pretrained_cfg and model_args"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}}, "channels, height and width were expected"),
    ],
)
def test_configurations_that_are_refused(folder, changes, text):
    edit(folder, **changes)
    assert text in reason(folder)


def test_steering_is_unsafe():
    with pytest.raises(UnsafeModel):
        parse({"architecture": "resnet18", "pretrained_cfg": {}, "model_args": {"pretrained": True}})


def test_sources_are_dropped(folder, resnet):
    sources = {"url": "http://127.0.0.1:9/x.pth", "file": "/etc/passwd", "hf_hub_id": "evil/model", "source": "hf-hub"}
    edit(folder, pretrained_cfg={**sources, "custom_load": True, "unheard_of": 1})
    images = as_images(pixels(1, 160))
    np.testing.assert_array_equal(open_white(folder).predict(images), open_white(resnet).predict(images))


def test_unknown_architecture(folder):
    edit(folder, architecture="resnet_from_mars")
    with pytest.raises(UnsupportedModel, match="has no architecture 'resnet_from_mars'"):
        open_white(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_pickles_are_never_opened(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    assert reason(folder).startswith(f"only pickle weights ({name}), never opened")


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptModel, match=r"model\.safetensors is truncated"):
        open_white(folder)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"architecture": "test_vit"}, "the weights hold|are not those of the test_vit"),
        ({"architecture": "resnet50"}, "describes .* parameters and the weights hold"),
        ({"model_args": {"num_classes": 9}}, "are not those of the test_resnet"),
        ({"model_args": {"num_classes": 10**9}}, "cannot back"),
        ({"model_args": {"layers": [1, 1, 1, 10**8]}}, "cannot back"),
        ({"model_args": {"no_such_argument": 1}}, "no_such_argument"),
        ({"pretrained_cfg": {"std": [0, 1, 1]}}, "cannot be divided by"),
        ({"pretrained_cfg": {"interpolation": "magic"}}, "interpolation 'magic'"),
    ],
)
def test_configurations_that_do_not_fit_the_weights(folder, changes, text):
    edit(folder, **changes)
    with pytest.raises(CorruptModel, match=text) as caught:
        open_white(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_tensors_are_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["fc.bias"]
    tensors["spare"] = np.zeros(1000, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptModel, match=r"fc\.bias"):
        open_white(folder)
