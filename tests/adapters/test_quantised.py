"""Quantised layers: loops over the published layouts as oracles."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fp_audit.errors import CorruptModel
from fp_audit_adapters._files import read_tensors
from fp_audit_adapters._quantised import dequantised, four_bits, gptq

RNG = np.random.default_rng(0)
LEVELS = np.sort(RNG.normal(size=16)).astype(np.float32)


def test_int8_rows():
    weight, scale = RNG.integers(-127, 128, (4, 6)).astype(np.int8), RNG.uniform(1, 2, 4).astype(np.float32)
    found = dequantised({"a.weight": weight, "a.SCB": scale, "a.bias": scale})
    assert set(found) == {"a.weight", "a.bias"}
    for i in range(4):
        for j in range(6):
            assert found["a.weight"][i, j] == pytest.approx(int(weight[i, j]) * scale[i] / 127)


def packed(indices):
    flat = indices.ravel()
    return (flat[::2] * 16 + flat[1::2]).astype(np.uint8).reshape(-1, 1)


def four_bit_layer(nested):
    indices, shape, block = RNG.integers(0, 16, (6, 16)), (6, 16), 8
    tensors = {"a.weight": packed(indices), "a.weight.quant_map": LEVELS}
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": list(shape)}
    if nested:
        codes, table = RNG.integers(0, 256, 12).astype(np.uint8), np.linspace(-1, 1, 256).astype(np.float32)
        outer = RNG.uniform(1, 2, 3).astype(np.float32)
        state |= {"nested_blocksize": 4, "nested_offset": 0.25, "nested_dtype": "float32"}
        tensors |= {"a.weight.absmax": codes, "a.weight.nested_absmax": outer, "a.weight.nested_quant_map": table}
        absmax = [table[code] * outer[i // 4] + 0.25 for i, code in enumerate(codes)]
    else:
        absmax = RNG.uniform(1, 2, 12).astype(np.float32)
        tensors["a.weight.absmax"] = absmax
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    expected = [[LEVELS[indices[i, j]] * absmax[(i * 16 + j) // block] for j in range(16)] for i in range(6)]
    return {**tensors, "a.weight.quant_state.bitsandbytes__nf4": text}, expected


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits(nested):
    tensors, expected = four_bit_layer(nested)
    found = dequantised(tensors)
    assert set(found) == {"a.weight"}
    np.testing.assert_allclose(found["a.weight"], expected, rtol=1e-6)


def gptq_layer(bits, inputs=64, outputs=32, group=16):
    values, zeros = (
        RNG.integers(0, 2**bits, (inputs, outputs)),
        RNG.integers(0, 2**bits - 1, (inputs // group, outputs)),
    )
    scales, groups = RNG.uniform(0.01, 0.02, zeros.shape).astype(np.float32), RNG.permutation(inputs) // group
    each = 32 // bits

    def words(rows):
        return [sum(int(v) << (bits * k) for k, v in enumerate(rows[i : i + each])) for i in range(0, len(rows), each)]

    qweight = np.array([words(column) for column in values.T], np.uint32).T.astype(np.int32)
    qzeros = np.array([words(row) for row in zeros], np.uint32).astype(np.int32)
    expected = [
        [scales[groups[i], o] * (values[i, o] - zeros[groups[i], o] - 1) for i in range(inputs)] for o in range(outputs)
    ]
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales, "g_idx": groups.astype(np.int32)}, expected


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq(bits):
    parts, expected = gptq_layer(bits)
    np.testing.assert_allclose(gptq(**parts), expected, rtol=1e-5)
    found = dequantised({f"m.{name}": value for name, value in parts.items()} | {"m.bias": np.ones(3)})
    assert set(found) == {"m.weight", "m.bias"}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_read_as_torch_reads_them(tmp_path, dtype):
    value = torch.randn(8, 6).to(dtype)
    save_file({"a.weight": value}, tmp_path / "a.safetensors")
    found = read_tensors([tmp_path / "a.safetensors"])["a.weight"]
    np.testing.assert_array_equal(found, value.float().numpy())


def test_scaled_blocks():
    weight = RNG.normal(size=(6, 10)).astype(np.float32)
    scale = RNG.uniform(1, 2, (2, 3)).astype(np.float32)
    found = dequantised({"a.weight": weight, "a.weight_scale_inv": scale})["a.weight"]
    for i in range(6):
        for j in range(10):
            assert found[i, j] == pytest.approx(weight[i, j] * scale[i // 3, j // 4])
    row = dequantised({"a.weight": weight.astype(np.int8), "a.weight_scale": scale[:1, :1]})["a.weight"]
    np.testing.assert_allclose(row, weight.astype(np.int8) * scale[0, 0])


def test_what_is_not_quantised_is_left_alone():
    tensors = {"a.weight": RNG.normal(size=(3, 4)), "steps": np.arange(3), "b.weight": np.ones((2, 2), np.uint8)}
    assert dequantised(tensors) == tensors


def broken():
    layer, _ = gptq_layer(4)
    four, _ = four_bit_layer(False)
    yield {**{f"a.{name}": value for name, value in layer.items()}, "a.g_idx": np.full(64, 99, np.int32)}
    yield {**{f"a.{name}": value for name, value in layer.items()}, "a.g_idx": np.arange(7)}
    yield {**{f"a.{name}": value for name, value in layer.items()}, "a.g_idx": np.arange(0)}
    yield {**four, "a.weight.absmax": np.ones(3, np.float32)}
    for text in ('{"blocksize": 0, "shape": [6, 16]}', '{"blocksize": 8, "shape": [1e99, 16]}', "[", '"x"', "[" * 9999):
        yield {**four, "a.weight.quant_state.bitsandbytes__nf4": np.frombuffer(text.encode(), np.uint8)}
    yield {name: value for name, value in four.items() if "quant_state" not in name}
    yield {"a.weight": np.ones((4, 6), np.int8), "a.SCB": np.ones(3, np.float32)}


@pytest.mark.parametrize("tensors", list(broken()), ids=range(len(list(broken()))))
def test_parts_that_do_not_fit_are_a_corrupt_model(tensors):
    with pytest.raises(CorruptModel, match=r"the quantised layer 'a' holds tensors that do not fit"):
        dequantised(tensors)


def test_a_shape_that_the_bytes_do_not_back_takes_no_memory():
    with pytest.raises(ValueError, match="sizes do not fit"):
        four_bits(np.zeros(8, np.uint8), LEVELS, np.ones(1), 64, (10**9, 10**9))
