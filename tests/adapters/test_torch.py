import copy
import json
import sys
from subprocess import run

import numpy as np
import pytest
import torch
from builders import hf_folder, listing, pixels, timm_folder
from safetensors.numpy import save_file
from torch import nn

from fp_audit.errors import CorruptModel, UnavailableTarget, UnsafeModel, UnsupportedModel, UsageError
from fp_audit.model import as_images
from fp_audit.preprocess import NAMED, Preprocess
from fp_audit.types import InputSpec
from fp_audit_adapters import _files
from fp_audit_adapters._torch import TorchModel, Uninitialised, overruled


def make(preprocess=NAMED["imagenet"], channels=3, size=None, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )
    return TorchModel(
        network,
        preprocess=preprocess,
        spec=InputSpec(channels, size, size),
        classes=None,
        adapter="none",
        recipe={},
    )


def test_predicts_what_the_network_says_of_prepared_images():
    model, images = make(), as_images(pixels(3, 16))
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (NAMED["imagenet"].mean, NAMED["imagenet"].std))
    with torch.no_grad():
        wanted = model.network.eval()((torch.tensor(images) - mean) / std)
    answers = model.predict(images)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, wanted, rtol=1e-5, atol=1e-6)


def test_answers_do_not_depend_on_batches(monkeypatch):
    model, images = make(), as_images(pixels(7, 16))
    whole = model.predict(images)
    monkeypatch.setattr("fp_audit_adapters._torch._BATCH_VALUES", 2 * 3 * 16 * 16)
    np.testing.assert_allclose(model.predict(images), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict(images[3:4]), whole[3:4], rtol=1e-5, atol=1e-6)
    assert model.predict(images[:0]).shape == (0, 5)


def test_grey_images_are_repeated_and_colours_become_grey():
    grey = as_images(pixels(2, 16, channels=1))
    np.testing.assert_allclose(make().predict(grey), make().predict(grey.repeat(3, axis=1)), rtol=1e-5)
    assert make(NAMED["mnist"], channels=1).predict(as_images(pixels(2, 16))).shape == (2, 5)


def test_any_size_goes_in_when_the_preprocessing_resizes():
    model = make(Preprocess(shortest_edge=12, crop=(8, 8), filter="bicubic"), size=8)
    for size in (8, 12, (20, 9), (5, 31)):
        assert model.predict(as_images(pixels(2, size))).shape == (2, 5)


def test_gradients_are_torchs_own():
    model = make(Preprocess(resize=(8, 8), mean=(0.5,), std=(0.25,)), size=8)
    images = torch.tensor(as_images(pixels(2, 16)), requires_grad=True)
    model.module(images)[:, 1].sum().backward()
    direct = torch.tensor(as_images(pixels(2, 16)), requires_grad=True)
    pooled = nn.functional.interpolate(direct, size=(8, 8), mode="bilinear", antialias=True, align_corners=False)
    model.network((pooled - 0.5) / 0.25)[:, 1].sum().backward()
    assert direct.grad.abs().max() > 0
    np.testing.assert_allclose(images.grad, direct.grad, rtol=1e-3, atol=1e-6)


def test_module_is_one_object_in_evaluation_mode():
    model = make()
    model.module.train()
    assert not model.module.training
    assert model.module is model.module


def test_predict_sees_changed_weights():
    model, images = make(), as_images(pixels(2, 16))
    before = model.predict(images)
    with torch.no_grad():
        model.network[6].bias += 1
    np.testing.assert_allclose(model.predict(images), before + 1, rtol=1e-5)


def test_with_network_leaves_the_first_alone():
    model, images = make(), as_images(pixels(2, 16))
    changed = copy.deepcopy(model.network)
    nn.init.zeros_(changed[6].weight)
    other = model.with_network(changed)
    assert np.ptp(other.predict(images), axis=0).max() == 0
    assert np.ptp(model.predict(images), axis=0).max() > 0


def test_layers_come_in_order_and_give_activations():
    model, images = make(), as_images(pixels(3, 16))
    assert model.layers() == ("0", "1", "2", "3", "4", "5", "6")
    np.testing.assert_allclose(model.activations(images, "6"), model.predict(images), rtol=1e-5, atol=1e-6)
    assert model.activations(images, "0").shape == (3, 4, 16, 16)
    assert model.activations(images, "0").min() < 0  # before the ReLU in place
    assert not model.network[0]._forward_hooks


def test_activations_stop_at_the_layer(monkeypatch):
    model = make()
    model.layers()
    monkeypatch.setattr(model.network[6], "forward", lambda _: pytest.fail("ran beyond the layer"))
    model.activations(as_images(pixels(1, 16)), "2")


def test_unknown_layer_names_some_known_ones():
    with pytest.raises(UsageError, match=r"no layer called 'head'.*such as 0, 1"):
        make().activations(as_images(pixels(1, 16)), "head")


def test_tensors_are_copies():
    model = make()
    model.tensors()["6.bias"][:] = 7
    assert model.network[6].bias.max() < 7


def test_a_failing_network_is_one_clear_line():
    with pytest.raises(UnsupportedModel, match="fails on 16x16 images") as caught:
        make().with_network(nn.Linear(5, 5)).predict(as_images(pixels(1, 16)))
    assert "\n" not in str(caught.value)


def test_colours_must_fit_the_channels():
    with pytest.raises(CorruptModel, match="do not fit 1 channels"):
        make(NAMED["imagenet"], channels=1)


def test_a_choice_of_colours_keeps_the_stated_sizes():
    stated = Preprocess(shortest_edge=40, crop=(32, 32), mean=(0.3,))
    kept = overruled(stated, NAMED["-1..1"])
    assert (kept.shortest_edge, kept.crop, kept.mean) == (40, (32, 32), (0.5,))
    assert overruled(stated, None) is stated
    assert overruled(stated, Preprocess(resize=(8, 8))).crop is None


def test_uninitialised_draws_nothing():
    state = torch.random.get_rng_state()
    with Uninitialised():
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    assert torch.equal(state, torch.random.get_rng_state())


def reading(data):
    return lambda path: data


def test_read_json_takes_an_object():
    assert _files.read_json(reading(b'{"a": [1]}'), "config.json") == {"a": [1]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1]", "holds a JSON list"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"null", "holds a JSON NoneType"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested more than 32 deep"),
        (b"[" * 10**6, "is nested too deeply"),
        (b" " * 10**7, "has 10,000,000 bytes"),
        (b'{"a": ' + b"9" * 10**5 + b"}", "is not JSON"),
    ],
)
def test_read_json_refuses(data, reason):
    with pytest.raises(CorruptModel, match=reason) as caught:
        _files.read_json(reading(data), "config.json")
    assert str(caught.value).startswith("config.json ")
    assert "\n" not in str(caught.value)


def test_local_read_says_what_is_missing(tmp_path):
    with pytest.raises(UnavailableTarget, match=r"config\.json is missing"):
        _files.local_read(tmp_path)("config.json")


def write(path, header, data, size=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes((len(text) if size is None else size).to_bytes(8, "little") + text + data)
    return path


def test_small_floats_become_float32(tmp_path):
    entries = {
        "half": {"dtype": "F16", "shape": [1, 2], "data_offsets": [0, 4]},
        "brain": {"dtype": "BF16", "shape": [2], "data_offsets": [4, 8]},
        "eight": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [8, 10]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [10, 18]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [18, 18]},
    }
    data = np.array([[1.5, -2]], "<f2").tobytes() + bytes([0x80, 0x3F, 0x40, 0xC0, 0x38, 0xC4])
    path = write(tmp_path / "model.safetensors", entries, data + (7).to_bytes(8, "little"))
    tensors = _files.read_tensors([path])
    assert sorted(tensors) == ["brain", "eight", "half", "none", "scalar"]
    np.testing.assert_array_equal(tensors["half"], np.array([[1.5, -2]], np.float32))
    np.testing.assert_array_equal(tensors["brain"], np.array([1, -3], np.float32))
    np.testing.assert_array_equal(tensors["eight"], np.array([1, -3], np.float32))
    assert tensors["half"].dtype == tensors["brain"].dtype == tensors["eight"].dtype == np.float32
    assert tensors["scalar"] == 7
    assert tensors["none"].shape == (0, 3)


def test_bfloat16_is_torchs(tmp_path):
    from safetensors.torch import save_file as save_torch

    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    save_torch({"x": values}, tmp_path / "m.safetensors")
    read = _files.read_tensors([tmp_path / "m.safetensors"])
    np.testing.assert_array_equal(read["x"], values.float().numpy())


@pytest.mark.parametrize(
    ("text", "data", "size", "reason"),
    [
        (b"", b"", 0, "truncated or not safetensors"),
        (b"", b"", 10**12, "its header would have 1,000,000,000,000 bytes"),
        (b"{}", b"", 500, "truncated or not safetensors"),
        (b"not json", b"", None, "truncated or not safetensors"),
        ({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"abc", None, "truncated"),
        ({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"abcde", None, "truncated"),
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"abcd", None, "truncated"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [400, 404]}}, b"abcd", None, "truncated"),
    ],
)
def test_damaged_safetensors_are_one_clear_line(tmp_path, text, data, size, reason):
    path = write(tmp_path / "model.safetensors", text, data, size)
    with pytest.raises(CorruptModel, match=reason) as caught:
        _files.read_tensors([path])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_too_many_tensors(tmp_path, monkeypatch):
    save_file({f"t{i}": np.zeros(1, np.float32) for i in range(4)}, tmp_path / "m.safetensors")
    monkeypatch.setattr(_files, "MAX_TENSORS", 3)
    with pytest.raises(CorruptModel, match="holds 4 tensors"):
        _files.read_header(tmp_path / "m.safetensors")


def test_a_name_in_two_shards(tmp_path):
    for name in ("a", "b"):
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CorruptModel, match="holds 'x' a second time"):
        _files.read_tensors([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "x.bin", "a\\b.safetensors", ""],
)
def test_shards_must_be_plain_names(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    (folder,) = _files.folders(listing(tmp_path))
    with pytest.raises(UnsafeModel, match="names the shard"):
        _files.weight_files(folder, _files.local_read(tmp_path))


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_names(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    (folder,) = _files.folders(listing(tmp_path))
    with pytest.raises(CorruptModel):
        _files.weight_files(folder, _files.local_read(tmp_path))


@pytest.mark.parametrize(
    "config",
    [{"hidden_size": 10**9}, {"depths": [1, 5000]}, {"depth_coefficient": 1e9}, {"x": {"y": [float("nan")]}}],
)
def test_implausible_numbers(config):
    with pytest.raises(CorruptModel, match="cannot back"):
        _files.check_plausible(config, {"w": np.zeros((10, 10), np.float32)})


def test_weights_are_read_without_torch(tmp_path):
    folders = [hf_folder(tmp_path / "hf"), timm_folder(tmp_path / "timm")]
    script = """
import sys
from pathlib import Path
from fp_audit.types import File, Listing
from fp_audit_adapters._files import local_read
from fp_audit_adapters.huggingface import HuggingFaceAdapter
from fp_audit_adapters.timm import TimmAdapter
for adapter, root in zip((HuggingFaceAdapter(), TimmAdapter()), map(Path, sys.argv[1:])):
    files = tuple(File(file.name, file.stat().st_size) for file in root.iterdir())
    (artifact,) = adapter.claim(Listing("m", files, root), local_read(root))
    assert adapter.tensors(artifact)
print(*sorted({"torch", "transformers", "timm", "torchvision"} & set(sys.modules)))
"""
    done = run([sys.executable, "-c", script, *folders], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
