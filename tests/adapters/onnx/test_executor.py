"""What the executor promises beyond equal numbers."""

import numpy as np
import pytest
import torch
from adapters.onnx import zoo
from onnx import TensorProto, helper, numpy_helper

from fp_audit.errors import CorruptModel, UnsupportedModel
from fp_audit_adapters._onnx import OnnxModule
from fp_audit_adapters._onnx.executor import GraphModule

IMAGES = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def node(operator, inputs, outputs, **attributes):
    return helper.make_node(operator, inputs, outputs, name=f"{operator}-{outputs[0]}", **attributes)


def stored(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def value(name, shape=None, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def classifier(nodes, *initializers, kind=TensorProto.FLOAT, opset=17, shape=("n", 3, 4, 4)):
    """Nodes from ``images`` to ``logits``."""
    graph = helper.make_graph(
        nodes, "g", [value("images", shape, kind)], [value("logits", ["n", 2], kind)], initializers
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


WEIGHT = np.random.default_rng(0).normal(size=(48, 2)).astype(np.float32)
HEAD = [node("Flatten", ["images"], ["flat"]), node("MatMul", ["flat", "w"], ["product"])]


def test_nothing_after_the_layer_is_run():
    model = classifier(
        [*HEAD, node("Add", ["product", "b"], ["sum"]), node("Reshape", ["sum", "wrong"], ["logits"])],
        stored("w", WEIGHT),
        stored("b", np.float32([1, 2])),
        stored("wrong", np.int64([7, 7])),
    )
    module = OnnxModule(model)
    (layer,) = module.layers()
    assert layer == "MatMul-product"
    expected = IMAGES.flatten(1) @ torch.from_numpy(WEIGHT) + torch.tensor([1.0, 2.0])
    torch.testing.assert_close(module.activations(IMAGES, layer), expected)  # With its bias.
    with pytest.raises(CorruptModel, match=r"node Reshape-logits \(Reshape\) cannot be computed"):
        module(IMAGES)


def test_weights_in_constant_nodes_are_parameters_and_written_back():
    constant = helper.make_node("Constant", [], ["w"], value=stored("", WEIGHT))
    model = classifier([constant, *HEAD[:1], node("MatMul", ["flat", "w"], ["logits"])])
    module = OnnxModule(model)
    assert list(module.weight_names.values()) == ["w"]
    with torch.no_grad():
        next(module.parameters()).mul_(2)
    saved = module.write_back(model)
    torch.testing.assert_close(zoo.runtime(saved, IMAGES), module(IMAGES).detach())
    torch.testing.assert_close(zoo.runtime(model, IMAGES) * 2, module(IMAGES).detach())


def test_structure_and_statistics_are_no_parameters():
    model = classifier(
        [
            node("BatchNormalization", ["images", "scale", "shift", "mean", "var"], ["normal"]),
            node("Div", ["normal", "root"], ["scaled"]),
            node("Clip", ["scaled", "low", ""], ["clipped"]),
            node("Flatten", ["clipped"], ["flat"]),
            node("MatMul", ["flat", "w"], ["logits"]),
        ],
        stored("w", WEIGHT),
        stored("root", np.float32(1.4142135)),
        stored("low", np.float32(-1)),
        *[stored(name, np.float32([1, 2, 3])) for name in ("scale", "shift", "mean", "var")],
    )
    module = OnnxModule(model).train()
    assert set(module.weight_names.values()) == {"w", "scale", "shift"}
    before = module(IMAGES).detach()
    assert torch.equal(module(IMAGES), before)
    torch.testing.assert_close(before, zoo.runtime(model, IMAGES))


def test_half_precision_graphs_take_and_keep_halves():
    model = classifier(
        [*HEAD[:1], node("MatMul", ["flat", "w"], ["logits"])],
        stored("w", WEIGHT.astype(np.float16)),
        kind=TensorProto.FLOAT16,
    )
    module = OnnxModule(model)
    assert module(IMAGES).dtype == torch.float16
    saved = module.write_back(model)
    assert saved.SerializeToString() == model.SerializeToString()


@pytest.mark.parametrize("flag", [True, False])
def test_branches_read_the_values_and_weights_around_them(flag):
    def branch(operator, name):
        inner = [node(operator, ["product", f"own-{name}"], [f"result-{name}"])]
        return helper.make_graph(
            inner, name, [], [value(f"result-{name}")], [stored(f"own-{name}", np.float32([3, 4]))]
        )

    condition = helper.make_node("Constant", [], ["flag"], value=stored("", np.array(flag)))
    choice = node("If", ["flag"], ["logits"], then_branch=branch("Add", "then"), else_branch=branch("Mul", "else"))
    model = classifier([*HEAD, condition, choice], stored("w", WEIGHT))
    torch.testing.assert_close(OnnxModule(model)(IMAGES).detach(), zoo.runtime(model, IMAGES))


def test_loops_run_as_often_as_they_say():
    body = helper.make_graph(
        [node("Add", ["state", "product"], ["next"]), node("Identity", ["go"], ["again"])],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state", ["n", 2])],
        [value("again", [], TensorProto.BOOL), value("next", ["n", 2])],
    )
    loop = node("Loop", ["count", "", "product"], ["logits"], body=body)
    model = classifier([*HEAD, loop], stored("w", WEIGHT), stored("count", np.int64(3)))
    torch.testing.assert_close(OnnxModule(model)(IMAGES).detach(), zoo.runtime(model, IMAGES))


def test_gradients_pass_straight_through_quantisers_and_stop_at_their_limits():
    quantisers = [
        node("QuantizeLinear", ["images", "scale", "zero"], ["level"]),
        node("DequantizeLinear", ["level", "scale", "zero"], ["real"]),
    ]
    model = classifier(
        [*quantisers, node("Flatten", ["real"], ["flat"]), node("MatMul", ["flat", "w"], ["logits"])],
        stored("w", WEIGHT),
        stored("scale", np.float32(1 / 256)),
        stored("zero", np.int8(0)),
    )
    images = IMAGES.clone().requires_grad_()
    OnnxModule(model)(images).sum().backward()
    inside = ((images * 256).round().clamp(-128, 127) == (images * 256).round()).flatten(1)
    expected = torch.from_numpy(WEIGHT).sum(1) * inside
    torch.testing.assert_close(images.grad.flatten(1), expected)
    assert 0 < inside.float().mean() < 1


def test_quantised_activations_are_given_as_real_numbers(tmp_path):
    """A layer of a QLinear graph equals the float layer up to the steps of the quantiser."""
    path = zoo.export(zoo.build("timm-resnet"), tmp_path / "float.onnx", dynamo=False)
    float_module = OnnxModule(zoo.onnx.load(path))
    int8_module = OnnxModule(zoo.onnx.load(zoo.quantize(path, tmp_path / "int8.onnx", "qoperator")))
    images = zoo.sample(4, seed=3)
    found = {name.removesuffix("_quant"): name for name in int8_module.layers()}
    shared = [name for name in float_module.layers() if name in found][:3]
    assert shared
    with torch.no_grad():
        for name in shared:
            actual, expected = int8_module.activations(images, found[name]), float_module.activations(images, name)
            # Activations that were fused with a Relu are cut at zero.
            assert (actual - expected.clamp(min=float(actual.min()))).abs().max() < expected.abs().max() / 10


def test_quantised_weights_stay_as_they_are(tmp_path):
    path = zoo.export(zoo.build("timm-vit"), tmp_path / "float.onnx", dynamo=False)
    model = zoo.onnx.load(zoo.quantize(path, tmp_path / "int8.onnx", "dynamic"))
    module = OnnxModule(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    saved = {tensor.name: tensor.raw_data for tensor in module.write_back(model).graph.initializer}
    int8 = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_quantized")]
    assert int8
    assert all(saved[tensor.name] == tensor.raw_data for tensor in int8)


def test_per_sample_gradients_by_torch_func():
    model = classifier([*HEAD[:1], node("MatMul", ["flat", "w"], ["logits"])], stored("w", WEIGHT))
    module = OnnxModule(model)
    parameters = {
        key: torch.stack([parameter.detach(), parameter.detach() * 2]) for key, parameter in module.named_parameters()
    }
    both = torch.func.vmap(lambda weights: torch.func.functional_call(module, weights, (IMAGES,)))(parameters)
    torch.testing.assert_close(both[1], both[0] * 2)


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        (
            [node("Relu", ["later"], ["logits"]), node("Flatten", ["images"], ["later"])],
            CorruptModel,
            "read before any node",
        ),
        ([*HEAD, node("Relu", ["product"], ["flat"])], CorruptModel, "written twice"),
        ([node("Flatten", ["images"], ["logits"], colour=3)], UnsupportedModel, "attribute 'colour'"),
        ([node("Cast", ["images"], ["logits"], to=TensorProto.STRING)], UnsupportedModel, "element type STRING"),
    ],
)
def test_graphs_that_contradict_themselves(nodes, error, message):
    with pytest.raises(error, match=message):
        GraphModule(classifier(nodes, stored("w", WEIGHT)))


def test_sparse_initialisers_are_filled_up():
    values = stored("s", np.float32([5, 7]))
    model = classifier([node("Flatten", ["images"], ["flat"]), node("Gemm", ["flat", "s"], ["logits"])])
    sparse = helper.make_sparse_tensor(values, stored("", np.int64([[0, 0], [47, 1]])), [48, 2])
    model.graph.sparse_initializer.append(sparse)
    flat = IMAGES.flatten(1)
    torch.testing.assert_close(OnnxModule(model)(IMAGES).detach(), torch.stack([flat[:, 0] * 5, flat[:, 47] * 7], 1))
