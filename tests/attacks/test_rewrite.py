import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fp_audit.attacks._rewrite import Graph, fold, permute, rescale, with_outputs
from fp_audit.errors import UnsupportedModel

RNG = np.random.default_rng(0)


def made(nodes, shape, **stored):
    """A graph of (operator, inputs, output, attributes) from x to y, its constants given by name."""
    graph = helper.make_graph(
        [helper.make_node(kind, inputs.split(), [output], **attributes) for kind, inputs, output, attributes in nodes],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, shape):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((3, *shape)).astype(np.float32)})[0]


def drawn(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def norm(name, channels):
    parts = {"s": drawn(channels), "b": drawn(channels), "m": drawn(channels), "v": drawn(channels) ** 2 + 0.1}
    return {f"{name}{part}": value for part, value in parts.items()}


def perceptron():
    nodes = [("Gemm", "x w1 b1", "h", {"transB": 1}), ("Relu", "h", "r", {}), ("MatMul", "r w2", "y", {})]
    return made(nodes, (4,), w1=drawn(6, 4), b1=drawn(6), w2=drawn(6, 3)), (4,)


def convolutions():
    """Convolution, BatchNorm, depthwise convolution, pooling, convolution, flattening, head."""
    nodes = [
        ("Conv", "x w1", "c1", {}),
        ("BatchNormalization", "c1 ns nb nm nv", "n1", {}),
        ("Relu", "n1", "r1", {}),
        ("Conv", "r1 w2 b2", "c2", {"group": 6, "pads": [1, 1, 1, 1]}),
        ("MaxPool", "c2", "p2", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", "p2 w3 b3", "c3", {}),
        ("LeakyRelu", "c3", "r3", {"alpha": 0.2}),
        ("Reshape", "r3 flat", "f", {}),
        ("Gemm", "f w4", "y", {"transB": 1}),
    ]
    stored = {"w1": drawn(6, 1, 3, 3), **norm("n", 6), "w2": drawn(6, 1, 3, 3), "b2": drawn(6)}
    stored |= {"w3": drawn(5, 6, 2, 2), "b3": drawn(5), "flat": np.array([-1, 20]), "w4": drawn(3, 20)}
    return made(nodes, (1, 8, 8), **stored), (1, 8, 8)


def gated():
    """SiLU, and a bias that is a node of its own."""
    nodes = [
        ("Conv", "x w1", "c", {}),
        ("Add", "c b1", "a", {}),
        ("Sigmoid", "a", "g", {}),
        ("Mul", "a g", "s", {}),
        ("ReduceMean", "s axes", "m", {"keepdims": 1}),
        ("Conv", "m w2", "z", {}),
        ("Flatten", "z", "y", {}),
    ]
    stored = {"w1": drawn(6, 1, 3, 3), "b1": drawn(6, 1, 1), "axes": np.array([-2, -1]), "w2": drawn(3, 6, 1, 1)}
    return made(nodes, (1, 8, 8), **stored), (1, 8, 8)


def tokens():
    """The two layers of a transformer's perceptron, on N x T x C."""
    nodes = [("MatMul", "x w1", "m", {}), ("Add", "m b1", "a", {}), ("Gelu", "a", "g", {}), ("MatMul", "g w2", "y", {})]
    return made(nodes, (7, 4), w1=drawn(4, 6), b1=drawn(6), w2=drawn(6, 4)), (7, 4)


CASES = {"perceptron": (perceptron, 1, 1), "convolutions": (convolutions, 2, 2), "gated": (gated, 1, 0)}
CASES |= {"tokens": (tokens, 1, 0)}


@pytest.mark.parametrize("case", CASES)
def test_permuted_channels_give_the_same_answers(case):
    build, links, _ = CASES[case]
    model, shape = build()
    graph = Graph(model)
    assert permute(graph, np.random.default_rng(3)) == links
    changed = graph.written()
    np.testing.assert_allclose(run(changed, shape), run(model, shape), rtol=1e-4, atol=1e-4)
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for tensor in changed.graph.initializer:
        after = numpy_helper.to_array(tensor)
        if after.dtype == np.float32 and tensor.name != "axes":
            assert not np.array_equal(after, before[tensor.name])
            assert np.array_equal(np.sort(after, axis=None), np.sort(before[tensor.name], axis=None))


@pytest.mark.parametrize("case", CASES)
def test_rescaled_channels_give_the_same_answers(case):
    build, _, links = CASES[case]
    model, shape = build()
    graph = Graph(model)
    assert rescale(graph, np.random.default_rng(3), 4.0) == links
    np.testing.assert_allclose(run(graph.written(), shape), run(model, shape), rtol=1e-4, atol=1e-4)


def test_rows_and_columns_take_the_same_order_and_opposite_factors():
    model, _ = perceptron()
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    graph = Graph(model)
    permute(graph, np.random.default_rng(3))
    order = np.random.default_rng(3).permutation(6)
    np.testing.assert_array_equal(graph.stored["w1"], before["w1"][order])
    np.testing.assert_array_equal(graph.stored["b1"], before["b1"][order])
    np.testing.assert_array_equal(graph.stored["w2"], before["w2"][order])
    graph = Graph(model)
    rescale(graph, np.random.default_rng(3), 4.0)
    factors = graph.stored["b1"] / before["b1"]
    assert ((factors >= 0.25) & (factors <= 4)).all()
    np.testing.assert_allclose(graph.stored["w1"], before["w1"] * factors[:, None], rtol=1e-5)
    np.testing.assert_allclose(graph.stored["w2"], before["w2"] / factors[:, None], rtol=1e-5)


def test_a_constant_without_axes_stays_one():
    nodes = [("MatMul", "x w1", "m", {}), ("Gather", "m first", "g", {"axis": 1}), ("Gemm", "g w2", "y", {})]
    model = made(nodes, (7, 4), w1=drawn(4, 6), first=np.array(0), w2=drawn(6, 3))
    np.testing.assert_array_equal(run(Graph(model).written(), (7, 4)), run(model, (7, 4)))


def test_channels_that_two_layers_read_stay():
    nodes = [
        ("Conv", "x w1", "c", {}),
        ("Relu", "c", "r", {}),
        ("Conv", "r w2", "d", {}),
        ("Add", "r d", "s", {}),
        ("Flatten", "s", "y", {}),
    ]
    model = made(nodes, (1, 8, 8), w1=drawn(4, 1, 3, 3), w2=drawn(4, 4, 1, 1))
    assert list(Graph(model).links()) == []


def test_tokens_that_are_joined_are_no_flattened_channels():
    nodes = [("MatMul", "x w1", "m", {}), ("Reshape", "m flat", "f", {}), ("MatMul", "f w2", "y", {})]
    model = made(nodes, (7, 4), w1=drawn(4, 6), flat=np.array([-1, 42]), w2=drawn(42, 3))
    assert list(Graph(model).links()) == []


def test_a_constant_that_several_layers_share_is_copied():
    nodes = [
        ("Gemm", "x w b", "h", {}),
        ("Relu", "h", "r", {}),
        ("Gemm", "r w b", "i", {}),
        ("Relu", "i", "s", {}),
        ("Gemm", "s w b", "y", {}),
    ]
    model = made(nodes, (5,), w=drawn(5, 5), b=drawn(5))
    graph = Graph(model)
    assert permute(graph, np.random.default_rng(3)) == 2
    np.testing.assert_allclose(run(graph.written(), (5,)), run(model, (5,)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_folded_normalisation_gives_the_same_answers(kind, bias):
    shape = (1, 8, 8) if kind == "Conv" else (9,)
    inputs = "x w b" if bias else "x w"
    nodes = [(kind, inputs, "c", {}), ("BatchNormalization", "c ns nb nm nv", "n", {}), ("Relu", "n", "y", {})]
    stored = {"w": drawn(6, 1, 3, 3) if kind == "Conv" else drawn(9, 6), **({"b": drawn(6)} if bias else {})}
    model = made(nodes, shape, **stored, **norm("n", 6))
    graph = Graph(model)
    assert fold(graph) == 1
    changed = graph.written()
    assert [node.op_type for node in changed.graph.node] == [kind, "Relu"]
    np.testing.assert_allclose(run(changed, shape), run(model, shape), rtol=1e-4, atol=1e-4)


def test_a_last_layer_gets_another_number_of_outputs():
    nodes = [("Gemm", "x w", "h", {"transB": 1}), ("MatMul", "h v", "m", {}), ("Add", "b m", "y", {})]
    model = made(nodes, (4,), w=drawn(6, 4), v=drawn(6, 10), b=drawn(10))
    graph = Graph(model)
    with_outputs(graph, 3, np.random.default_rng(0))
    assert run(graph.written(), (4,)).shape == (3, 3)
    assert graph.stored["v"].shape == (6, 3)
    assert abs(graph.stored["v"]).max() <= 6**-0.5
    assert abs(graph.stored["b"]).max() <= 6**-0.5
    np.testing.assert_array_equal(graph.stored["w"], numpy_helper.to_array(model.graph.initializer[0]))


def test_a_last_layer_that_is_not_linear_is_refused():
    model, _ = gated()
    with pytest.raises(UnsupportedModel, match="no linear layer straight before its logits"):
        with_outputs(Graph(model), 3, np.random.default_rng(0))


def test_a_graph_with_control_flow_is_refused():
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "branch",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    model = made([("If", "c", "y", {"then_branch": branch, "else_branch": branch})], (4,), c=np.array(True))
    with pytest.raises(UnsupportedModel, match="control flow"):
        Graph(model)
