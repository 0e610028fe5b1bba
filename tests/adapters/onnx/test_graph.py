"""Reading files that are hostile, damaged, or no image classifiers."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fp_audit.errors import CorruptModel, UnsafeModel, UnsupportedModel
from fp_audit_adapters._onnx import describe, read_model, tensors
from fp_audit_adapters._onnx.executor import GraphModule
from fp_audit_adapters._onnx.graph import CONTRIB_OPERATORS
from fp_audit_adapters._onnx.ops import registered

WEIGHT = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
SECRET = b"secret!!" * 64


def external(name="w", location="weights.bin", dims=(2, 3, 2, 2), kind=TensorProto.FLOAT, **entries):
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def build(weight=None, nodes=(), functions=(), domains=(), sparse=(), inputs=None, outputs=None, opset=17):
    """A classifier of one convolution and a mean over the image, with additions."""
    value = helper.make_tensor_value_info
    chain = [
        helper.make_node("Conv", ["images", "w"], ["maps"], "conv"),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"], "pool"),
        helper.make_node("Flatten", ["means"], ["logits"], "flat"),
        *nodes,
    ]
    graph = helper.make_graph(
        chain,
        "classifier",
        inputs or [value("images", TensorProto.FLOAT, ["n", 3, 4, 4])],
        outputs or [value("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(WEIGHT, "w") if weight is None else weight],
        sparse_initializer=list(sparse),
    )
    imports = [helper.make_opsetid("", opset), *[helper.make_opsetid(domain, 1) for domain in domains]]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=9)


def save(model, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def root(tmp_path):
    """A model's folder, beside which lies something that is nobody's business."""
    (tmp_path / "secret.bin").write_bytes(SECRET)
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def read(model, root):
    return read_model(save(model, root), root)


def in_sparse(tensor):
    tensor.name = "s"
    indices = numpy_helper.from_array(np.arange(4), "")
    tensor.dims[:] = [4]
    return build(sparse=[onnx.SparseTensorProto(values=tensor, indices=indices, dims=[8])])


def in_sparse_indices(tensor):
    tensor.data_type = TensorProto.INT64
    tensor.dims[:] = [4]
    values = numpy_helper.from_array(np.ones(4, np.float32), "s")
    return build(sparse=[onnx.SparseTensorProto(values=values, indices=tensor, dims=[8])])


def in_attribute(tensor):
    return build(nodes=[helper.make_node("Constant", [], ["c"], value=tensor)])


def in_sparse_attribute(tensor):
    tensor.dims[:] = [4]
    sparse = onnx.SparseTensorProto(values=tensor, indices=numpy_helper.from_array(np.arange(4), ""), dims=[8])
    return build(nodes=[helper.make_node("Constant", [], ["c"], sparse_value=sparse)])


def branch(tensor):
    return helper.make_graph(
        [helper.make_node("Identity", [tensor.name], ["taken"])],
        "branch",
        [],
        [helper.make_tensor_value_info("taken", TensorProto.FLOAT, None)],
        [tensor],
    )


def in_subgraph(tensor):
    tensor.name = "inner"
    condition = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    node = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch(tensor), else_branch=branch(tensor))
    return build(nodes=[condition, node])


def in_function(tensor):
    body = [helper.make_node("Constant", [], ["y"], value=tensor)]
    function = helper.make_function("local", "Stored", [], ["y"], body, [helper.make_opsetid("", 17)])
    return build(nodes=[helper.make_node("Stored", [], ["c"], domain="local")], functions=[function], domains=["local"])


def in_training_info(tensor):
    model = build()
    model.training_info.add().initialization.initializer.append(tensor)
    return model


PLACES = [
    build,
    in_sparse,
    in_sparse_indices,
    in_attribute,
    in_sparse_attribute,
    in_subgraph,
    in_function,
    in_training_info,
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize(
    "location", ["../secret.bin", "a/../../secret.bin", "..\\secret.bin", "ABSOLUTE", "link.bin", "dir/secret.bin"]
)
def test_data_outside_the_root_are_refused_wherever_they_are(place, location, root, monkeypatch):
    secret = root.parent / "secret.bin"
    (root / "link.bin").symlink_to(secret)
    (root / "dir").symlink_to(root.parent)
    opened = []
    real_open = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: opened.append(path) or real_open(path, *rest, **more))
    path = save(place(external(location=str(secret) if location == "ABSOLUTE" else location)), root)
    with pytest.raises(UnsafeModel, match="external data of tensor"):
        read_model(path, root)
    assert secret not in map(Path, map(str, opened))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_data_inside_the_root_are_read_in(place, root):
    (root / "weights.bin").write_bytes(np.arange(24, dtype=np.int64).tobytes())
    model = read(place(external(name="w")), root)
    assert b"weights.bin" not in model.SerializeToString()


def test_external_bytes_are_the_values(root):
    (root / "weights.bin").write_bytes(b"....." + WEIGHT.tobytes())
    model = read(build(external(offset=5, length=96)), root)
    np.testing.assert_array_equal(tensors(model)["w"], WEIGHT)


def test_a_link_inside_the_root_is_followed(root):
    """As in a hub cache, where snapshots link to blobs; the root is the folder that holds both."""
    (root / "blobs").mkdir()
    (root / "snapshot").mkdir()
    (root / "blobs" / "1").write_bytes(WEIGHT.tobytes())
    (root / "snapshot" / "weights.bin").symlink_to("../blobs/1")
    (root / "blobs" / "2").write_bytes(build(external()).SerializeToString())
    (root / "snapshot" / "model.onnx").symlink_to("../blobs/2")
    assert read_model(root / "snapshot" / "model.onnx", root)
    with pytest.raises(UnsafeModel, match="leads out of"):
        read_model(root / "snapshot" / "model.onnx", root / "snapshot")


def test_a_pipe_is_no_data_file(root):
    os.mkfifo(root / "weights.bin")
    with pytest.raises(UnsafeModel, match="not a regular file"):
        read(build(external()), root)
    os.mkfifo(root / "pipe.onnx")
    with pytest.raises(UnsafeModel, match="not a regular file"):
        read_model(root / "pipe.onnx", root)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": 8}, "ends at byte 104"),
        ({"offset": 10**15}, "ends at byte"),
        ({"length": 95}, "takes 96 bytes, its entry says 95"),
        ({"length": 10**12}, "takes 96 bytes"),
        ({"offset": -4}, "has the offset '-4'"),
        ({"offset": "1e3"}, "has the offset '1e3'"),
        ({"length": "9" * 40}, "has the length"),
        ({"location": "gone.bin"}, "is missing"),
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": 4096}, "is missing"),
        ({"location": ""}, "is no file name"),
        ({"dims": (-2, 3)}, "has the shape"),
        ({"kind": TensorProto.STRING}, "has no packed form"),
        ({"kind": 99}, "has the element type 99"),
    ],
)
def test_entries_that_make_no_sense_are_corrupt(entries, message, root):
    (root / "weights.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(CorruptModel, match=message):
        read(build(external(**entries)), root)


def test_the_sum_of_external_data_is_limited(root):
    (root / "weights.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(UnsupportedModel, match="96 bytes of external data"):
        read_model(save(build(external()), root), root, max_external_bytes=95)


def test_a_large_file_is_not_read(root):
    with pytest.raises(UnsupportedModel, match="the limit is 100"):
        read_model(save(build(), root), root, max_bytes=100)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no graph"),
        (b"This is not a model, it is a text that somebody renamed.\n", "no ONNX file, or is cut off"),
        (b"PK\x03\x04" + bytes(64), "no ONNX file, or is cut off|holds no graph"),
        (helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString(), "holds no graph"),
    ],
    ids=["empty", "text", "zip", "no-nodes"],
)
def test_files_that_are_no_models(content, message, root):
    (root / "model.onnx").write_bytes(content)
    with pytest.raises(CorruptModel, match=message):
        read_model(root / "model.onnx", root)


def test_every_truncation_is_corrupt(root):
    data = build().SerializeToString()
    for length in range(0, len(data) - 1, 7):
        (root / "model.onnx").write_bytes(data[:length])
        with pytest.raises((CorruptModel, UnsupportedModel)):
            read_model(root / "model.onnx", root)


def test_a_tensor_that_lacks_bytes_is_corrupt(root):
    weight = numpy_helper.from_array(WEIGHT, "w")
    weight.raw_data = weight.raw_data[:-4]
    with pytest.raises(CorruptModel, match="needs 96 bytes and has 92"):
        read(build(weight), root)


def test_a_missing_file(root):
    with pytest.raises(CorruptModel, match="cannot be opened"):
        read_model(root / "model.onnx", root)


@pytest.mark.parametrize(
    ("node", "name"),
    [
        (helper.make_node("Decode", ["logits"], ["z"], domain="evil.ops"), "evil.ops.Decode"),
        (helper.make_node("EPContext", ["logits"], ["z"], domain="com.microsoft"), "com.microsoft.EPContext"),
        (helper.make_node("Nonesuch", ["logits"], ["z"]), "Nonesuch"),
    ],
)
def test_custom_operators_are_named(node, name, root):
    with pytest.raises(UnsupportedModel, match=rf"custom operators \({name}\)"):
        read(build(nodes=[node], domains=[node.domain] if node.domain else []), root)


def test_custom_operators_in_subgraphs_and_functions_are_named(root):
    inner = helper.make_node("Hidden", [], ["y"], domain="evil.ops")
    function = helper.make_function("local", "Call", [], ["y"], [inner], [helper.make_opsetid("evil.ops", 1)])
    model = build(
        nodes=[helper.make_node("Call", [], ["z"], domain="local")], functions=[function], domains=["local", "evil.ops"]
    )
    with pytest.raises(UnsupportedModel, match=r"evil\.ops\.Hidden"):
        read(model, root)


def test_a_newer_opset_asks_for_an_upgrade(root):
    with pytest.raises(UnsupportedModel, match=r"opset 999; .* upgrade onnx"):
        read(build(opset=999), root)


def test_inconsistent_graphs_are_refused_by_the_checker(root):
    with pytest.raises(CorruptModel, match="checker"):
        read(build(nodes=[helper.make_node("Relu", ["nothing"], ["z"])]), root)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(TensorProto.INT64, ["n", 128]), (TensorProto.FLOAT, ["n", 128]), (TensorProto.UINT8, ["n", 3, 4, 4])],
)
def test_inputs_that_are_no_images(kind, shape, root):
    with pytest.raises(UnsupportedModel, match=r"the graph takes tokens .* expected one float input of N x C x H x W"):
        describe(build(inputs=[helper.make_tensor_value_info("tokens", kind, shape)]))


def test_outputs_that_are_no_scores():
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["n", 2, 3, 3])
    with pytest.raises(UnsupportedModel, match=r"the graph returns maps float\[N,2,3,3\]; expected N x K class scores"):
        describe(build(outputs=[maps]))


def test_description():
    value = helper.make_tensor_value_info
    softmax = helper.make_node("Softmax", ["logits"], ["scores"])
    model = build(
        nodes=[softmax],
        inputs=[value("images", TensorProto.FLOAT, ["n", 3, 4, 4]), value("w", TensorProto.FLOAT, [2, 3, 2, 2])],
        outputs=[value("maps", TensorProto.FLOAT, ["n", 2, 3, 3]), value("scores", TensorProto.FLOAT, ["n", 2])],
    )
    spec = describe(model)
    assert (spec.input_name, spec.input_shape, spec.input_dtype) == ("images", (None, 3, 4, 4), "float32")
    assert (spec.output_name, spec.output_names, spec.classes) == ("scores", ("maps", "scores"), 2)
    assert (spec.probabilities, spec.opset) == (True, 17)


def test_the_executor_names_all_operators_that_it_lacks():
    nodes = [
        helper.make_node("DFT", ["maps"], ["a"]),
        helper.make_node("NonMaxSuppression", ["maps", "maps"], ["b"]),
    ]
    with pytest.raises(UnsupportedModel, match="no operator DFT, NonMaxSuppression"):
        GraphModule(build(nodes=nodes))


def test_reader_and_executor_know_the_same_contrib_operators():
    assert {name for domain, name in registered() if domain == "com.microsoft"} == CONTRIB_OPERATORS
