import json

import numpy as np
import onnx
import pytest
import torch
from attack_victims import KINDS, data, tensors, victim
from onnx import TensorProto

from fp_audit.attacking import attack
from fp_audit.attacks.quantise import _sizes, round_weights
from fp_audit.errors import UnsupportedModel

WEIGHTS = {"huggingface": 20_000, "onnx": 6_700}


def quantised(kind, out, **options):
    provenance = attack("quantise", str(victim(kind)), data(), out, options=options)
    return provenance, onnx.load(out / "model.onnx")


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["huggingface", "onnx"])
def test_the_weights_have_eight_bits(kind, mode, tmp_path):
    provenance, model = quantised(kind, tmp_path / "out", mode=mode, calibration=64)
    small = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8]
    large = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    count = sum(int(np.prod(tensor.dims)) for tensor in small)
    assert count > WEIGHTS[kind]
    assert all(len(tensor.dims) < 2 for tensor in large)
    assert provenance.surrogate["facts"]["int8_values"] == count
    assert provenance.fidelity.agreement > 0.95
    assert provenance.surrogate["facts"]["exporter"] == ("none" if kind == "onnx" else "dynamo")


def test_static_mode_writes_qdq_and_dynamic_mode_integer_operators(tmp_path):
    _, static = quantised("onnx", tmp_path / "static", mode="static")
    _, dynamic = quantised("onnx", tmp_path / "dynamic", mode="dynamic")
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= {node.op_type for node in static.graph.node}
    assert {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger"} <= {node.op_type for node in dynamic.graph.node}


def test_one_scale_a_channel(tmp_path):
    _, model = quantised("onnx", tmp_path / "out", mode="static", per_channel=True)
    scales = {tuple(tensor.dims) for tensor in model.graph.initializer if tensor.name.endswith("_scale")}
    assert {(12,), (16,), (32,), (10,)} <= scales


def test_the_legacy_exporter_steps_in_and_says_why(tmp_path, monkeypatch):
    export = torch.onnx.export

    def failing(*args, dynamo, **options):
        if dynamo:
            raise torch.onnx.OnnxExporterError("no such operator\nand much more")
        return export(*args, dynamo=False, **options)

    monkeypatch.setattr(torch.onnx, "export", failing)
    provenance, _ = quantised("huggingface", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert written["surrogate"]["preprocess"]["mean"] == [0.5]  # what the file cannot say
    assert written["surrogate"]["facts"]["exporter"] == "legacy (no such operator)"
    assert provenance.fidelity.agreement > 0.95


def test_a_graph_of_fixed_batch_size_is_calibrated(tmp_path):
    model = onnx.load(victim("onnx") / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 7
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "fixed.onnx")
    options = {"mode": "static", "calibration": 20}
    provenance = attack("quantise", str(tmp_path / "fixed.onnx"), data(), tmp_path / "out", options=options)
    assert provenance.fidelity.agreement > 0.95


def test_a_graph_without_weights_is_refused(tmp_path):
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("GlobalMaxPool", ["x"], ["y"])],
        "pooling",
        [onnx.helper.make_tensor_value_info("x", floats, ["n", 1, 16, 16])],
        [onnx.helper.make_tensor_value_info("y", floats, ["n", 1, 1, 1])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel, match="nothing in the graph that it quantises"):
        _sizes(tmp_path / "m.onnx")


def nearest(values, digits, least):
    """Round to a significand of ``digits`` bits (ties to even) and an exponent of at least ``least``, in float64."""
    exponent = np.maximum(np.floor(np.log2(np.where(values == 0, 1.0, np.abs(values.astype(np.float64))))), least)
    unit = 2.0 ** (exponent - digits + 1)
    return np.where(values == 0, 0.0, np.rint(values.astype(np.float64) / unit) * unit).astype(np.float32)


@pytest.mark.parametrize(("mode", "digits", "least"), [("fp16", 11, -14), ("bf16", 8, -126)])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_rounded_to_16_bits(kind, mode, digits, least, tmp_path):
    provenance = attack("quantise", str(victim(kind)), data(), tmp_path / "out", options={"mode": mode})
    before, after = tensors(victim(kind)), tensors(tmp_path / "out")
    floats = [name for name in before if before[name].dtype == np.float32]
    for name in floats:
        np.testing.assert_array_equal(after[name], nearest(before[name], digits, least))
    count = sum(int((before[name] != after[name]).sum()) for name in floats)
    assert provenance.surrogate == {"adapter": kind, "preprocess": None, "facts": {"rounded_values": count}}
    assert count > 6_000
    assert provenance.fidelity.agreement > 0.95


def test_what_half_precision_cannot_hold_is_refused():
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 1e5)
    with pytest.raises(UnsupportedModel, match="weight holds values beyond the largest of fp16, 65504"):
        round_weights(layer, "fp16")
    assert round_weights(layer, "bf16") > 0
