"""The node tests of the ONNX project (shipped inside the ``onnx`` package) against the torch executor."""

import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import DATA_DIR, load_node_model_tests

from fp_audit.errors import UnsupportedModel
from fp_audit_adapters._onnx.executor import GraphModule
from fp_audit_adapters._onnx.ops import registered

EXPECTED_FAILURES = {
    "_uint16": "torch computes nothing in uint16",
    "_uint32": "torch computes nothing in uint32",
    "_uint64": "torch computes nothing in uint64",
    "test_bitwise_not_3d": "torch computes nothing in uint16",
    "training_mode": "BatchNormalization in training mode is refused",
    "test_training_dropout": "Dropout at training time",
    "window_symmetric": "onnx's own expansion of the window functions casts to type 0",
}
"""A part of a test's name to the reason why it is allowed to fail. A test that passes is counted all the same."""

FLOOR = 1580
"""How many tests passed when this was written; more is fine."""

LOOSE = {torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Relative tolerance of half-precision results: expected values were computed step by step in numpy."""


@dataclass
class Tally:
    passed: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unsupported: Counter[str] = field(default_factory=Counter)
    operators: set[tuple[str, str]] = field(default_factory=set)


def to_tensor(value):
    """Test data (array, proto, or list of these) as tensors."""
    if isinstance(value, list):
        return [to_tensor(item) for item in value]
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    value = np.asarray(value)
    if value.dtype.kind in "OUS":
        raise UnsupportedModel("element type STRING")
    name = value.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(value.astype(np.float32)).bfloat16()
    if name.startswith(("float4", "float8", "float6")):
        raise UnsupportedModel(f"element type {name.upper()}")
    if name in {"int2", "int4", "uint2", "uint4"}:
        value = value.astype(np.int8 if name.startswith("int") else np.uint8)
    return torch.from_numpy(np.array(value))


def assert_same(actual, expected, rtol, atol):
    if isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other, rtol, atol)
        return
    assert actual.shape == expected.shape
    if expected.is_floating_point() or expected.is_complex():
        assert actual.dtype == expected.dtype
    kind = torch.complex128 if expected.is_complex() else torch.float64
    torch.testing.assert_close(
        actual.detach().to(kind), expected.to(kind), rtol=LOOSE.get(expected.dtype, rtol), atol=atol, equal_nan=True
    )


def run(case_name, model, data_sets, rtol, atol, tally):
    try:
        module = GraphModule(model)
        for inputs, outputs in data_sets:
            names = [value.name for value in model.graph.input]
            feeds = {name: to_tensor(value) for name, value in zip(names, inputs, strict=False) if value is not None}
            expected = to_tensor(list(outputs))
            actual = module.run(feeds, [value.name for value in model.graph.output])
            assert_same(actual, expected, rtol, max(atol, 1e-6))
    except UnsupportedModel as error:
        tally.unsupported[str(error)] += 1
    except Exception as error:
        if any(part in case_name for part in EXPECTED_FAILURES):
            tally.excused.append(case_name)
        else:
            tally.failed[case_name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        tally.passed.append(case_name)
        tally.operators |= {(node.domain, node.op_type) for node in model.graph.node}


def stored_cases():
    """The tests on disk: old opsets, written by the first exporter of torch."""
    for folder in sorted(Path(DATA_DIR).glob("[ps]*/test_*")):
        model = onnx.load(folder / "model.onnx")
        data_sets = []
        for data in sorted(folder.glob("test_data_set_*")):
            loaded = []
            for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
                files = [data / f"{kind}_{index}.pb" for index in range(len(list(data.glob(f"{kind}_*.pb"))))]
                loaded.append([load(file, value) for file, value in zip(files, values, strict=False)])
            data_sets.append(tuple(loaded))
        yield folder.name, model, data_sets


def load(file, value):
    if value.type.HasField("sequence_type"):
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(file.read_bytes())
        return list(numpy_helper.to_list(sequence))
    tensor = TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return numpy_helper.to_array(tensor)


@pytest.fixture(scope="module")
def tally():
    result = Tally()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for case in load_node_model_tests():
            run(case.name, case.model, case.data_sets, case.rtol, case.atol, result)
        for name, model, data_sets in stored_cases():
            run(name, model, data_sets, 1e-3, 1e-6, result)
    return result


def test_no_supported_operator_fails(tally, capsys):
    covered = tally.operators.intersection(registered())
    with capsys.disabled():
        print(
            f"\nONNX node tests: {len(tally.passed)} passed, {len(tally.failed)} failed, {len(tally.excused)} excused, "
            f"{sum(tally.unsupported.values())} unsupported; {len(covered)} of {len(registered())} operators covered"
        )
    assert not tally.failed, "\n".join(f"{name}: {reason}" for name, reason in tally.failed.items())


def test_number_of_passing_tests_does_not_drop(tally):
    assert len(tally.passed) >= FLOOR


def test_every_excuse_is_needed(tally):
    for part in EXPECTED_FAILURES:
        assert any(part in name for name in tally.excused) or part in {"training_mode"}
