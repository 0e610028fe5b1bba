"""The weights of float and int8 models by name."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
from adapters.onnx import zoo
from onnx import TensorProto, helper, numpy_helper

from fp_audit.errors import CorruptModel
from fp_audit_adapters._onnx import read_model, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module", params=["timm-resnet", "timm-vit"])
def float_path(request, folder):
    return zoo.export(zoo.build(request.param), folder / f"{request.param}.onnx", dynamo=False)


def test_float_weights_are_those_of_the_module(folder):
    model = zoo.build("timm-vit")
    found = tensors(read_model(zoo.export(model, folder / "vit.onnx", dynamo=False), folder))
    for name, parameter in model.named_parameters():
        if name in found:
            np.testing.assert_array_equal(found[name], parameter.detach().numpy())
    assert {"blocks.0.norm1.weight", "patch_embed.proj.weight", "head.weight"} <= set(found)
    assert all(array.dtype == np.float32 and array.size > 1 for array in found.values())


@pytest.mark.parametrize("kind", ["dynamic", "qdq", "qoperator"])
def test_int8_weights_are_close_to_the_float_ones(float_path, kind, folder):
    expected = tensors(read_model(float_path, folder))
    model = onnx.load(zoo.quantize(float_path, folder / f"{float_path.stem}-{kind}.onnx", kind))
    found = tensors(model)
    quantised = {
        name.removesuffix("_quantized") for name in (t.name for t in model.graph.initializer) if "_quantized" in name
    }
    assert len(quantised) > 5
    matrices = {name for name, array in expected.items() if array.ndim > 1 and name in quantised}
    assert matrices
    for name in matrices:
        wanted = expected[name]
        if kind == "dynamic" and wanted.ndim == 2:
            wanted = wanted.T if wanted.shape != found[name].shape else wanted  # Gemm became MatMulInteger.
        assert found[name].shape == wanted.shape
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - wanted).max() < np.abs(wanted).max() / 100
    assert set(expected) <= set(found)


def _graph(nodes, initializers, opset=21):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1])], [value("y", TensorProto.FLOAT, None)], initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def test_dequantisation_per_axis_and_per_block():
    value = np.arange(12, dtype=np.int8).reshape(2, 6)
    scale, zero = np.array([0.5, 2], np.float32), np.array([1, 0], np.int8)
    blocks = np.array([[1, 10], [100, 1000]], np.float32)
    stored = [
        numpy_helper.from_array(a, n) for n, a in (("w", value), ("s", scale), ("z", zero), ("v", value), ("b", blocks))
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["v", "b"], ["vf"], axis=1, block_size=3),
    ]
    found = tensors(_graph(nodes, stored))
    np.testing.assert_array_equal(found["w"], (value - zero[:, None]) * scale[:, None])
    np.testing.assert_array_equal(found["v"], value * np.repeat(blocks, 3, axis=1))
    assert set(found) == {"w", "v"}


def test_half_precision_and_constants_become_float32():
    half = numpy_helper.from_array(np.array([1.5, 2.5], np.float16), "half")
    brain = helper.make_tensor("brain", TensorProto.BFLOAT16, [2], [1.5, -2.0])
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((2, 2), np.float32)))
    found = tensors(_graph([constant], [half, brain]))
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(("half", "brain", "c"), np.float32)
    np.testing.assert_array_equal(found["brain"], [1.5, -2.0])


def test_a_scale_of_the_wrong_length_is_corrupt():
    stored = [
        numpy_helper.from_array(np.ones((2, 3), np.int8), "w"),
        numpy_helper.from_array(np.ones(5, np.float32), "s"),
    ]
    with pytest.raises(CorruptModel, match=r"scale of shape \(5,\)"):
        tensors(_graph([helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0)], stored))


def test_reading_weights_does_not_import_torch():
    code = "import sys, fp_audit_adapters._onnx as o; o.tensors, o.read_model; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
