import numpy as np
import onnx
import pytest
from attack_victims import KINDS, data, digits, tensors, victim
from onnx import TensorProto
from safetensors import safe_open

from fp_audit.attacking import attack, open_victim
from fp_audit.attacks.disguise import Disguise
from fp_audit.errors import UnsupportedModel, UsageError
from fp_audit.model import LoadOptions, as_images
from fp_audit.preprocess import Preprocess
from fp_audit.sources._base import SourceOptions
from fp_audit.targets import adapter, locate_one

LINKS = {"huggingface": 2, "timm": 7, "onnx": 3}


def disguised(kind, out, how):
    """Disguise a victim and check that it answers as before, through the adapter that a scan would use."""
    provenance = attack("disguise", str(victim(kind)), data(), out, options={"kind": how})
    artifact = locate_one(str(out), SourceOptions()).artifact
    stated = provenance.surrogate["preprocess"] or provenance.victim["preprocess"]
    opening = LoadOptions(preprocess=Preprocess.from_json(stated) if stated else None)
    images = as_images(digits().pixels[:100])
    expected = open_victim(str(victim(kind)), data()).model.predict(images)
    answers = adapter(artifact.adapter).load(artifact, opening).predict(images)
    order = provenance.surrogate["facts"].get("order", range(10))
    np.testing.assert_allclose(answers, expected[:, order], atol=1e-4 * np.abs(expected).max())
    assert provenance.fidelity.agreement == 1.0
    return provenance, artifact


def weights(path):
    return [value for value in tensors(path).values() if value.ndim >= 2]


@pytest.mark.parametrize("how", ["permute", "rescale"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_channels_change_and_answers_do_not(kind, how, tmp_path):
    provenance, artifact = disguised(kind, tmp_path / "out", how)
    assert artifact.adapter == "onnx"
    assert provenance.surrogate["facts"]["places"] == LINKS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_classes_come_in_another_order(kind, tmp_path):
    provenance, _ = disguised(kind, tmp_path / "out", "reorder")
    order = provenance.surrogate["facts"]["order"]
    assert sorted(order) == list(range(10))
    assert order != list(range(10))


def test_the_next_attack_of_a_chain_gets_the_labels_in_the_new_order(tmp_path):
    options, chain = {"kind": "reorder"}, ["disguise:kind=reorder", "fine-tune:epochs=1:batch=32"]
    provenance = attack("disguise", str(victim("onnx")), data(), tmp_path / "out", options=options, chain=chain)
    assert provenance.fidelity.accuracy > 0.95
    assert provenance.fidelity.agreement > 0.95


@pytest.mark.parametrize("how", ["permute", "rescale"])
def test_hidden_channels_change_with_the_seed(how, tmp_path):
    made = [weights(victim("onnx"))]
    for seed in (0, 1):
        attack("disguise", str(victim("onnx")), data(), tmp_path / str(seed), options={"kind": how}, seed=seed)
        made.append(weights(tmp_path / str(seed)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not any(np.array_equal(a, b) for a, b in zip(made[one], made[other], strict=True))


@pytest.mark.parametrize(("kind", "how"), [("huggingface", "fold"), ("huggingface", "export"), ("timm", "fold")])
def test_a_torch_network_becomes_an_onnx_file_without_normalisations(kind, how, tmp_path):
    _, artifact = disguised(kind, tmp_path / "out", how)
    assert artifact.adapter == "onnx"
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}


@pytest.mark.parametrize("kind", ["huggingface", "timm"])
def test_weights_are_spread_over_shards(kind, tmp_path):
    _, artifact = disguised(kind, tmp_path / "out", "reshard")
    assert artifact.adapter == kind
    assert len(list((tmp_path / "out").glob("model-0000?-of-00003.safetensors"))) == 3
    before, after = tensors(victim(kind)), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["huggingface", "timm"])
def test_weights_are_stored_in_float64(kind, tmp_path):
    disguised(kind, tmp_path / "out", "cast")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as stored:
        kinds = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 (no mapping)
    assert kinds == {"F64", "I64"}


def test_the_weights_of_an_onnx_file_move_to_a_file_beside_it(tmp_path):
    disguised("onnx", tmp_path / "out", "reshard")
    bare = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in bare.graph.initializer)


def test_the_weights_of_an_onnx_file_are_stored_in_float64(tmp_path):
    disguised("onnx", tmp_path / "out", "cast")
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    large = [tensor for tensor in graph.initializer if len(tensor.dims) > 1]
    assert [tensor.data_type for tensor in large] == [TensorProto.DOUBLE] * 4


@pytest.mark.parametrize("how", ["fold", "export"])
def test_a_victim_without_anything_to_change_is_refused(how, tmp_path):
    with pytest.raises(UnsupportedModel, match=f"found nothing to {how} in its graph"):
        attack("disguise", str(victim("onnx")), data(), tmp_path / "out", options={"kind": how})
    assert list(tmp_path.iterdir()) == []


def test_the_largest_factor_is_checked():
    with pytest.raises(UsageError, match=r"most is 1.0: expected a factor above 1"):
        Disguise(most=1.0)
